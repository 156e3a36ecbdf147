"""What a run exported, for its page: where each file runs, what was proven there, and how to serve it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sentei.report.removed import table
from sentei.ship.base import worst_delta

_HEADS = ("file", "for", "weights", "MB", "dense, MB", "padding", "parity")


def section(exports: Sequence[Mapping[str, Any]]) -> str:
    """The section of the page; nothing where nothing was exported."""
    if not exports:
        return ""
    commands = "".join(
        f"<dt>{escape(engine)}</dt><dd><code>{escape(line.format(path=export['file']))}</code></dd>"
        for export in exports
        for engine, line in export["serve"].items()
    )
    hint = "Parity: log-probabilities of every word at every position, in the engine and in torch, on real text."
    return (
        f'<section><h2>Where it runs</h2><p class="hint">{hint}</p>{table(_HEADS, map(_row, exports), notes=True)}'
        f"<dl>{commands}</dl></section>"
    )


def _row(export: Mapping[str, Any]) -> list[str]:
    speed, padding = export["speed"], export["padding_bytes"]
    return [
        export["file"],
        ", ".join(export["engines"]),
        export["dtype"],
        f"{export['bytes'] / 1e6:.1f}",
        f"{speed['dense_bytes'] / 1e6:.1f}" if speed else "–",
        f"{padding / export['bytes']:.1%}" if padding else "none",
        "; ".join([*map(_proof, export["parity"].items()), *_unproven(export)]),
    ]


def _proof(found: tuple[str, Mapping[str, Any]]) -> str:
    engine, values = found
    outcome = "passed" if values["passed"] else "FAILED"
    return f"{engine} {values['version']}: {outcome}, max |Δ log p| {worst_delta(values)}"


def _unproven(export: Mapping[str, Any]) -> list[str]:
    """Engines where nothing was compared; export.json says why."""
    return [f"not run: {', '.join(export['not_run'])}"] if export["not_run"] else []
