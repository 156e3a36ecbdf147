"use strict";
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const cards = all(".card"), choices = all(".choice"), rows = all("tr[data-point]");
  const first = choices.find((choice) => choice.getAttribute("aria-checked") === "true");
  let chosen = first ? first.dataset.point : "0";

  const show = (point) => cards.forEach((card) => { card.hidden = card.dataset.point !== point; });
  const choose = (point) => {
    chosen = point;
    for (const choice of choices) {
      const on = choice.dataset.point === point;
      choice.setAttribute("aria-checked", on);
      choice.setAttribute("tabindex", on ? 0 : -1);
    }
    rows.forEach((row) => row.classList.toggle("chosen", row.dataset.point === point));
    show(point);
  };

  const steps = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };
  for (const choice of choices) {
    const point = choice.dataset.point;
    choice.addEventListener("mouseenter", () => show(point));
    choice.addEventListener("mouseleave", () => show(chosen));
    choice.addEventListener("click", () => choose(point));
    choice.addEventListener("focus", () => choose(point));
    choice.addEventListener("keydown", (event) => {
      if (!(event.key in steps)) return;
      event.preventDefault();
      const own = [...choice.closest(".layer").querySelectorAll(".choice")];
      own[(own.indexOf(choice) + steps[event.key] + own.length) % own.length].focus();
    });
  }
  rows.forEach((row) => row.addEventListener("click", () => choose(row.dataset.point)));
  for (const input of all("input[name=axis]")) {
    const draw = () => all(".layer").forEach((layer) => layer.classList.toggle("on", layer.dataset.axis === input.value));
    input.addEventListener("change", draw);
    if (input.checked) draw(); // a browser may keep the choice over a reload
  }
})();
