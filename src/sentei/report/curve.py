"""The picture of a frontier: size against quality, one drawing per axis; frontier.js shows the one that is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

from sentei.report.axes import grid, spanned
from sentei.report.task import SIZES, size
from sentei.report.words import between, known, metric_name, number, percent, signed

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 1000.0, 420.0, 74.0, 18.0, 368.0
LATENCY = {"prefill_seconds": "prefill", "decode_seconds": "decoding step"}
FAR = 4.0  # times the dense model's metric, and nothing beyond it, is in the picture
Point = Mapping[str, Any]


def axes(points: Sequence[Point]) -> dict[str, str]:
    """What there is to put on the x axis, and its label: sizes, and latency where a point has it."""
    return SIZES | {name: label for name, label in LATENCY.items() if any(at(point, name) for point in points)}


def at(point: Point, axis: str) -> float | None:
    """Where a point is on an axis."""
    found: float | None = (point["sizes"] if axis in SIZES else point.get("latency") or {}).get(axis)
    return found


def show(axis: str, value: float | None) -> str:
    """A value on an axis in words."""
    return "–" if value is None else size(axis, value) if axis in SIZES else milliseconds(value)


def milliseconds(seconds: float) -> str:
    """`12.3 ms` for 0.0123."""
    return f"{1000 * seconds:,.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"


def ends(point: Point, dense: float) -> tuple[float, float] | None:
    """The interval of the metric: that of the relative change, on the dense model's value."""
    return tuple(dense * (1 + end) for end in point["interval"]) if between(point["interval"]) else None


def curve(report: Mapping[str, Any], chosen: int) -> str:
    """All drawings in one SVG.

    Args:
        report: of a frontier.
        chosen: number of the point that is chosen first.
    """
    points = [point for point in report["points"] if known(point["value"])]
    name = metric_name(report["task"]["metric"])
    label = f"{name} of {len(points)} models over their size; arrow keys choose one"
    layers = ""
    for n, (axis, words) in enumerate(axes(report["points"]).items()):
        drawn = [point for point in points if at(point, axis) is not None]
        kind = "layer on" if n == 0 else "layer"
        inside = _layer(report, sorted(drawn, key=lambda p: at(p, axis) or 0.0), axis, chosen) if drawn else ""
        about = escape(f"{label}: {words}")
        layers += (
            f'<g class="{kind}" data-axis="{axis}" role="radiogroup" aria-label="{about}">{inside}'
            f'<text x="{(LEFT + WIDTH) / 2:g}" y="{HEIGHT - 8:g}" text-anchor="middle">{escape(words)}</text></g>'
        )
    return f'<svg class="frontier" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}">{layers}</svg>'


def _layer(report: Mapping[str, Any], points: Sequence[Point], axis: str, chosen: int) -> str:
    dense = report["points"][0]["value"]
    heights = [min(value, FAR * dense) for p in points for value in (p["value"], *(ends(p, dense) or ()))]
    x = spanned([at(point, axis) or 0.0 for point in points], LEFT, WIDTH - 10)
    y = spanned(heights, BOTTOM, TOP)
    places = [(x.at(at(point, axis) or 0.0), y.at(point["value"])) for point in points]
    line = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
    level = f'<line class="zero" x1="{LEFT:g}" x2="{WIDTH - 10:g}" y1="{y.at(dense):.1f}" y2="{y.at(dense):.1f}"/>'
    dots = ""
    for point, (px, py) in zip(points, places, strict=True):
        whisker = ""
        if sure := ends(point, dense):
            low, high = map(y.at, sure)
            whisker = f'<line class="whisker" x1="{px:.1f}" x2="{px:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        on = point["number"] == chosen
        dots += (
            f'<g class="choice" role="radio" tabindex="{0 if on else -1}" aria-checked="{str(on).lower()}" '
            f'data-point="{point["number"]}" aria-label="{escape(_label(report, point))}">'
            f'<circle class="reach" cx="{px:.1f}" cy="{py:.1f}" r="18"/>{whisker}'
            f'<circle class="dot" cx="{px:.1f}" cy="{py:.1f}" r="7"/></g>'
        )
    return f'{grid(x, y, partial(show, axis), number)}{level}<polyline class="line" points="{line}"/>{dots}'


def _label(report: Mapping[str, Any], point: Point) -> str:
    name = metric_name(report["task"]["metric"])
    if not point["number"]:
        return f"dense: {name} {number(point['value'])}"
    return f"{percent(point['removed'])} removed: {name} {number(point['value'])} ({signed(point['change'])})"
