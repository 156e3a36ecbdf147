"""`sentei parity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sentei.cli.app import DeviceOption, Field, Format, FormatOption, Model, print_json


def parity_command(
    model: Model,
    export: Annotated[Path, typer.Argument(metavar="EXPORT", help="What `sentei export` wrote from it.")],
    engine: Annotated[
        str | None, typer.Option(help="Default: the first installed engine that reads the export.")
    ] = None,
    text: Annotated[str, typer.Option(help="Real text: a file, hf:name, demo.", metavar="F")] = "demo",
    field: Field = None,
    tokens: Annotated[int, typer.Option(min=2, help="Compare at so many positions.")] = 2000,
    lengths: Annotated[list[int] | None, typer.Option(min=2, help="Tokens of the windows; 16 128 512.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest |Δ log p|; default: by the engine's precision, 1e-3 in fp32.")
    ] = None,
    device: DeviceOption = "cpu",
    format: FormatOption = Format.text,
) -> None:
    """Run an export in its engine: does it give the model's log-probabilities, for all words, with the cache too?"""
    from sentei.data.text import read_texts
    from sentei.errors import QualityError
    from sentei.progress import TerminalProgress
    from sentei.ship.export import record
    from sentei.ship.parity import LENGTHS, parity

    found = parity(
        model,
        export,
        engine=engine,
        texts=None if text == "demo" else read_texts(text, field=field),  # the demo's test half
        source=text,
        lengths=lengths or LENGTHS,
        tokens=tokens,
        tolerance=tolerance,
        device=device,
        progress=TerminalProgress(),
    )
    record(export, found)
    if format is Format.json:
        print_json({"schema_version": 1, **found.facts()})
    else:
        for name, part in (("prefill", found.prefill), ("decode, token by token with the cache", found.decode)):
            worst = f"text {part.worst['text']}, token {part.worst['token_index']}, word {part.worst['token']}"
            typer.echo(
                f"{name}: {part.positions:,} positions, max |Δ log p| {part.delta:.1e} at {worst}, "
                f"{part.flips} likeliest words differ ({part.ties} ties)"
            )
        typer.echo(found.verdict())
    if not found.passed:
        raise QualityError(f"{export} does not give the log-probabilities of {model} in {found.engine}")
