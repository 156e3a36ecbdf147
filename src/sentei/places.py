"""Places for outputs, refused before any work where nothing can be written or what is there must not be replaced."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from sentei.errors import InputError
from sentei.files import mended
from sentei.marks import replaceable


def check_output(
    path: Path,
    *,
    inputs: Iterable[str | Path | None] = (),
    overwrite: bool = False,
    ours: Callable[[Path], object] = replaceable,
) -> Path:
    """Refuses a bad place for an output, before any work is done.

    Args:
        path: file or directory that will be written.
        inputs: what is read: paths, or names of models and data, which are no paths and count for nothing.
        overwrite: what sentei wrote at `path` may be replaced.
        ours: raises an InputError for what must not be replaced; default: a directory that sentei did not write.

    Raises:
        InputError: `path` is the working directory, the home directory, an input, or above one of them, `overwrite`
            or not; it is taken; or it cannot be written.
    """
    path = Path(path)
    with mended(path):
        refuse_place(path, inputs)
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            if not overwrite:
                raise InputError(f"{path} exists and is not empty; choose another --out, or pass --overwrite")
            _refuse_other(path, ours)
        elif path.exists() and not path.is_dir():
            raise InputError(f"{path} is neither a file nor a directory; choose another --out")
        probe(path)
    return path


def _refuse_other(path: Path, ours: Callable[[Path], object]) -> None:
    try:
        ours(path)
    except InputError as error:
        if ours is replaceable:
            raise
        raise InputError(
            f"{path} is no earlier result of this kind, and --overwrite replaces nothing else ({error})"
        ) from error


def refuse_place(path: Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuses a place that holds what must not be replaced, through links as well. Raises as `check_output`."""
    if not path.exists():
        return
    held = [("the working directory", Path.cwd()), ("the home directory", Path.home())]
    held += [(f"the input {given}", Path(given).expanduser()) for given in inputs if given]
    for what, place in held:
        place = place.resolve()
        for above in (place, *place.parents) if place.exists() else ():
            if os.path.samefile(path, above):
                relation = "is" if above == place else "holds"
                raise InputError(f"{path} {relation} {what}, which is never replaced; choose another --out")


def probe(path: Path) -> None:
    """Makes and removes a directory where `path` will be. Raises as `check_output`."""
    parent = path.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{path} cannot be made: {parent} is a file; choose another --out")
    with mended(path):
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.resolve().name}.", dir=parent))
