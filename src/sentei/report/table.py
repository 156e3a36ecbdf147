"""Figures as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from sentei.report.figures import Change, Figure, mean_accuracy


def figures_table(figures: Sequence[Figure], models: Sequence[str]) -> Table:
    """One row per figure, one column per model; with two models also the change, with its interval."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in models:
        table.add_column(name, justify="right")
    pair = len(models) == 2
    if pair:
        table.add_column("change", justify="right")
    shown = ""
    for figure in figures:
        if shown and figure.group != shown:
            table.add_section()
        shown = figure.group
        table.add_row(_label(figure), *_cells(figure, pair))
        if figure.note:
            table.add_row(f"[dim]  {escape(figure.note)}[/dim]")
        if figure.group == "tasks" and figure is [f for f in figures if f.group == "tasks"][-1]:
            mean = mean_accuracy(figures)
            if mean:
                table.add_row(_label(mean), *_cells(mean, pair), style="bold")
    return table


def report_table(report: Mapping[str, Any]) -> Table:
    """The table dense | pruned, and recovered where there was recovery, of a report."""
    return figures_table([Figure.from_json(row) for row in report["figures"]], list(report["models"]))


def _cells(figure: Figure, pair: bool) -> list[str]:
    cells = [f"{figure.show(v)}{_between(figure, i)}" for i, v in enumerate(figure.values)]
    return [*cells, _change(figure.change)] if pair else cells


def _change(change: Change | None) -> str:
    if change is None:
        return "–"
    return f"{change} [dim]\\[{change.between}][/dim]" if change.interval else str(change)


def _label(figure: Figure) -> str:
    prefix = {"perplexity": "perplexity ", "tasks": "", "size": "", "speed": "", "memory": "memory: "}[figure.group]
    suffix = ", tokens/s" if figure.unit == "tokens/s" else ""
    return f"{prefix}{figure.name}{suffix}" + (f" [dim]({figure.samples})[/dim]" if figure.samples else "")


def _between(figure: Figure, index: int) -> str:
    between = figure.intervals[index]
    return f" [dim]\\[{figure.show(between[0])} – {figure.show(between[1])}][/dim]" if between else ""
