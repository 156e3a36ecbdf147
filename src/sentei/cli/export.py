"""`sentei export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sentei.cli.app import Field, Format, FormatOption, Memory, Model, Overwrite, print_json, print_table
from sentei.errors import for_shell


def export_command(
    model: Model,
    to: Annotated[str | None, typer.Option(help="gguf, nemotron-nas, uniform, hf, dense-fold, onnx, openvino.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the export goes.", metavar="PATH")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Say which engines this model reaches by which route.")] = False,
    dtype: Annotated[
        str, typer.Option(help="Of the weights: auto (as declared), F32, F16, BF16, or what the route knows.")
    ] = "auto",
    option: Annotated[list[str] | None, typer.Option(help="What only one route knows.", metavar="NAME=VALUE")] = None,
    parity: Annotated[
        bool | None,
        typer.Option(help="Check it at once in an installed engine.", show_default="yes, without --memory"),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Text for that check; default: demo.", metavar="F")] = None,
    field: Field = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    format: FormatOption = Format.text,
) -> None:
    """Write a model for other engines, and prove that it gives the same log-probabilities there."""
    from sentei.errors import InputError
    from sentei.ship.export import export, listing

    if list_:
        rows = listing(model)
        if format is Format.json:
            print_json({"schema_version": 1, "routes": rows})
        else:
            _show_list(rows)
        return
    if to is None or out is None:
        raise InputError("sentei export needs --to ROUTE and --out PATH; --list says which routes this model can take")
    from sentei.data.text import read_texts
    from sentei.memory import parse_bytes
    from sentei.progress import TerminalProgress

    texts = None if text is None else read_texts(text, field=field)
    facts = export(
        model,
        to,
        out,
        dtype=dtype,
        options=dict(_pair(given) for given in option or []),
        check=parity,
        texts=texts,
        memory=None if memory is None else parse_bytes(memory),
        overwrite=overwrite,
        progress=TerminalProgress(),
    )
    if format is Format.json:
        print_json(facts)
    else:
        _show(model, out, facts)


def _pair(text: str) -> tuple[str, str]:
    from sentei.errors import InputError

    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--option {text!r} has no value; expected NAME=VALUE")
    return name, value


def _show(model: str, out: Path, facts: dict[str, Any]) -> None:
    padding = facts["padding_bytes"]
    cost = f", {padding:,} of them padding ({padding / facts['bytes']:.1%})" if padding else ""
    typer.echo(f"{out}: {facts['route']}, {facts['dtype']}, {facts['bytes']:,} bytes{cost}")
    for note in facts.get("notes", []):
        typer.echo(f"note: {note}")
    for name, why in facts["unreachable"].items():
        typer.echo(f"{name} cannot read it: {why}")
    for name, values in facts["parity"].items():
        delta = max(values["prefill"]["delta"], values["decode"]["delta"])
        typer.echo(
            f"{name} {values['version']}: parity passed, max |Δ log p| {delta:.1e} over "
            f"{values['prefill']['positions']:,} tokens; more with: sentei parity {for_shell(model)} {for_shell(out)}"
        )
    for name, why in facts["not_run"].items():
        typer.echo(f"{name}: not run; {why}".replace("MODEL EXPORT", f"{for_shell(model)} {for_shell(out)}"))


def _show_list(rows: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("route", "reaches", "not"):
        table.add_column(name, overflow="fold")
    for row in rows:
        engines = ", ".join(f"{name} (installed)" if here else name for name, here in row["engines"].items())
        reasons = [f"{name}: {why}" for name, why in row["unreachable"].items()]
        table.add_row(row["route"], engines or "–", row["refused"] or "; ".join(reasons))
    print_table(table)
