"""What a run of `fit` or `frontier` was begun in, so that it goes on in the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from typing_extensions import NotRequired, TypedDict

from sentei.errors import InputError
from sentei.files import write_json
from sentei.machine import describe
from sentei.marks import write_mark
from sentei.outputs import atomic_dir
from sentei.places import check_output, probe, refuse_place
from sentei.schema import EXACT, read

RUN = "run.json"
# What lies in a run directory, as patterns: the searches' journals are named after them.
_FILES = (
    *(
        RUN,
        "splits.json",
        "profile/*",
        ".profile.*",
        "latency-*.json",
        "plan.json",
        "plans/*",
        "model/*",
        "report.*",
        "frontier.*",
    ),
    *("evolve*.jsonl", "path*.jsonl", "genetic*.jsonl", "uniform*.jsonl"),
)


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


def claim(out: Path, *, inputs: Iterable[str | Path | None] = (), overwrite: bool = False) -> None:
    """Refuses a bad place, and a directory that holds something else than a run of this kind. Nothing is changed.

    Raises:
        InputError: as said, before any work is done; see `check_output`.
    """
    if (out / RUN).exists() and not overwrite:
        refuse_place(out, inputs)
        probe(out / RUN)
    else:
        check_output(out, inputs=inputs, overwrite=overwrite)


def begin(out: Path, identity: str, dtype: str, overwrite: bool) -> None:
    """Makes a directory that of a run, or goes on in it; what is refused leaves no trace.

    Raises:
        InputError: it holds another run.
    """
    if overwrite and out.exists():
        with atomic_dir(out, overwrite=True):
            pass
    if (before := begun(out)) and before["identity"] != identity:
        raise InputError(
            f"{out} holds a run of another model, dtype, task or setting; choose another --out, or --overwrite"
        )
    write_json(out / RUN, {"schema_version": 1, "identity": identity, "dtype": dtype})
    write_mark(out, _FILES)
