"""`sentei watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sentei.cli.app import DeviceOption, Format, FormatOption, Out, Overwrite, hold, print_json


def watch_command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The --out of `sentei run` with recovery, or of `sentei select`.")
    ],
    log: Annotated[Path, typer.Option(help="Requests: plain JSONL, LiteLLM's payloads, or OpenTelemetry spans.")],
    out: Out,
    labels: Annotated[
        Path | None, typer.Option(help="What users said of answers: lines with id and label, from 0 (bad) to 1 (good).")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=100, help="Judge the last so many requests; default: all of the log.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse a log with a bad line; by default such lines are skipped and counted."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn and permuted.")] = 0,
    device: DeviceOption = "auto",
    overwrite: Overwrite = False,
    format: FormatOption = Format.text,
) -> None:
    """Compare requests in use with the data of a run: what moved, and what to do; exit 3 where that is to act."""
    from sentei.errors import QualityError
    from sentei.progress import TerminalProgress
    from sentei.watch.result import acts
    from sentei.watch.watch import watch

    hold(out, run, log, labels, overwrite=overwrite)
    result = watch(
        run, log, out, labels=labels, window=window, strict=strict, seed=seed, device=device, overwrite=overwrite,
        progress=TerminalProgress(),
    )  # fmt: skip
    if format is Format.json:
        print_json(result)
    else:
        typer.echo(
            "\n".join(
                [*result["arithmetic"], f"recommended: {result['recommendation']}; {out / 'watch.html'} shows it"]
            )
        )
    if acts(result):
        raise QualityError(f"{result['recommendation']} is recommended; {out / 'watch.html'} says why")
