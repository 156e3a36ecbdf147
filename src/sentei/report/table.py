"""Figures as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sentei.report.figures import Change, Figure, average, show


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
        cells = [f"{figure.show(v)}{_between(figure, i)}" for i, v in enumerate(figure.values)]
        if pair:
            change = figure.change
            cells.append(
                "–"
                if change is None
                else f"{change} [dim]\\[{change.between}][/dim]"
                if change.interval
                else str(change)
            )
        table.add_row(_label(figure), *cells)
        if figure.group == "tasks" and figure is [f for f in figures if f.group == "tasks"][-1]:
            means = average(figures)
            if means:
                change_of = [str(Change(means[1] - means[0], None, "points"))] if pair else []
                table.add_row("mean accuracy", *(show(mean, "accuracy") for mean in means), *change_of, style="bold")
    return table


def report_table(report: Mapping[str, Any]) -> Table:
    """The table dense | pruned, and recovered where there was recovery, of a report."""
    return figures_table([Figure.from_json(row) for row in report["figures"]], list(report["models"]))


def _label(figure: Figure) -> str:
    prefix = {"perplexity": "perplexity ", "tasks": "", "size": "", "speed": "", "memory": "memory: "}[figure.group]
    suffix = ", tokens/s" if figure.unit == "tokens/s" else ""
    return f"{prefix}{figure.name}{suffix}" + (f" [dim]({figure.samples})[/dim]" if figure.samples else "")


def _between(figure: Figure, index: int) -> str:
    between = figure.intervals[index]
    return f" [dim]\\[{figure.show(between[0])} – {figure.show(between[1])}][/dim]" if between else ""
