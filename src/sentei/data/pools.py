"""Instruction pools: rows to select from, whatever form they were written in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentei.data.demo import demo_pool
from sentei.data.formats import FORMATS, Format, Misfit, Role, Turns
from sentei.data.rows import Bad
from sentei.data.skipped import Skipped
from sentei.data.sources import ROW_FILES, Placed, file_rows, find_files, hf_rows
from sentei.errors import InputError, nearest
from sentei.files import JSONError, check_value

MOST_BAD = 0.9  # of the rows; with more of them a pool is not what it was taken for


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class PoolRow:
    """One row of a pool.

    Attributes:
        id: the row's own `id`, else its position in the pool, from 0; `id#position` where an earlier row has that id.
        turns: the conversation; empty for raw text.
        text: raw text; empty for a conversation.
        raw: the row as it was read.
        place: file and line, for messages.
    """

    id: str
    turns: tuple[Turn, ...]
    text: str
    raw: dict[str, Any]
    place: str

    @property
    def prompt(self) -> str:
        """What is asked: the system and user turns, one under the other; the text itself for raw text."""
        return "\n".join(turn.content for turn in self.turns if turn.role != "assistant") if self.turns else self.text

    @property
    def response(self) -> str:
        """What is answered: the assistant's turns, one under the other; the text itself for raw text."""
        return "\n".join(turn.content for turn in self.turns if turn.role == "assistant") if self.turns else self.text


@dataclass(frozen=True)
class Pool:
    """Rows with ids that differ, all of one format (a name in `FORMATS`), where they are from, and what was skipped."""

    rows: list[PoolRow]
    format: str
    source: str
    skipped: Skipped = field(default_factory=Skipped)


def read_pool(
    source: str | Path | Sequence[dict[str, Any]],
    *,
    format: str | None = None,
    evaluated: int | None = None,
    strict: bool = False,
) -> Pool:
    """Reads a pool; the keys of most rows say in which format it is.

    A row that cannot be read or does not fit is skipped, counted and, if among the first, named: `Pool.skipped`. An
    empty instruction or answer is read as it is: rejecting rows is for the filters. Pools that were joined repeat ids:
    a repeated one becomes `id#position`.

    Args:
        source: a .jsonl, .jsonl.gz, .parquet or .json (array) file; a directory of the first three (in order of their
            paths); `hf:name[:config[:split]]` (split `train` by default); `demo`; or rows in memory.
        format: a name in `sentei.data.formats.FORMATS`, where the keys would say something else.
        evaluated: of the demo: rows of each task that the model will be evaluated on; see `demo_pool`.
        strict: refuse the first row that would be skipped.

    Raises:
        InputError: unreadable or empty; more than nine in ten rows are bad, with the reasons; with `strict`, one is.
    """
    name = str(source) if isinstance(source, str | Path) else "rows in memory"
    skipped = Skipped(strict)
    placed = list(_read(demo_pool(evaluated) if source == "demo" else source, skipped))
    if not placed and not skipped.count:
        raise InputError(f"{name} is empty: there is no row in it; give a pool with some")
    chosen = FORMATS[format] if format is not None else _detect(placed)
    rows: list[PoolRow] = []
    taken: set[str] = set()
    for place, raw in placed:
        try:
            found = _turns(raw, chosen)
        except Misfit as error:
            skipped(place, str(error))
            continue
        assert chosen is not None
        id = str(len(rows)) if raw.get("id") is None else str(raw["id"])
        while id in taken:
            id += f"#{len(rows)}"
        taken.add(id)
        text, turns = (found, ()) if isinstance(found, str) else ("", tuple(Turn(*turn) for turn in found))
        rows.append(PoolRow(id, turns, text, raw, place))
    if chosen is None or skipped.count > MOST_BAD * (len(rows) + skipped.count):
        raise InputError(
            f"{name}: {skipped.count:,} of {len(rows) + skipped.count:,} rows cannot be used: {skipped.reasons()}; "
            f"such as {'; '.join(skipped.examples)}; mend the rows, or name another format; known: {_schemas()}"
        )
    return Pool(rows, chosen.name, name, skipped)


def _read(source: str | Path | Sequence[Any], bad: Bad) -> Placed:
    if not isinstance(source, str | Path):
        for number, row in enumerate(source):
            if not isinstance(row, dict):
                bad(f"row {number} in memory", f"is {type(row).__name__}, expected a dict")
                continue
            try:
                check_value(row)
            except JSONError as error:
                bad(f"row {number} in memory", f"cannot be used: {error}")
                continue
            yield f"row {number}", row
    elif str(source).startswith("hf:"):
        yield from hf_rows(str(source))
    else:
        for file in find_files(Path(source), ROW_FILES):
            yield from file_rows(file, bad)


def _detect(placed: Sequence[tuple[str, dict[str, Any]]]) -> Format | None:
    """The format whose keys most rows have; None where no row has those of any."""
    found = Counter(format.name for _, raw in placed if (format := _format(raw)) is not None)
    return FORMATS[max(found, key=lambda name: found[name])] if found else None


def _format(raw: dict[str, Any]) -> Format | None:
    """The first format whose keys a row has."""
    return next((format for format in FORMATS.values() if format.fits(raw)), None)


def _turns(raw: dict[str, Any], format: Format | None) -> Turns | str:
    """What a row says, read in a format.

    Raises:
        Misfit: it does not fit.
    """
    if format is None:
        known = sorted({key for format in FORMATS.values() for keys in format.needs for key in keys} - set(raw))
        hints = "".join(f"; {key!r}{hint}" for key in raw if (hint := nearest(str(key), known)))
        raise Misfit(f"has keys that tell no format (found: {_keys(raw)}){hints}")
    try:
        return format.read(raw)
    except Misfit as error:
        other = _format(raw)
        hint = f"; its keys are those of {other.name!r}" if other is not None and other is not format else ""
        raise Misfit(f"does not fit the format {format.name!r}: {error}; found: {_keys(raw)}{hint}") from None


def _keys(raw: dict[str, Any]) -> str:
    return ", ".join(map(str, raw)) or "none"


def _schemas() -> str:
    return "; ".join(f"{format.name} {format.schema}" for format in FORMATS.values())
