"""The picture of a search: what was tried, how much of the model it left out, and what it scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sentei.report.axes import Axis, grid
from sentei.report.words import between, known, metric_name, number, percent, relative, signed

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 1000.0, 400.0, 74.0, 16.0, 352.0
ASIDE = 20.0  # pixels from the confirmed point to its test
FAR = 6  # tolerances beyond the dense model that are in the picture, and at least a tenth of its metric


def search(report: Mapping[str, Any]) -> str:
    """Candidates in place, real cuts and what was confirmed, over the share of the model that is removed.

    Args:
        report: of a fit; `fit.dense_searched`, the dense model's metric on the search rows, draws the limit of those
            rows, too.
    """
    fit, higher = report["fit"], report["task"]["higher"]
    placed, cuts = divided(report["history"], fit["cuts"])
    limits = {"confirmation": fit["dense"], "search": fit.get("dense_searched")}
    limits = {rows: (1 + (-1 if higher else 1) * fit["tolerance"]) * v for rows, v in limits.items() if known(v)}
    y = _values(report, list(limits.values()))
    shares = [row["removed"] for row in report["history"]] + [fit["removed"] or 0.0]
    x = Axis(0.0, max(0.1, *shares) * 1.04, LEFT, WIDTH - 10)
    lost = y.low if higher else y.high  # where a candidate is drawn that scored no number
    dots = "".join(_dot(row, x, y, lost, "tried") for row in placed) + "".join(
        _dot(row, x, y, lost, "cut") for row in cuts
    )
    label = f"{len(placed)} candidates in place and {len(cuts)} real cuts: share removed and {report['task']['metric']}"
    return (
        f'<svg class="search" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(label)}">'
        f"{grid(x, y, lambda v: percent(v, 0), number)}{_limits(limits, y)}{dots}{_confirmed(report, x, y)}"
        f'<text x="{(x.start + x.end) / 2:g}" y="{HEIGHT - 6:g}" text-anchor="middle">removed</text></svg>'
    )


def divided(
    history: Sequence[Mapping[str, Any]], cuts: float
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Candidates in place, and real cuts: the last `cuts` rows, where evaluations are counted anew from 1."""
    first = len(history) - round(cuts)
    if first >= 0 and all(row["evaluations"] == n for n, row in enumerate(history[first:], start=1)):
        return history[:first], history[first:]
    return history, []


def _values(report: Mapping[str, Any], limits: list[float]) -> Axis:
    """The range of the metric: all that matters, but candidates that are far off do not squeeze the rest."""
    fit, higher = report["fit"], report["task"]["higher"]
    reach = max(0.1, FAR * fit["tolerance"])
    bounds = (1 - reach) * fit["dense"], (1 + reach) * fit["dense"]
    seen = [row["value"] for row in report["history"] if known(row["value"])]
    seen = [max(v, bounds[0]) if higher else min(v, bounds[1]) for v in seen]
    test = fit["test"] or {"dense": None, "pruned": None, "interval": ()}
    sure = [look["dense"] * (1 + end) for look in (fit, test) for end in look["interval"] or () if known(end)]
    own = [v for v in (fit["dense"], fit["confirmed"], fit["searched"], test["pruned"]) if known(v)]
    low, high = min(seen + sure + own + limits), max(seen + sure + own + limits)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - room, high + room, BOTTOM, TOP)


def _dot(row: Mapping[str, Any], x: Axis, y: Axis, lost: float, kind: str) -> str:
    value, met = row["value"], row["met"]
    what = {True: "within the tolerance", False: "not within the tolerance", None: "given up early"}[met]
    title = f"{'real cut' if kind == 'cut' else row['by']}: {percent(row['removed'])} removed\n"
    title += f"{number(value) if known(value) else 'no number'} on {row['rows']:,} search rows: {what}"
    classes = f"{kind} {({True: 'met', False: 'unmet', None: 'part'})[met]}"
    at = y.at(value if known(value) else lost)
    size = {"tried": 3.5, "cut": 6.0}[kind]
    return (
        f'<circle class="{classes}" cx="{x.at(row["removed"]):.1f}" cy="{at:.1f}" r="{size:g}">'
        f"<title>{escape(title)}</title></circle>"
    )


def _limits(limits: Mapping[str, float], y: Axis) -> str:
    parts = ""
    for n, (rows, value) in enumerate(limits.items()):
        at, left = y.at(value), LEFT + 4 + 230 * n  # side by side, for the lines may be close
        parts += f'<line class="limit" x1="{LEFT:g}" x2="{WIDTH - 10:g}" y1="{at:.1f}" y2="{at:.1f}"/>'
        parts += f'<text class="on" x="{left:g}" y="{at - 6:.1f}">limit on {rows} rows: {number(value)}</text>'
    return parts


def _confirmed(report: Mapping[str, Any], x: Axis, y: Axis) -> str:
    """The cut that was confirmed, or came nearest to it, and its test, with their intervals."""
    fit, rows = report["fit"], report["task"]["rows"]
    if not known(fit["confirmed"]):
        return ""
    at = x.at(fit["removed"])
    title = (
        f"{'confirmed' if fit['verdict'] == 'met' else 'best on the confirmation rows'}: {percent(fit['removed'])} "
        f"removed\n{metric_name(report['task']['metric'])} {number(fit['confirmed'])} on {rows['confirm']:,} "
        f"confirmation rows ({signed(relative(fit['confirmed'], fit['dense']))}, {between(fit['interval'])}); "
        f"{number(fit['searched'])} on the search rows"
    )
    kind = "met" if fit["verdict"] == "met" else "unmet"
    shape = _whisker(at, y, fit["dense"], fit["interval"])
    shape += f'<circle class="look {kind}" cx="{at:.1f}" cy="{y.at(fit["confirmed"]):.1f}" r="9"/>'
    if (test := fit["test"]) and known(test["pruned"]):
        title += f"; {number(test['pruned'])} on {test['rows']:,} test rows"
        side, height = at + ASIDE, y.at(test["pruned"])
        shape += _whisker(side, y, test["dense"], test["interval"])
        shape += f'<rect class="test" x="{side - 5:.1f}" y="{height - 5:.1f}" width="10" height="10"/>'
    return f"<g><title>{escape(title)}</title>{shape}</g>"


def _whisker(x: float, y: Axis, dense: float, interval: Sequence[float | None]) -> str:
    if not between(interval):
        return ""
    low, high = (y.at(dense * (1 + (end or 0.0))) for end in interval)
    return f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
