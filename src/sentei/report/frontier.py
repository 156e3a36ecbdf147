"""The page of a frontier: size, quality and latency of a task, and the command that applies each point."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from sentei.report import picture
from sentei.report.curve import LATENCY, at, axes, curve, show
from sentei.report.page import drawn, page, scrolled
from sentei.report.task import listed, protocol
from sentei.report.training import commands, guessing, healing
from sentei.report.words import between, count, known, metric_name, number, percent, relative, signed

LOSSES = (0.01, 0.05)  # of the metric, for which the summary says what can go


def render(report: Mapping[str, Any]) -> str:
    """The page.

    Args:
        report: what `sentei.fit.frontier` wrote. Where it also holds `given`: `{"model", "task", "out"}` as on the
            command line, the commands of the page are complete; else they hold the name of the model, and words in
            capitals for the other two.
    """
    body = (
        f"{_header(report)}{_picture(report)}{_table(report)}"
        f"<section><h2>How it was measured</h2>{listed(_protocol(report))}</section>"
        f"<footer>Made by sentei {escape(report['sentei'])}. Every figure of this page is in frontier.json.</footer>"
    )
    return page(escape(_title(report)), body, "fit.css", "frontier.css", script="frontier.js")


def summary(report: Mapping[str, Any]) -> str:
    """The frontier in two to four lines, for the terminal and for those who read nothing else."""
    task, (dense, *cut) = report["task"], report["points"]
    lines = [
        f"{report['model']} on the task {task['name']}: {metric_name(task['metric'])} {number(dense['value'])} dense, "
        f"on {count(task['rows']['search'], 'search row')}; {count(len(cut), 'smaller model')} cut and measured."
    ]
    lines += filter(None, (_compared(report), guessing(report, dense["value"])))
    shown = None
    for loss in LOSSES if cut else ():
        point = within(report, loss)
        if not point["number"]:
            lines.append(f"No smaller model that was tried is within {percent(loss, 0)}.")
        elif point is not shown:
            sure = between(point["interval"]) or "–"
            lines.append(
                f"Within {percent(loss, 0)}: {percent(point['removed'])} of the block params can go "
                f"({number(point['value'])}, {signed(point['change'])}, 95 % interval {sure})"
                f"{_faster(dense, point)}: {point['file']}."
            )
        shown = point
    return "\n".join(lines)


def _compared(report: Mapping[str, Any]) -> str:
    """What was trained and what was not, and the dense model trained alike."""
    text, found = healing(report), report.get("dense_trained")
    if not found:
        return text
    sure = f", 95 % interval {ends}" if (ends := between(found["interval"])) else ""
    return f"{text} Trained alike, the dense model has {number(found['value'])} ({signed(found['change'])}{sure})."


def within(report: Mapping[str, Any], loss: float) -> Mapping[str, Any]:
    """The smallest model whose point estimate is at most `loss` worse than the dense one; that one, if none is."""
    sign = 1 if report["task"]["higher"] else -1
    held = [p for p in report["points"] if known(p["value"]) and sign * p["change"] >= -loss - 1e-9]
    return max(held, key=lambda p: p["removed"], default=report["points"][0])


def command(report: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    """What makes the model of a point: that one, as it was measured."""
    given = {"model": report["model"], "out": "OUT"} | report.get("given", {})
    name = f"{given['model'].rstrip('/').rpartition('/')[2]}-{100 * point['removed']:.0f}"
    plan = f"{given['out'].rstrip('/')}/{point['file']}"
    return " && ".join(map(shlex.join, commands(report, plan, name)))


def _title(report: Mapping[str, Any]) -> str:
    return f"{report['model']} for {report['task']['name']}: size and quality"


def _faster(dense: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    ratios = [
        f"{label} ×{before / after:.2f}"
        for axis, label in LATENCY.items()
        if (before := at(dense, axis)) and (after := at(point, axis))
    ]
    return f", speed predicted: {', '.join(ratios)}" if ratios else ""


def _first(report: Mapping[str, Any]) -> int:
    """The point that is shown first: the smallest that loses little, else the first cut."""
    points = report["points"]
    found = next((p for p in (within(report, loss) for loss in LOSSES) if p["number"]), None)
    return int((found or points[min(1, len(points) - 1)])["number"])


def _header(report: Mapping[str, Any]) -> str:
    lead = "".join(f'<p class="lead">{escape(line)}</p>' for line in summary(report).split("\n"))
    return f'<header><p class="eyebrow">frontier of a task</p><h1>{escape(_title(report))}</h1>{lead}</header>'


def _picture(report: Mapping[str, Any]) -> str:
    task, chosen = report["task"], _first(report)
    choices = "".join(
        f'<label><input type="radio" name="axis" value="{name}"{" checked" if n == 0 else ""}/> {escape(label)}</label>'
        for n, (name, label) in enumerate(axes(report["points"]).items())
    )
    hint = (
        f"{metric_name(task['metric'])}, {'more' if task['higher'] else 'less'} is better, over what the model costs. "
        "Whiskers are 95 % intervals of the difference to the dense model, whose level is dotted. Point at a model to "
        "see it; click it, or go there with the arrow keys, to choose it. What is far off is drawn on the edge."
    )
    if any(row.get("ranks") for point in report["points"] for row in point.get("blocks", ())):
        hint += " A line under a block: it has matrices that became a product of two (low rank)."
    cards = "".join(_card(report, point, hidden=point["number"] != chosen) for point in report["points"])
    return (
        f'<section id="frontier"><h2>The curve</h2><p class="hint">{escape(hint)}</p>'
        f'<fieldset class="axes"><legend>x axis</legend>{choices}</fieldset>{drawn(curve(report, chosen))}'
        f'<div class="cards" aria-live="polite">{cards}</div></section>'
    )


def _card(report: Mapping[str, Any], point: Mapping[str, Any], *, hidden: bool) -> str:
    """What one model is."""
    dense, name = report["points"][0], metric_name(report["task"]["metric"])
    value, facts = f"{name} {number(point['value'])}", {}
    if point["number"]:
        sure = f", 95 % interval {between(point['interval'])}" if between(point["interval"]) else ""
        value += f" ({signed(point['change'])}{sure})"
    for axis, label in axes([point]).items():
        change = signed(relative(at(point, axis), at(dense, axis))) if point["number"] else ""
        facts[label] = show(axis, at(point, axis)) + (f" ({change})" if change else "")
    title = f"{percent(point['removed'])} of the block params removed" if point["number"] else "The dense model"
    strip = drawn(picture.strip(point["blocks"])) if point.get("blocks") else ""
    apply = ""
    if point["number"]:
        apply = f'<p class="apply"><code>{escape(command(report, point))}</code></p>'
    return (
        f'<div class="card" data-point="{point["number"]}"{" hidden" if hidden else ""}>'
        f"<h3>{title}: {escape(value)}</h3>"
        f"{listed(facts)}{strip}{apply}</div>"
    )


def _table(report: Mapping[str, Any]) -> str:
    points, chosen = report["points"], _first(report)
    names = axes(points)
    head = ["removed", metric_name(report["task"]["metric"]), "change", "95 % interval", *names.values(), "plan"]
    rows = [_row(point, names, on=point["number"] == chosen) for point in points]
    if alike := report.get("dense_trained"):
        cells = [number(alike["value"]), signed(alike["change"]), between(alike["interval"]), *[""] * (len(names) + 1)]
        rows.insert(1, f"<tr><td>dense, trained alike</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    body = "".join(rows)
    return (
        '<section><h2>The same as a table</h2><p class="hint">All are measured on the search rows. A point that is '
        "chosen for its value looks a little better than it is: measure it again with sentei eval.</p>"
        f"{scrolled(map(escape, head), body)}</section>"
    )


def _row(point: Mapping[str, Any], names: Iterable[str], *, on: bool) -> str:
    cut = bool(point["number"])
    cells = [
        percent(point["removed"]) if cut else "dense",
        number(point["value"]),
        signed(point["change"]) if cut else "",
        between(point["interval"]) if cut else "",
        *(show(axis, at(point, axis)) for axis in names),
        point.get("file", ""),
    ]
    inside = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr data-point="{point["number"]}"{" class=chosen" if on else ""}>{inside}</tr>'


def _protocol(report: Mapping[str, Any]) -> dict[str, str]:
    facts = {
        **protocol(report["task"]),
        **({"training": trained} if (trained := healing(report)) else {}),
        "quality": "of real cuts, fitted on the calibration rows, on the search rows; 95 % intervals, rows paired with "
        "their dense partners",
    }
    if any(at(point, axis) for point in report["points"] for axis in LATENCY):
        facts["latency"] = "predicted from the times of parts that were measured on this machine, not timed as a whole"
    return facts
