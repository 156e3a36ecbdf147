"""Ctrl-C and SIGTERM: what a verb was doing ends cleanly, and it says how to go on."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Iterator, Mapping
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends what is going on as Ctrl-C does."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """While the block runs, SIGTERM raises `Terminated` in the main thread."""

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the number of the signal, as shells count."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def how_to_go_on(verb: str | None, given: Mapping[str, Any]) -> str:
    """What to say after "stopped; ".

    Args:
        verb: its name.
        given: values of its options by parameter.
    """
    place = shlex.quote(str(given.get("run_directory") or given.get("out")))
    if verb in ("run", "accel", "resume"):
        trusted = " --trust-remote-code" if given.get("trust_remote_code") else ""
        return f"`sentei resume {place}{trusted}` goes on where it was"
    if verb in ("fit", "frontier"):
        return f"the same command goes on where it was, without --overwrite; what is done is in {place}"
    if verb in ("measure", "tune", "select"):
        return f"the same command goes on where it was; {place} is as it was before"
    if given.get("out"):
        return f"{place} is as it was before; the same command starts anew"
    return "the same command starts anew"
