"""Temporary directories that do not outlive a killed process for good."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def temporary_dir(purpose: str) -> Iterator[Path]:
    """A directory among the system's temporary ones; those of dead processes for the same purpose are swept."""
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"sentei-{purpose}-*"):
        with contextlib.suppress(OSError, Timeout):  # of a living process, or of another user
            if (left / "lock").is_file():
                with FileLock(left / "lock", timeout=0):
                    shutil.rmtree(left)
    path = Path(tempfile.mkdtemp(prefix=f".sentei-{purpose}-"))
    with FileLock(path / "lock", timeout=0):
        shown = path.with_name(path.name.removeprefix("."))  # seen by others once it is locked
        os.rename(path, shown)
        try:
            yield shown
        finally:
            shutil.rmtree(shown)
