"""`sentei fit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    refuse_code,
)

if TYPE_CHECKING:
    from sentei.data.task_file import TaskFile
    from sentei.fit.settings import Settings

TaskOption = Annotated[
    Path, typer.Option("--task", metavar="FILE", help="YAML: data, metric, splits; see docs/tasks.md.")
]
EngineOption = Annotated[
    str, typer.Option("--target-engine", help="Whose legal sizes hold: transformers, llama.cpp, vllm, …")
]
Objective = Annotated[
    str, typer.Option(help="What shall be small: params, flops, bytes (with the KV cache), prefill or decode time.")
]
Kinds = Annotated[str, typer.Option(help="structural, low-rank, or both with a comma; default: what the engine holds.")]
Heal = Annotated[int, typer.Option(min=0, help="Train every cut model on so many tokens of the calibration rows.")]
RowLength = Annotated[int, typer.Option("--length", min=2, help="Tokens of a calibration row at most.")]


def read_settings(objective: str, target_engine: str, kinds: str, length: int, heal: int) -> Settings:
    """The settings that these options name."""
    from sentei.fit.settings import Settings, search_budget, search_kinds

    budget, phase = search_budget(objective, target_engine)
    return Settings(budget, search_kinds(kinds, budget), length, heal, phase)


def refuse_metric(trusted: bool, path: Path, task: TaskFile) -> None:
    """A task file names a Python function as its metric: see `refuse_code`."""
    from sentei.data.task_file import PYTHON

    refuse_code(trusted, task.metric.startswith(PYTHON), f"{path}: the metric {task.metric} runs that function's file")


def fit_command(
    model: Model,
    task: TaskOption,
    out: Out,
    tolerance: Annotated[float, typer.Option(help="Loss that is allowed: 0.01 is 1 % of the metric.")] = 0.01,
    minutes: Annotated[float | None, typer.Option(help="For everything; default: until the search ends.")] = None,
    search: Annotated[str, typer.Option(help="evolve (ours), path, or LLM-Sieve's genetic, uniform.")] = "evolve",
    strict: Annotated[bool, typer.Option("--strict", help="The 95 % interval must be within the tolerance.")] = False,
    objective: Objective = "params",
    target_engine: EngineOption = "transformers",
    kinds: Kinds = "",
    length: RowLength = 512,
    heal: Heal = 24_000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that evaluate candidates; each loads the model.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    format: FormatOption = Format.text,
) -> None:
    """Find the smallest model that still does a task. An interrupted run goes on when it is started again."""
    from sentei.data.task_file import TaskFile
    from sentei.errors import QualityError
    from sentei.files import read_json, write_text
    from sentei.fit.begun import claim, settled_dtype
    from sentei.fit.fit import fit
    from sentei.models.load import load
    from sentei.progress import TerminalProgress
    from sentei.report.fit import render, summary

    wanted, settings = TaskFile.load(task), read_settings(objective, target_engine, kinds, length, heal)
    refuse_metric(trust_remote_code, task, wanted)
    hold(out, model, task, wanted.data, overwrite=overwrite, check=claim)
    progress = TerminalProgress()
    kind = settled_dtype(out, dtype.value, device, progress.say, overwrite=overwrite)
    loaded = load(model, dtype=kind, device=device, trust_remote_code=trust_remote_code)
    try:
        report = fit(
            loaded,
            wanted,
            out,
            tolerance=tolerance,
            minutes=minutes,
            search=search,
            strict=strict,
            settings=settings,
            workers=workers,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        ).report
    except QualityError:
        write_text(out / "report.html", render(read_json(out / "report.json")))
        raise
    write_text(out / "report.html", render(report))
    if format is Format.json:
        print_json(report)
    else:
        typer.echo(f"{summary(report)}\n{out / 'report.html'} shows it; {out / 'model'} is the model")
