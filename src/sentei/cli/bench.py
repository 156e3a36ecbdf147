"""`sentei bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sentei.cli.app import Format, FormatOption, print_json, print_table


def bench_command(
    exports: Annotated[
        list[Path],
        typer.Argument(metavar="EXPORT...", help="What `sentei export` wrote; ratios compare with the first."),
    ],
    engine: Annotated[str | None, typer.Option(help="Only this one; default: all installed ones.")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    new: Annotated[int, typer.Option(min=2, help="Tokens generated after it.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; in each, every export has a turn.")] = 5,
    format: FormatOption = Format.text,
) -> None:
    """Time exports in their engines: prefill, decoding, first token, memory; the exports in turns."""
    from sentei.progress import TerminalProgress
    from sentei.ship.bench import bench

    found = bench(exports, engine=engine, prompt=prompt, new=new, rounds=rounds, progress=TerminalProgress())
    if format is Format.json:
        print_json(found)
        return
    print_table(_table(found["runs"]))
    typer.echo(
        "batch 1, prompt {prompt}, {new} new tokens, {rounds} rounds, {threads} threads".format(**found["protocol"])
    )


def _table(runs: list[dict[str, Any]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("engine")
    table.add_column("export", overflow="fold")
    for name in ("dtype", "MB", "prefill, tokens/s", "decode, tokens/s", "first token, ms", "peak memory, MB"):
        table.add_column(name, justify="right")
    for run in runs:
        table.add_row(
            f"{run['engine']} {run['version']}",
            run["export"],
            run["dtype"],
            f"{run['bytes'] / 1e6:.1f}",
            _rate(run, "prefill"),
            _rate(run, "decode"),
            f"{run['first_token_s'] * 1e3:.1f}",
            f"{run['peak_rss_bytes'] / 1e6:.0f}",
        )
    return table


def _rate(run: dict[str, Any], part: str) -> str:
    ratio = run[f"{part}_ratio"]
    between = f"[dim]\\[{ratio['low']:.2f} – {ratio['high']:.2f}][/dim]"
    return f"{run[f'{part}_tokens_per_s']:,.0f}  ×{ratio['median']:.2f} {between}"
