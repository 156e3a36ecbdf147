"""Progress of long work: nothing by default, bars or plain lines on stderr, and `events.jsonl` for machines."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sentei.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

PLAIN_SECONDS = 10.0  # between two lines where stderr is no terminal
EVENT_SECONDS = 1.0  # between two "advance" events


class Bar:
    """One stage in progress: counts what is done and tells `seen`."""

    def __init__(self, seen: Callable[[Bar], None] | None = None, total: float | None = None, unit: str = "") -> None:
        self.done = 0.0
        self.total = total
        self.unit = unit
        self.started = time.monotonic()
        self._seen = seen

    def advance(self, n: float = 1) -> None:
        """Counts `n` more as done."""
        self.done += n
        if self._seen:
            self._seen(self)

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes at the pace so far; None while nothing is known."""
        if not self.total or not self.done:
            return None
        return max(0.0, self.seconds * (self.total - self.done) / self.done)

    def __str__(self) -> str:
        count = _count(self.done) + (f"/{_count(self.total)}" if self.total else "")
        left = "" if self.left is None or self.done == self.total else f", about {duration(self.left)} left"
        return f"{count} {self.unit}".rstrip() + left


class Progress:
    """Says nothing: for callers that want no bar. What is called without a progress uses `shown`.

    Example:
        with progress.stage("measure", total=30, unit="blocks") as bar:
            bar.advance()
    """

    @contextlib.contextmanager
    def stage(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
        """A piece of work of `total` units (None: unknown); the bar's `advance(n)` counts them."""
        yield Bar(total=total, unit=unit)

    def say(self, text: str) -> None:
        """One line for the user."""

    def event(self, kind: str, **values: Any) -> None:
        """One event for machines."""


class TerminalProgress(Progress):
    """Bars on a terminal, plain lines now and then elsewhere; all of it also as events, where a file is given.

    Args:
        events: JSON lines are appended here: `{"time", "event", …}`.
        stream: where bars and lines go; stderr.
    """

    def __init__(self, events: Path | None = None, stream: IO[str] | None = None) -> None:
        self.events = events
        self.stream = stream or sys.stderr
        self._rich: RichProgress | None = None

    def event(self, kind: str, **values: Any) -> None:
        """Appends one event; a line is written whole, so that a killed run leaves at most one torn line."""
        if self.events is not None:
            line = json.dumps({"time": round(time.time(), 3), "event": kind, **values}, ensure_ascii=False)
            try:
                with open(self.events, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:
                why = error.strerror or error
                raise InputError(f"cannot write {self.events}: {why}; free space, or remove what is there") from error

    def say(self, text: str) -> None:
        """Prints one line, above the bars."""
        if self._rich is not None:
            self._rich.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self.stream, flush=True)

    @contextlib.contextmanager
    def stage(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
        """See `Progress.stage`."""
        self.event("start", stage=name, total=total, unit=unit)
        with self._shown(name, total, unit) as show:
            last = [time.monotonic()]

            def seen(bar: Bar) -> None:
                show(bar)
                if time.monotonic() - last[0] >= EVENT_SECONDS:
                    last[0] = time.monotonic()
                    self.event("advance", stage=name, done=bar.done, total=bar.total)

            bar = Bar(seen, total, unit)
            yield bar
        self.event("end", stage=name, done=bar.done, seconds=round(bar.seconds, 3))

    @contextlib.contextmanager
    def _shown(self, name: str, total: float | None, unit: str) -> Iterator[Callable[[Bar], None]]:
        if not self.stream.isatty():
            last = [time.monotonic()]

            def line(bar: Bar) -> None:
                if time.monotonic() - last[0] >= PLAIN_SECONDS:
                    last[0] = time.monotonic()
                    self.say(f"  {name}: {bar}")

            yield line
            return
        with self._bars() as rich:
            task = rich.add_task(name, total=total, unit=unit)

            def move(bar: Bar) -> None:
                rich.update(task, completed=bar.done, total=bar.total)

            try:
                yield move
            finally:
                rich.remove_task(task)

    @contextlib.contextmanager
    def _bars(self) -> Iterator[RichProgress]:
        """One live display for all nested stages."""
        if self._rich is not None:
            yield self._rich
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
        )
        with Rich(*columns, console=Console(file=self.stream), transient=True) as self._rich:
            try:
                yield self._rich
            finally:
                self._rich = None


def shown(progress: Progress | None) -> Progress:
    """The given progress; without one, bars where a person looks: on a terminal and in a notebook."""
    if progress is not None:
        return progress
    return TerminalProgress() if sys.stderr.isatty() or _in_notebook() else Progress()


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook; nothing is imported to find out."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _count(value: float) -> str:
    """A number of units: `1,234,567`, `0.5`."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def duration(seconds: float) -> str:
    """Seconds in words: `8.1 s`, `2 min 5 s`, `1 h 3 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
