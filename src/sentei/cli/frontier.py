"""`sentei frontier`."""

from __future__ import annotations

from typing import Annotated

import typer

from sentei.cli.app import (
    DeviceOption,
    Dtype,
    DtypeOption,
    Format,
    FormatOption,
    Model,
    Out,
    Overwrite,
    Trust,
    hold,
    print_json,
)
from sentei.cli.fit import EngineOption, Heal, Kinds, Objective, RowLength, TaskOption, read_settings, refuse_metric


def frontier_command(
    model: Model,
    task: TaskOption,
    out: Out,
    shares: Annotated[
        list[float] | None, typer.Option("--share", help="Share to remove; may repeat. Default: 0.1 to 0.7.")
    ] = None,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Predict seconds on this machine.")] = True,
    objective: Objective = "params",
    target_engine: EngineOption = "transformers",
    kinds: Kinds = "",
    length: RowLength = 512,
    heal: Heal = 24_000,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    format: FormatOption = Format.text,
) -> None:
    """Measure the whole curve of size, quality and latency; each point is a plan for `sentei cut`."""
    from sentei.data.task_file import TaskFile
    from sentei.files import write_json, write_text
    from sentei.fit.begun import claim, settled_dtype
    from sentei.fit.frontier import SHARES, frontier
    from sentei.models.load import load
    from sentei.progress import TerminalProgress
    from sentei.report.frontier import render, summary

    wanted, settings = TaskFile.load(task), read_settings(objective, target_engine, kinds, length, heal)
    refuse_metric(trust_remote_code, task, wanted)
    hold(out, model, task, wanted.data, overwrite=overwrite, check=claim)
    progress = TerminalProgress()
    kind = settled_dtype(out, dtype.value, device, progress.say, overwrite=overwrite)
    loaded = load(model, dtype=kind, device=device, trust_remote_code=trust_remote_code)
    report = frontier(
        loaded,
        wanted,
        out,
        shares=shares or SHARES,
        settings=settings,
        latency=latency,
        overwrite=overwrite,
        progress=progress,
    )
    options = [
        "--dtype",
        str(loaded.model.dtype).removeprefix("torch."),
        *(["--trust-remote-code"] if trust_remote_code else []),
    ]
    report["given"] = {"model": model, "task": str(task), "out": str(out), "options": options}
    write_json(out / "frontier.json", report)
    write_text(out / "frontier.html", render(report))
    if format is Format.json:
        print_json(report)
    else:
        typer.echo(f"{summary(report)}\n{out / 'frontier.html'} shows it; with the commands that make each model again")
