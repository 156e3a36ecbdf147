"""What a selection chose and why, as one page that needs no network. All text of the pool is escaped."""

from __future__ import annotations

import colorsys
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sentei.files import read_json, write_text
from sentei.recover.select.about import SUMMARY
from sentei.report.page import drawn, page, scrolled
from sentei.report.picture import share

LONGEST = 700  # characters of a text that are shown
_SIDE, _EDGE, _LABELS = 900, 24, 14  # of the map: its side, its margin, and the clusters that are named on it


def write_page(directory: Path) -> None:
    """Writes selection.html into the directory of a selection.

    Raises:
        InputError: it has no summary.json.
    """
    write_text(directory / "selection.html", render(read_json(directory / SUMMARY)))


def render(selection: Mapping[str, Any]) -> str:
    """The page.

    Args:
        selection: `{"title", "pool": {"source", "format", "rows"}, "models": {"dense", "pruned"}, "strategy",
            "budget": {"asked", "unit", "selected", "tokens"}, "clusters": [{"id", "name", "rows", "rejected", "damage"
            (mean JSD in nats, or None), "share" (of the budget, 0 to 1), "selected", "examples": [{"id", "prompt",
            "response", "jsd" (or None), "decision", "reason"}], "typical" (a row, may be missing)}],
            "map": [[x, y, cluster, selected, text]], "rejections": [{"reason", "count", "example"}], "notes": [text]}`.
    """
    clusters = sorted(selection["clusters"], key=lambda c: (c["damage"] is None, -(c["damage"] or 0.0), c["id"]))
    body = (
        f"{_header(selection)}{_table(clusters)}{_map(selection['map'], clusters)}{_cards(clusters)}"
        f"{_rejections(selection['rejections'])}{_notes(selection)}"
        "<footer>Every row of the pool, with its score, decision and reason, is in manifest.jsonl.</footer>"
    )
    return page(_text(selection["title"]), body, "bars.css", "selection.css")


