"""`sentei eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from sentei.cli.app import (
    DeviceOption,
    Dtype,
    DtypeOption,
    Format,
    FormatOption,
    Memory,
    Trust,
    print_json,
    print_table,
)


def eval_command(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="One model or several; the first is the reference.")
    ],
    text: Annotated[
        list[str] | None, typer.Option(help="Texts for perplexity: files, hf:name, demo.", metavar="F...")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="Multiple choice: JSONL files, harness task names, demo.", metavar="F...")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows of each task.")] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens per window of text.")] = 1024,
    windows: Annotated[int | None, typer.Option(min=1, help="At most this many windows of each text.")] = None,
    speed: Annotated[
        bool | None,
        typer.Option(help="Time prefill and decoding, the models in turns.", show_default="yes, without --memory"),
    ] = None,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    memory: Memory = None,
    trust_remote_code: Trust = False,
    format: FormatOption = Format.text,
) -> None:
    """Measure perplexity, task accuracy, speed and memory; several models are compared pairwise with intervals."""
    from sentei.memory import parse_bytes
    from sentei.progress import TerminalProgress
    from sentei.prove.evaluate import evaluate

    evidence = evaluate(
        models,
        texts=text or [],
        tasks=tasks or [],
        window=window,
        windows=windows,
        limit=limit,
        with_speed=memory is None if speed is None else speed,
        dtype=dtype.value,
        device=device,
        trust_remote_code=trust_remote_code,
        memory=None if memory is None else parse_bytes(memory),
        progress=TerminalProgress(),
    )
    if format is Format.json:
        print_json(evidence)
        return
    from sentei.report.figures import collect
    from sentei.report.table import figures_table

    names = [model["model"] for model in evidence.get("models", [evidence])]
    print_table(figures_table(collect(evidence), names))
