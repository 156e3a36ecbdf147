"""Cutting and training in turns in the report: the family of models, and the live curve of loss and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sentei.progress import duration
from sentei.report.axes import grid, spanned
from sentei.report.page import drawn, scrolled
from sentei.report.words import number, percent

WIDTH, HEIGHT, LEFT, TOP = 1000.0, 280.0, 74.0, 14.0


def section(accel: Mapping[str, Any]) -> str:
    """The section of the page."""
    stages = accel["family"]
    tokens = stages[-1]["tokens_so_far"]
    how = (
        f"{len(stages)} of {accel['stages']} stages ended well: each a cut, measured and planned anew, then training "
        f"({accel['train']}, loss {accel['loss']}, highest rate {accel['learning_rate']:g}, moments of the optimiser: "
        f"{accel['moments']}), on {tokens:,} tokens together. Each stage's model is in family/, for use as it is."
    )
    note = f'<p class="hint">{escape(accel["note"])}</p>' if accel["note"] else ""
    return (
        f'<section><h2>Cut and trained in turns</h2><p class="hint">{escape(how)}</p>{note}'
        f"<h3>Held-out loss over training tokens: it rises with each cut, and falls with training</h3>{_loss(stages)}"
        f"<h3>Distance to the dense model over size</h3>{_sizes(stages)}{_table(stages)}</section>"
    )


def _loss(stages: Sequence[Mapping[str, Any]]) -> str:
    points = []
    for stage in stages:
        before = stage["tokens_so_far"] - stage["tokens"]
        points += [(before + point["tokens"], point["heldout"], stage) for point in stage["curve"]]
    label = f"Held-out loss at {len(points)} moments of {len(stages)} stages"
    titles = [f"stage {s['stage']}, {percent(s['share'])}: {y:.4f} nats after {x:,.0f} tokens" for x, y, s in points]
    return _picture([(x, y) for x, y, _ in points], titles, label, lambda x: f"{x:,.0f}")


def _sizes(stages: Sequence[Mapping[str, Any]]) -> str:
    known = [stage for stage in stages if stage["evidence"]["rows"]["jsd"] is not None]
    if not known:
        return ""
    points = [(stage["share"], stage["evidence"]["rows"]["jsd"]) for stage in known]
    ends = [stage["evidence"]["rows"]["interval"] for stage in known]
    titles = [
        f"stage {s['stage']}, {percent(x)} of the block params: {y:.4f} nats"
        for s, (x, y) in zip(known, points, strict=True)
    ]
    return _picture(points, titles, f"Distance of {len(known)} models over their size", percent, ends)


def _picture(
    points: Sequence[tuple[float, float]],
    titles: Sequence[str],
    label: str,
    show: Any,
    ends: Sequence[Sequence[float] | None] = (),
) -> str:
    x = spanned([point[0] for point in points], LEFT, WIDTH - 20)
    y = spanned([*(point[1] for point in points), *(end for pair in ends if pair for end in pair)], HEIGHT - 34, TOP)
    path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in points)
    parts = [grid(x, y, show, number), f'<polyline class="curve" points="{path}"/>']
    for (a, _), pair in zip(points, ends, strict=False):
        if pair:
            low, high = map(y.at, pair)
            parts.append(f'<line class="axis" x1="{x.at(a):.1f}" x2="{x.at(a):.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
    for (a, b), title in zip(points, titles, strict=True):
        spot = f'<circle class="point" cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="4">'
        parts.append(f"{spot}<title>{escape(title)}</title></circle>")
    return drawn(
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _table(stages: Sequence[Mapping[str, Any]]) -> str:
    body = ""
    for stage in stages:
        found, curve, seconds = stage["evidence"], stage["curve"], stage["seconds"]
        overhead = sum(value for name, value in seconds.items() if name not in ("train", "evidence"))
        cells = [
            f"{stage['stage']}",
            f"{percent(stage['share'])}<small>{stage['block_params']:,}</small>",
            f"{stage['kv_groups'][0]:,} / {stage['kv_groups'][1]:,}",
            f"{stage['ffn'][0]:,} / {stage['ffn'][1]:,}",
            f"{stage['tokens']:,}",
            f"{number(curve[0]['heldout'])} → {number(curve[-1]['heldout'])}",
            _sure(found["rows"]["jsd"], found["rows"]["interval"], 4),
            _sure(found["text"]["jsd"], found["text"]["interval"], 4),
            _sure(found["perplexity"]["value"], found["perplexity"]["interval"], 2),
            f"{duration(seconds['train'])}<small>cutting {duration(overhead)}</small>",
        ]
        body += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    heads = (
        "stage",
        "block params",
        "KV groups",
        "FFN channels",
        "tokens",
        "held-out loss",
        "nats from dense, rows",
        "nats from dense, text",
        "perplexity of the text",
        "time",
    )
    return (
        '<p class="hint">Distances are Jensen–Shannon divergences from the dense model, nats per token, on rows '
        "that were held out and on text behind that of the calibration, with 95 % intervals over rows and windows. "
        f"Held-out loss: after the cut, and after training.</p>{scrolled(heads, body)}"
    )


def _sure(value: float | None, interval: Sequence[float] | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:,.{digits}f}" + (
        f"<small>{interval[0]:,.{digits}f} – {interval[1]:,.{digits}f}</small>" if interval else ""
    )