def _text(value: Any, longest: int = LONGEST) -> str:
    """Escaped, cut, and without halves of surrogate pairs, which no file can hold."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return escape(text if len(text) <= longest else text[:longest] + " …")


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else _text(value)


def _damage(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _typical(cluster: Mapping[str, Any]) -> str:
    """Its most typical row, for words alone do not say what a cluster is."""
    text = cluster.get("typical")
    return f'<small class="typical" dir="auto">“{_text(text, 120)}”</small>' if text else ""


def _colour(cluster: int) -> str:
    """The golden angle keeps neighbours in the list apart; a luminance that stands out (3 : 1) on light and on dark."""
    hue, wanted = cluster * 137.508 % 360, (0.16, 0.22, 0.28)[cluster % 3]
    low, high = 0.0, 1.0
    for _ in range(20):
        lightness = (low + high) / 2
        red, green, blue = (_linear(part) for part in colorsys.hls_to_rgb(hue / 360, lightness, 0.62))
        low, high = (lightness, high) if 0.2126 * red + 0.7152 * green + 0.0722 * blue < wanted else (low, lightness)
    return f"hsl({hue:.0f} 62% {100 * high:.0f}%)"


def _linear(part: float) -> float:
    """Of a channel of sRGB, 0 to 1."""
    return part / 12.92 if part <= 0.04045 else float(((part + 0.055) / 1.055) ** 2.4)


def _header(selection: Mapping[str, Any]) -> str:
    pool, budget, clusters = selection["pool"], selection["budget"], selection["clusters"]
    rejected = sum(row["count"] for row in selection["rejections"])
    tiles = [
        (_number(budget["selected"]), f"of {_number(pool['rows'])} rows selected"),
        (_number(budget["tokens"]), "tokens in them"),
        (_number(len(clusters)), "clusters of instructions"),
        (_number(rejected), "rows rejected"),
    ]
    cards = "".join(f'<div class="tile"><b>{big}</b><span>{small}</span></div>' for big, small in tiles)
    asked = f"{_number(budget['asked'])} {_text(budget['unit'])}"
    return (
        f'<header><p class="eyebrow">data selection</p><h1>{_text(selection["title"])}</h1>'
        f'<p class="lead">{_number(budget["selected"])} of {_number(pool["rows"])} rows of {_text(pool["source"])} '
        f"({_text(pool['format'])}) to recover {_text(selection['models']['pruned'])}, pruned from "
        f"{_text(selection['models']['dense'])}. Strategy {_text(selection['strategy'])}, budget {asked}.</p>"
        f'<div class="tiles">{cards}</div></header>'
    )


def _table(clusters: Sequence[Mapping[str, Any]]) -> str:
    worst = max((c["damage"] or 0.0 for c in clusters), default=0.0) or 1.0
    largest = max((c["share"] for c in clusters), default=0.0) or 1.0
    total = sum(c["rows"] for c in clusters) or 1
    body = ""
    for c in clusters:
        damage = _damage(c["damage"]) + (share(c["damage"] / worst, "damage") if c["damage"] is not None else "")
        dot = f'<span class="dot" style="background:{_colour(c["id"])}"></span>'
        body += (
            f"<tr><td>{dot}{_text(c['name'])}{_typical(c)}</td><td>{damage}</td><td>{100 * c['share']:.1f} %"
            f"{share(c['share'] / largest, 'share')}</td><td>{100 * c['rows'] / total:.1f} %</td>"
            f"<td>{c['rows']:,}</td><td>{c['rejected']:,}</td><td>{c['selected']:,}</td></tr>"
        )
    head = ("cluster", "damage", "share of the budget", "share of the pool", "rows", "rejected", "selected")
    return (
        '<section><h2>Where the damage is, and where the budget goes</h2><p class="hint">Damage is the mean '
        "Jensen–Shannon divergence between the next-token distributions of the dense and the pruned model on the "
        f"responses, in nats per token (0: alike, 0.6931: nothing in common).</p>{scrolled(head, body)}</section>"
    )


def _map(points: Sequence[Sequence[Any]], clusters: Sequence[Mapping[str, Any]]) -> str:
    if not points:
        return ""
    low = [min(point[axis] for point in points) for axis in (0, 1)]
    span = [(max(point[axis] for point in points) - low[axis]) or 1.0 for axis in (0, 1)]

    def place(axis: int, value: float) -> float:
        return _EDGE + (_SIDE - 2 * _EDGE) * (value - low[axis]) / span[axis]

    layers: dict[bool, list[str]] = {False: [], True: []}  # the selected ones on top
    for x, y, cluster, selected, text in points:
        layers[bool(selected)].append(
            f'<circle cx="{place(0, x):.1f}" cy="{place(1, y):.1f}" r="{4.5 if selected else 3.5}" '
            f'fill="{_colour(cluster)}"><title>{_text(text)}</title></circle>'
        )
    dots = f'<g class="left">{"".join(layers[False])}</g><g class="taken">{"".join(layers[True])}</g>'
    labels = ""
    for c in sorted(clusters, key=lambda c: (-c["rows"], c["id"]))[:_LABELS]:
        own = [point for point in points if point[2] == c["id"]]
        if own:
            x, y = (place(axis, statistics.median(point[axis] for point in own)) for axis in (0, 1))
            word = _text(str(c["name"]).split(",")[0], 30)
            labels += f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{word}</text>'
    return (
        f'<section><h2>The map</h2><p class="hint">{len(points):,} rows of the pool, near ones alike, coloured by '
        "cluster; outlined ones were selected. Point at one to read it. Distances between far groups mean little.</p>"
        + drawn(f'<svg class="map" viewBox="0 0 {_SIDE} {_SIDE}" role="img" aria-label="The pool">{dots}{labels}</svg>')
        + "</section>"
    )


def _cards(clusters: Sequence[Mapping[str, Any]]) -> str:
    cards = ""
    for c in clusters:
        facts = f"{c['selected']:,} of {c['rows']:,} rows selected, damage {_damage(c['damage'])}"
        examples = "".join(_example(example) for example in c["examples"])
        cards += (
            f'<details class="cluster"><summary><b>{_text(c["name"])}</b><small>{facts}</small>{_typical(c)}</summary>'
            f"{examples}</details>"
        )
    return (
        '<section><h2>What is in the clusters</h2><p class="hint">Open one to read some of its rows, what was decided '
        f"about them, and why.</p>{cards}</section>"
    )


def _example(example: Mapping[str, Any]) -> str:
    why = f": {_text(example['reason'])}" if example["reason"] else ""
    return (
        f'<div class="example"><header><b>{_text(example["decision"])}</b>{why} · row {_text(example["id"], 80)} · '
        f'damage {_damage(example["jsd"])}</header><p dir="auto">{_text(example["prompt"])}</p>'
        f'<p class="response" dir="auto">{_text(example["response"])}</p></div>'
    )


def _rejections(rejections: Sequence[Mapping[str, Any]]) -> str:
    body = "".join(
        f"<tr><td>{_text(row['reason'])}</td><td>{row['count']:,}</td>"
        f'<td class="note" dir="auto">{_text(row["example"], 300)}</td></tr>'
        for row in sorted(rejections, key=lambda row: -row["count"])
    )
    inside = scrolled(("reason", "rows", "for example"), body) if body else '<p class="hint">No row was rejected.</p>'
    return f"<section><h2>What was rejected</h2>{inside}</section>"


def _notes(selection: Mapping[str, Any]) -> str:
    notes = "".join(f"<li>{_text(note, 2000)}</li>" for note in selection["notes"])
    return f"<section><h2>Notes</h2><ul>{notes}</ul></section>" if notes else ""
