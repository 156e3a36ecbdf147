"""What was removed of each block: the picture with its legend, and the same as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from sentei.report import picture
from sentei.report.page import drawn, scrolled
from sentei.report.picture import short


def blocks(rows: Sequence[Mapping[str, Any]]) -> str:
    """Legend, picture and table of `sentei.report.build.blocks`."""
    colours = [("attention", "attention"), ("ffn", "FFN"), ("gone", "removed")]
    legend = "".join(f'<span><i style="background:var(--{colour})"></i>{text}</span>' for colour, text in colours)
    low_rank = any(row.get("ranks") for row in rows)
    if low_rank:
        legend += "<span>lowest row: matrices that became a product of two (low rank)</span>"
    head = ["block", "KV groups", "query heads", "FFN channels", *(["ranks"] if low_rank else [])]
    cells = [_cells(row, low_rank) for row in rows]
    return (
        f'<div class="legend">{legend}</div>{drawn(picture.blocks(rows))}'
        "<details><summary>Every block in a table</summary>"
        f"{table([*head, 'params kept', 'in/out cosine', 'why'], cells, notes=True)}</details>"
    )


def _cells(row: Mapping[str, Any], low_rank: bool) -> list[str]:
    ranks = ", ".join(f"{short(name)} {rank:,}" for name, rank in row.get("ranks", {}).items())
    return [
        str(row["block"]),
        _of(row["attention"]["kv_groups"]),
        _of(row["attention"]["query_heads"]),
        _of(row["ffn"]["channels"]),
        *([ranks or "–"] if low_rank else []),
        f"{row['params'][0] / row['params'][1]:.0%}" if row["params"][1] else "–",
        "–" if row["cosine"] is None else f"{row['cosine']:.3f}",
        row["reason"],
    ]


def _of(pair: Sequence[int]) -> str:
    return f"{pair[0]:,} / {pair[1]:,}"


def table(head: Iterable[str], rows: Iterable[list[str]], *, notes: bool = False) -> str:
    """Texts as a table; `notes`: the last column is prose."""
    body = ""
    for row in rows:
        cells = [f"<td>{escape(cell)}</td>" for cell in row]
        if notes:
            cells[-1] = f'<td class="note">{escape(row[-1])}</td>'
        body += f"<tr>{''.join(cells)}</tr>"
    return scrolled(map(escape, head), body)
