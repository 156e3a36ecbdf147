"""Pictures as inline SVG: what each block keeps and why, and intervals. Colours come from the page's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sentei.plan import ATTENTION_MATRICES, MATRICES

WIDTH, LEFT, TOP, BAR = 1000.0, 106.0, 14.0, 96.0  # of the picture; room for labels; height of one row of bars
GAP = 34.0  # between two rows


def blocks(rows: Sequence[Mapping[str, Any]]) -> str:
    """One column per block: the share kept of attention and of the FFN, and more where it is there.

    That is the sensitivity, where it was measured, and the matrices of low rank, where there are any.
    """
    sensitive = all(
        row[part]["sensitivity"] is not None for row in rows for part in ("attention", "ffn") if _full(row, part)
    )
    low_rank = any(row.get("ranks") for row in rows)
    kept = [("attention", "attention"), ("ffn", "FFN")]
    lanes = [TOP + n * (BAR + GAP) for n in range(len(kept) + sensitive + low_rank)]
    height = lanes[-1] + BAR + GAP
    step = (WIDTH - LEFT) / max(len(rows), 1)
    parts = [_axis(y, f"{label} kept", ("100 %", "0")) for y, (_, label) in zip(lanes, kept, strict=False)]
    scale = max((_sensitivity(row) for row in rows), default=0.0) or 1.0
    if sensitive:
        parts.append(_axis(lanes[2], "sensitivity", (f"{scale:.2g}", "0")))
    if low_rank:
        parts.append(_matrix_names(lanes[-1]))
    for row in rows:
        x = LEFT + row["block"] * step
        width = max(step - min(6.0, step * 0.22), 1.0)
        cells = [_cell(x, y, width, BAR, row[key]["kept"], key) for y, (key, _) in zip(lanes, kept, strict=False)]
        if sensitive:
            cells.append(_stack(x, lanes[2], width, row, scale))
        if low_rank:
            cells.append(_products(x, lanes[-1], width, row))
        if len(rows) <= 40 or row["block"] % 5 == 0:
            middle = x + width / 2
            cells.append(
                f'<text x="{middle:.1f}" y="{height - GAP + 17:.1f}" text-anchor="middle">{row["block"]}</text>'
            )
        parts.append(f'<g class="block"><title>{escape(_title(row))}</title>{"".join(cells)}</g>')
    label = f"What each of {len(rows)} blocks keeps of its attention and FFN"
    return f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def strip(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same in small: attention above FFN, and a mark under a block with matrices of low rank."""
    bar, gap = 26.0, 4.0
    step = (WIDTH - LEFT) / max(len(rows), 1)
    parts = ""
    for n, label in enumerate(("attention", "FFN")):
        y = n * (bar + gap) + bar / 2 + 4
        parts += f'<text x="{LEFT - 10}" y="{y:.1f}" text-anchor="end">{label}</text>'
    for row in rows:
        x, width = LEFT + row["block"] * step, max(step - min(4.0, step * 0.2), 1.0)
        cells = "".join(
            _cell(x, n * (bar + gap), width, bar, row[key]["kept"], key) for n, key in enumerate(("attention", "ffn"))
        )
        if row.get("ranks"):
            cells += _bar("product", x, 2 * (bar + gap), width, 4)
        parts += f'<g class="block"><title>{escape(_title(row))}</title>{cells}</g>'
    label = f"What each of {len(rows)} blocks keeps"
    return f'<svg viewBox="0 0 {WIDTH:.0f} {2 * (bar + gap) + 6:.0f}" role="img" aria-label="{label}">{parts}</svg>'


def short(matrix: str) -> str:
    """`gate` for `gate_proj`."""
    return matrix.removesuffix("_proj")


def intervals(values: Sequence[tuple[float, tuple[float, float]]], reach: float) -> str:
    """Dots with their intervals, one below the other, on a line from -`reach` to `reach`, zero marked."""

    def x(v: float) -> float:
        return 90 + 84 * max(-1.0, min(1.0, v / reach))

    height = 18 if len(values) == 1 else 13 * len(values)
    parts = ""
    for n, (value, ends) in enumerate(values, 1):
        y = height * (n - 0.5) / len(values)
        parts += (
            f'<line class="whisker" x1="{x(ends[0]):.1f}" x2="{x(ends[1]):.1f}" y1="{y:g}" y2="{y:g}"/>'
            f'<circle class="dot" cx="{x(value):.1f}" cy="{y:g}" r="4"/>'
        )
    zero = f'<line class="zero" x1="90" x2="90" y1="0" y2="{height}"/>'
    return f'<svg viewBox="0 0 180 {height}" aria-hidden="true">{zero}{parts}</svg>'


