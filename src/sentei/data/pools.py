"""Instruction pools: rows to select from, whatever form they were written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentei.data.demo import demo_pool
from sentei.data.formats import FORMATS, Format, Misfit, Role
from sentei.data.sources import ROW_FILES, Placed, file_rows, find_files, hf_rows
from sentei.errors import InputError, nearest


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
    """Rows with ids that differ, all of one format (a name in `FORMATS`), and where they are from."""

    rows: list[PoolRow]
    format: str
    source: str


def read_pool(
    source: str | Path | Sequence[dict[str, Any]], *, format: str | None = None, evaluated: int | None = None
) -> Pool:
    """Reads a pool; the keys of its first row say in which format it is.

    An empty instruction or answer is read as it is: rejecting rows is for the filters. Pools that were joined repeat
    ids: a repeated one becomes `id#position`.

    Args:
        source: a .jsonl, .jsonl.gz, .parquet or .json (array) file; a directory of the first three (in order of their
            paths); `hf:name[:config[:split]]` (split `train` by default); `demo`; or rows in memory.
        format: a name in `sentei.data.formats.FORMATS`, where the keys would say something else.
        evaluated: of the demo: rows of each task that the model will be evaluated on; see `demo_pool`.

    Raises:
        InputError: unreadable or empty; a row that does not fit (file, line, keys).
    """
    name = str(source) if isinstance(source, str | Path) else "rows in memory"
    chosen = FORMATS[format] if format is not None else None
    rows: list[PoolRow] = []
    taken: set[str] = set()
    for place, raw in _read(demo_pool(evaluated) if source == "demo" else source):
        chosen = chosen or _detect(raw, place)
        try:
            found = chosen.read(raw)
        except Misfit as error:
            raise InputError(
                f"{place} does not fit the format {chosen.name!r}: {error}; found: {_keys(raw)}; "
                f"mend that row, or name another format; known: {_schemas()}"
            ) from None
        id = str(len(rows)) if raw.get("id") is None else str(raw["id"])
        while id in taken:
            id += f"#{len(rows)}"
        taken.add(id)
        text, turns = (found, ()) if isinstance(found, str) else ("", tuple(Turn(*turn) for turn in found))
        rows.append(PoolRow(id, turns, text, raw, place))
    if chosen is None or not rows:
        raise InputError(f"{name} is empty: there is no row in it; give a pool with some")
    return Pool(rows, chosen.name, name)


def _read(source: str | Path | Sequence[dict[str, Any]]) -> Placed:
    if not isinstance(source, str | Path):
        for number, row in enumerate(source):
            if not isinstance(row, dict):
                raise InputError(f"row {number} in memory is {type(row).__name__}, expected a dict")
            yield f"row {number}", row
    elif str(source).startswith("hf:"):
        yield from hf_rows(str(source))
    else:
        for file in find_files(Path(source), ROW_FILES):
            yield from file_rows(file)


def _detect(raw: dict[str, Any], place: str) -> Format:
    """The first format whose keys the row has."""
    for format in FORMATS.values():
        if format.fits(raw):
            return format
    known = sorted({key for format in FORMATS.values() for keys in format.needs for key in keys} - set(raw))
    hints = [f"{key!r}{hint}" for key in raw if (hint := nearest(key, known))]
    raise InputError(
        f"{place}: the keys tell no format (found: {_keys(raw)}){'; ' if hints else ''}{', '.join(hints)}; "
        f"rename them to one of: {_schemas()}"
    )


def _keys(raw: dict[str, Any]) -> str:
    return ", ".join(map(str, raw)) or "none"


def _schemas() -> str:
    return "; ".join(f"{format.name} {format.schema}" for format in FORMATS.values())
