"""Writes the figures of README.md from benchmarks/results/, between its two marks.

python benchmarks/readme.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from result_rows import rows, table
from tables import PEERS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- figures: python benchmarks/readme.py -->\n", "<!-- end of figures -->\n"
LINES = {
    "auto": "`auto`: channels, heads and ranks",
    "structural": "`structural`: no low-rank matrices, loads in every engine",
}
SPARSITIES = (0.2, 0.3, 0.5)
PROTOCOL = """Perplexity against the dense model, WikiText-2, the same test windows for all (48 of 512 tokens), nothing trained. Ours:
bf16, 65,536 calibration tokens (`sentei measure`, `plan`, `cut`, `eval --window 512 --windows 48`), dense {dense}. Public
code of others: its own settings, fp32, 16,384 calibration tokens, rows joined without a blank line, dense 25.64; each ratio
is to its own dense figure. With four times the calibration text on our side, this is no equal race.

"""
PICTURE = "![Perplexity ratio against what was removed, beside other methods](docs/perplexity.svg)\n\n"
TASK = """On a task: ARC easy, tolerance 5 %, at most ten minutes: `sentei fit` removed {removed}; accuracy on the {rows} test rows,
read once: {dense} (dense, not trained on the task) → {pruned} (cut, and healed on the 400 calibration rows).
"""


def figures() -> str:
    """What stands between the marks."""
    own = [r for r in rows("methods") if r["key"]["domain"] == "in-domain" and r["key"]["test"] != "full"]
    found = {(r["key"]["method"], r["key"]["sparsity"]): r["perplexity"] for r in own}
    dense = found["dense", 0.0]
    body = [[line, *(f"×{found[name, s] / dense:.2f}" for s in SPARSITIES)] for name, line in LINES.items()]
    body.append(["best public code of others", *map(_best, SPARSITIES)])
    head = ["block params removed", *(f"{s:.0%}".replace("%", " %") for s in SPARSITIES)]
    return PROTOCOL.format(dense=f"{dense:.2f}") + table(head, body) + PICTURE + _task(rows("fit"))


def _best(sparsity: float) -> str:
    """The least ratio of the public code at a sparsity, and whose it is."""
    ratios = {name: peer[sparsity][1] for name, peer in PEERS.items() if sparsity in peer}
    if not ratios:
        return "–"
    name = min(ratios, key=lambda name: ratios[name])
    return f"×{ratios[name]:.2f} ({name.split(' (')[0]})"


def _task(found: list[dict[str, Any]]) -> str:
    key = {"table": "searches", "task": "science", "search": "evolve", "tolerance": 0.05}
    row = next(row for row in found if row["key"] == key)
    shown = {name: f"{100 * row['test'][name]:.1f} %" for name in ("dense", "pruned")}
    return TASK.format(removed=f"{100 * row['removed']:.1f} % of the block params", rows=row["test"]["rows"], **shown)


def written(text: str) -> str:
    """README.md with its figures anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{figures()}{END}{rest.partition(END)[2]}"


def main() -> None:
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(README)


if __name__ == "__main__":
    main()
