"""`sentei report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sentei.cli.app import Format, FormatOption, print_json
from sentei.cli.run import show_report


def report_command(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="The --out of `sentei run`.")],
    format: FormatOption = Format.text,
) -> None:
    """Show a finished run again, and make its report.html anew from report.json."""
    from sentei.errors import InputError
    from sentei.files import read_json, write_text
    from sentei.report.html import render

    path = run_directory / "report.json"
    if not path.is_file():
        begun = (run_directory / "recipe.yaml").is_file()
        hint = f"`sentei resume {run_directory}` finishes the run" if begun else "it holds no run"
        raise InputError(f"{run_directory} has no report.json; {hint}")
    report = read_json(path)
    if format is Format.json:
        print_json(report)
        return
    if report.get("kind") == "fit":
        from sentei.report import fit

        write_text(run_directory / "report.html", fit.render(report))
        typer.echo(fit.summary(report))
        return
    write_text(run_directory / "report.html", render(report))
    show_report(run_directory, report)
