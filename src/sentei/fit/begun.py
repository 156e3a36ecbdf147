"""What a run of `fit` or `frontier` was begun in, so that it goes on in the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typing_extensions import NotRequired, TypedDict

from sentei.machine import describe
from sentei.schema import EXACT, read

RUN = "run.json"


class Begun(TypedDict):
    """What is read of `run.json`."""

    __pydantic_config__ = EXACT  # type: ignore[misc]

    identity: str
    dtype: NotRequired[str]


def begun(out: Path) -> Begun | None:
    """The record of a run; None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    path = out / RUN
    return read(path, Begun, f"remove {out}, or choose another --out") if path.exists() else None


def settled_dtype(out: Path, asked: str, device: str, say: Callable[[str], object], *, overwrite: bool) -> str:
    """What `auto` means: what is fast here, or what the run in `out` was begun in, which is said where it differs."""
    before = None if overwrite or asked != "auto" else begun(out)
    kept = before.get("dtype") if before else None
    if kept is None:
        return asked
    here = describe(device=device)
    if kept != here["dtype"]:
        say(f"goes on in {kept}, as it began; {here['dtype']} is fast on {here['name']} ({here['device']})")
    return kept
