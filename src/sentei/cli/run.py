"""`sentei run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sentei.cli.app import Format, FormatOption, Out, Trust, print_json, print_table, refuse_code

REMOTE_CODE = "trust_remote_code: true runs code that comes with the model"


def run_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, see docs/cli.md.")],
    out: Out,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, as in budget.sparsity=0.3.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="M", help="Scale tokens, windows and rows down to about so long a run."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps; default: recipe's."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Keep within this much, like 4GB; default: recipe's, or all."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Use a run directory again; what did not change is kept.")
    ] = False,
    trust_remote_code: Trust = False,
    format: FormatOption = Format.text,
) -> None:
    """Run a recipe: measure, plan, cut, prove, report. Killed at any moment, `sentei resume` goes on."""
    from sentei.progress import TerminalProgress
    from sentei.recipe import Recipe
    from sentei.run import run

    given = {"minutes": minutes, "device": device, "memory": memory}
    wanted = Recipe.load(
        recipe, [*(set_ or []), *(f"{key}={value}" for key, value in given.items() if value is not None)]
    )
    refuse_code(trust_remote_code, wanted.trust_remote_code, f"{recipe}: {REMOTE_CODE}")
    show(out, lambda: run(wanted, out, overwrite=overwrite, progress=TerminalProgress()), format)


def show(out: Path, work: Callable[[], dict[str, Any]], format: Format) -> None:
    """Runs, and prints the figures and where everything is.

    Raises:
        QualityError: the training diverged, or made the model worse and the recipe says `strict`; the run is complete.
    """
    from sentei.errors import QualityError
    from sentei.report.formats import read_report

    work()
    report = read_report(out / "report.json", ("run",))[1]
    if format is Format.json:
        print_json(report)
    else:
        show_report(out, report)
    recovery = report.get("recovery")
    if recovery and recovery["tune"]["stopped"] == "diverged":
        raise QualityError(recovery["tune"]["note"])
    accel = report.get("accel")
    if accel and accel["stopped"] == "diverged":
        raise QualityError(accel["note"])
    strict = report["recipe"].get("recover", {}).get("strict")
    if recovery and recovery["yardstick"]["kept"] == "pruned" and strict:
        why = recovery["yardstick"]["reason"]
        raise QualityError(f"recovery made the model worse ({why}); the cut one is kept; recover.strict refuses it")


def show_report(out: Path, report: dict[str, Any]) -> None:
    """The table dense | pruned | recovered, the summary, and the paths."""
    from sentei.report.html import summary
    from sentei.report.table import report_table

    print_table(report_table(report))
    typer.echo(f"{summary(report)}\n")
    paths = {"report": "report.html", "figures": "report.json", "model": "model"}
    if "recovery" in report:
        paths["data"] = "selection.html"
    if "accel" in report:
        paths["every stage"] = "family"
    paths |= {export["route"]: export["file"] for export in report.get("exports", [])}
    for name, path in paths.items():
        typer.echo(f"{name:13}{out / path}")
