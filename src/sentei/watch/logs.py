"""Logs of requests: read line by line, in order of time, each request once; what is wrong is skipped and counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from sentei.data.skipped import Skipped
from sentei.data.sources import ROW_FILES, file_rows, find_files
from sentei.errors import InputError
from sentei.watch.payloads import Misfit, asked

MOST_BAD = 0.9  # of the lines; with more of them a log is not what it was taken for


@dataclass(frozen=True)
class Request:
    """A request of a log.

    Attributes:
        id: its own, else its place.
        time: seconds since 1970, or None.
        user: what the user says.
        system: the system prompt.
    """

    id: str
    time: float | None
    user: str
    system: str

    @property
    def when(self) -> str:
        """Its time as ISO 8601; empty where it has none."""
        return (
            "" if self.time is None else datetime.fromtimestamp(self.time, timezone.utc).isoformat(timespec="seconds")
        )


@dataclass(frozen=True)
class Log:
    """What a log holds.

    Attributes:
        source: where it is.
        requests: in order of time; those without a time where the log has them.
        schemas: requests by schema, see `sentei.watch.payloads`.
        skipped: lines that could not be used.
        others: entries that ask no model to write: embeddings, tools, other spans.
        duplicates: requests whose id an earlier one has.
        backwards: requests that are older than one before them.
    """

    source: str
    requests: list[Request]
    schemas: dict[str, int]
    skipped: Skipped = field(default_factory=Skipped)
    others: int = 0
    duplicates: int = 0
    backwards: int = 0

    def notes(self) -> list[str]:
        """What a person should know of how it was read."""
        lines = self.skipped.lines("of the log are skipped")
        if self.others:
            lines.append(f"entries that ask no model to write: {self.others:,}, left out")
        if self.duplicates:
            lines.append(f"requests with the id of an earlier one: {self.duplicates:,}, dropped")
        if self.backwards:
            lines.append(f"requests at which the clock runs backwards: {self.backwards:,}; all are sorted by time")
        if missing := sum(request.time is None for request in self.requests):
            lines.append(f"requests without a time: {missing:,}, which keep their place in the log")
        return lines


def read_log(source: str | Path, *, strict: bool = False) -> Log:
    """Reads a log.

    Args:
        source: a .jsonl, .jsonl.gz, .json (array) or .parquet file, or a directory of the first, second and last, in
            order of their names, as rotated logs are.
        strict: refuse the first line that would be skipped.

    Raises:
        InputError: missing, unreadable or empty; no request in it; more than nine in ten lines are bad; with `strict`,
            one is.
    """
    skipped, schemas = Skipped(strict), Counter[str]()
    requests: list[Request] = []
    seen: set[str] = set()
    good = others = duplicates = backwards = 0
    latest = float("-inf")
    for file in find_files(Path(source), ROW_FILES):
        for place, row in file_rows(file, skipped):
            try:
                found = list(asked(row))
            except Misfit as error:
                skipped(place, str(error))
                continue
            good += 1
            for number, one in enumerate(found):
                if one is None:
                    others += 1
                    continue
                id = one.id or (place if len(found) == 1 else f"{place}#{number}")
                if id in seen:
                    duplicates += 1
                    continue
                seen.add(id)
                schemas[one.schema] += 1
                if one.time is not None:
                    backwards += one.time < latest
                    latest = max(latest, one.time)
                requests.append(Request(id, one.time, one.user, one.system))
    if not good and not skipped.count:
        raise InputError(f"{source} is empty: there is no line in it; give a log with some requests")
    if skipped.count > MOST_BAD * (good + skipped.count):
        raise InputError(
            f"{source}: {skipped.count:,} of {good + skipped.count:,} lines cannot be used: {skipped.reasons()}; "
            f"such as {skipped.examples[0]}; docs/watch.md shows the schemas that are read"
        )
    if not requests:
        raise InputError(
            f"{source}: none of {others:,} entries asks a model to write (a chat or a completion); log those too"
        )
    return Log(str(source), _sorted(requests), dict(schemas), skipped, others, duplicates, backwards)


def _sorted(requests: list[Request]) -> list[Request]:
    """By time; one without a time stays behind the one before it."""
    times, last = [], float("-inf")
    for request in requests:
        last = last if request.time is None else request.time
        times.append(last)
    return [requests[at] for at in sorted(range(len(requests)), key=times.__getitem__)]