def curve(points: Sequence[tuple[float, float]], kept: int) -> str:
    """The recovery curve: held-out loss over training tokens; the point at `kept` is the state that was kept."""
    width, left, top, height = 1000.0, 92.0, 14.0, 220.0
    far = max(x for x, _ in points) or 1.0
    low, high = min(y for _, y in points), max(y for _, y in points)
    room = 0.08 * (high - low) or 0.1

    def place(x: float, y: float) -> tuple[float, float]:
        share = (high + room - y) / (high - low + 2 * room)
        return left + 12 + (width - left - 40) * x / far, top + height * share

    spots = [place(*point) for point in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    parts = [f'<line class="axis" x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>' for y in (top, top + height)]
    for value in {low, high}:
        y = place(0, value)[1]
        parts.append(f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{value:.3f}</text>')
    for tokens in {0.0, points[kept][0], far}:
        x = place(tokens, low)[0]
        parts.append(f'<text x="{x:.1f}" y="{top + height + 18:.1f}" text-anchor="middle">{tokens:,.0f}</text>')
    parts.append(f'<polyline class="curve" points="{path}"/>')
    for n, ((x, y), (tokens, loss)) in enumerate(zip(spots, points, strict=True)):
        title = f"{tokens:,.0f} tokens: {loss:.4f} nats" + (", kept" if n == kept else "")
        kind, radius = ("point kept", 7) if n == kept else ("point", 4)
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{title}</title></circle>')
    label = f"Held-out loss at {len(points)} moments of the training"
    return (
        f'<svg viewBox="0 0 {width:.0f} {top + height + 26:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def share(part: float, kind: str) -> str:
    """A bar filled by `part`, 0 to 1, for cells of tables; its style is in bars.css."""
    return f'<span class="bar {kind}"><i style="width:{100 * min(max(part, 0.0), 1.0):.1f}%"></i></span>'


def _axis(y: float, label: str, ends: tuple[str, str]) -> str:
    top, bottom = ends
    lines = "".join(
        f'<line class="axis" x1="{LEFT - 4}" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>' for at in (y, y + BAR)
    )
    return (
        f'{lines}<text x="{LEFT - 10}" y="{y + 8:.1f}" text-anchor="end">{top}</text>'
        f'<text x="{LEFT - 10}" y="{y + BAR:.1f}" text-anchor="end">{bottom}</text>'
        f'<text x="{LEFT - 10}" y="{y + BAR / 2 + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _cell(x: float, y: float, width: float, bar: float, share: float, kind: str) -> str:
    return _bar("gone", x, y, width, bar) + _bar(f"cell {kind}", x, y + bar * (1 - share), width, bar * share)


def _matrix_names(y: float) -> str:
    row = BAR / len(MATRICES)
    return "".join(
        f'<text class="small" x="{LEFT - 10}" y="{y + (n + 0.5) * row + 4:.1f}" text-anchor="end">{short(name)}</text>'
        for n, name in enumerate(MATRICES)
    )


def _products(x: float, y: float, width: float, row: Mapping[str, Any]) -> str:
    """One cell per matrix that is left, coloured where it became a product of two."""
    height, cells = BAR / len(MATRICES), ""
    for n, name in enumerate(MATRICES):
        part = "attention" if name in ATTENTION_MATRICES else "ffn"
        if row[part]["kept"]:
            kind = f"cell {part}" if name in row.get("ranks", {}) else "gone"
            cells += _bar(kind, x, y + n * height, width, height - 2)
    return cells


def _bar(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2"/>'


def _stack(x: float, y: float, width: float, row: Mapping[str, Any], scale: float) -> str:
    cells, bottom = "", y + BAR
    for part in ("ffn", "attention"):
        height = BAR * (row[part]["sensitivity"] or 0.0) / scale
        bottom -= height
        cells += _bar(f"cell {part}", x, bottom, width, height)
    return cells


def _full(row: Mapping[str, Any], part: str) -> int:
    return int(row[part]["kv_groups" if part == "attention" else "channels"][1])


def _sensitivity(row: Mapping[str, Any]) -> float:
    return sum(row[part]["sensitivity"] or 0.0 for part in ("attention", "ffn"))


def _title(row: Mapping[str, Any]) -> str:
    attention, ffn = row["attention"], row["ffn"]
    ranks = ", ".join(f"{short(name)} {rank:,}" for name, rank in row.get("ranks", {}).items())
    ranks = f"of low rank: {ranks}\n" if ranks else ""
    return (
        f"block {row['block']}\nattention: {attention['kv_groups'][0]} of {attention['kv_groups'][1]} KV groups, "
        f"{attention['query_heads'][0]} of {attention['query_heads'][1]} query heads ({attention['kept']:.0%})\n"
        f"FFN: {ffn['channels'][0]:,} of {ffn['channels'][1]:,} channels ({ffn['kept']:.0%})\n{ranks}{row['reason']}"
    )
