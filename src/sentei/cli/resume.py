"""`sentei resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sentei.cli.app import Format, FormatOption
from sentei.cli.run import show


def resume_command(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="The --out of `sentei run`.")],
    format: FormatOption = Format.text,
) -> None:
    """Go on with a run that was stopped; stages that are done are kept."""
    from sentei.progress import TerminalProgress
    from sentei.run import resume

    show(run_directory, lambda: resume(run_directory, progress=TerminalProgress()), format)
