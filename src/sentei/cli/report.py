"""`sentei report`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sentei.cli.app import Format, FormatOption, print_json
from sentei.cli.run import show_report


def report_command(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="The --out of `sentei run`, `fit` or `frontier`.")],
    format: FormatOption = Format.text,
) -> None:
    """Show a finished run, fit or frontier again, and make its page anew."""
    from sentei.files import write_text
    from sentei.report import fit, frontier
    from sentei.report.formats import read_report
    from sentei.report.html import render

    kind, report = read_report(_find(directory))
    page = directory / ("frontier.html" if kind == "frontier" else "report.html")
    write_text(page, {"run": render, "fit": fit.render, "frontier": frontier.render}[kind](report))
    if format is Format.json:
        print_json(report)
    elif kind == "run":
        show_report(directory, report)
    else:
        typer.echo(f"{(fit if kind == 'fit' else frontier).summary(report)}\n{page} shows it")


def _find(directory: Path) -> Path:
    """report.json or frontier.json in a directory."""
    from sentei.errors import InputError, for_shell

    for name in ("report.json", "frontier.json"):
        if os.path.lexists(directory / name):
            return directory / name
    begun = os.path.lexists(directory / "recipe.yaml")
    hint = f"`sentei resume {for_shell(directory)}` finishes the run" if begun else "it holds no run, fit or frontier"
    raise InputError(f"{directory} has neither report.json nor frontier.json; {hint}")
