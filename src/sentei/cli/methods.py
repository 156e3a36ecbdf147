"""`sentei methods`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sentei.cli.app import Format, FormatOption, print_json, print_table


def methods_command(format: FormatOption = Format.text) -> None:
    """List what pruning methods, strategies of selection and adapters there are."""
    from sentei.prune.methods import METHODS
    from sentei.recover.select.strategies import STRATEGIES
    from sentei.recover.tune.adapters import ADAPTERS

    strategies = {name: strategy.explain for name, strategy in STRATEGIES.items()}
    adapters = {name: adapter.line for name, adapter in ADAPTERS.items()}
    if format is Format.json:
        listed = {
            "methods": [asdict(method) for method in METHODS.values()],
            "strategies": [{"name": name, "line": line} for name, line in strategies.items()],
            "adapters": [{"name": name, "line": line} for name, line in adapters.items()],
        }
        print_json({"schema_version": 1, **listed})
        return
    methods = (
        (
            m.name,
            f"{m.score} · {m.allocation} · {m.compensation}",
            m.protect,
            m.weigh,
            f"{m.line} [dim]({m.paper})[/dim]",
        )
        for m in METHODS.values()
    )
    head = ("method", "score · allocation · compensation", "protects", "compares parts by", "what it does")
    print_table(_table(head, methods))
    print_table(_table(("strategy of `select`", "which rows it takes"), strategies.items()))
    print_table(_table(("adapter of `tune`", "what it trains"), adapters.items()))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
