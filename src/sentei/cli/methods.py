"""`sentei methods`."""

from __future__ import annotations

from dataclasses import asdict

from sentei.cli.app import Format, FormatOption, print_json, print_table


def methods_command(format: FormatOption = Format.text) -> None:
    """List the methods: each is a score, an allocation and a compensation."""
    from sentei.prune.methods import METHODS

    if format is Format.json:
        print_json({"schema_version": 1, "methods": [asdict(method) for method in METHODS.values()]})
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("method", "score · allocation · compensation", "what it does"):
        table.add_column(name, overflow="fold")
    for m in METHODS.values():
        table.add_row(m.name, f"{m.score} · {m.allocation} · {m.compensation}", f"{m.line} [dim]({m.paper})[/dim]")
    print_table(table)
