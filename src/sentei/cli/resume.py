"""`sentei resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sentei.cli.app import Format, FormatOption, Trust, refuse_code
from sentei.cli.run import REMOTE_CODE, show


def resume_command(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="The --out of `sentei run`.")],
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="Go on there: auto, cpu, cuda, cuda:N or mps.")
    ] = None,
    trust_remote_code: Trust = False,
    format: FormatOption = Format.text,
) -> None:
    """Go on with a run that was stopped; stages that are done are kept."""
    from sentei.progress import TerminalProgress
    from sentei.recipe import Recipe
    from sentei.run import resume

    path = run_directory / "recipe.yaml"
    if path.is_file():
        refuse_code(trust_remote_code, Recipe.load(path).trust_remote_code, f"{path}: {REMOTE_CODE}")
    show(run_directory, lambda: resume(run_directory, device=device, progress=TerminalProgress()), format)
