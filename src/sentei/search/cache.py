"""Outcomes that are known already, kept in a journal.

A search is a function of its settings, its seed and the outcomes that it asks for. So the journal of outcomes is all
the state there is: a killed search is started again with the same settings, gets from the journal what it had, at no
cost, and goes on to the same end as one that was never stopped, wherever it was stopped.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sentei.errors import InputError
from sentei.files import loads
from sentei.prune.space import Genome, Space

if TYPE_CHECKING:
    from sentei.metrics.score import Outcome


class Cache:
    """Outcomes by genome, each on a prefix of the rows.

    Args:
        space: what the genomes belong to.
        rows: how many there are.
        journal: JSON lines, one per evaluation, appended as they come; None keeps them in memory only.
        identity: hash of all else that outcomes depend on (model, profile, rows of the task).

    Raises:
        InputError: a journal of another search, or one that cannot be read.
    """

    def __init__(self, space: Space, rows: int, journal: Path | None = None, identity: str = "") -> None:
        self._known: dict[Genome, dict[str, list[float]]] = {}
        self._journal = journal
        self._header = {"space": space.key, "rows": rows, "identity": identity}
        if journal is not None:
            self._read(journal) if journal.exists() else self._write(self._header)

    def rows(self, genome: Genome) -> int:
        """Of how many rows the outcome is known."""
        return len(self._known[genome]["score"]) if genome in self._known else 0

    def get(self, genome: Genome, stop: int, like: Outcome) -> Outcome:
        """The outcome on the first `stop` rows, as the class of `like`."""
        known = self._known[genome]
        return replace(like, **{name: np.array(values[:stop], np.float64) for name, values in known.items()})

    def add(self, genome: Genome, start: int, outcome: Outcome) -> None:
        """Keeps an outcome of the rows from `start` on.

        Raises:
            InputError: the journal cannot be written.
        """
        row = {name: np.asarray(getattr(outcome, name), np.float64).tolist() for name in ("score", "loss", "weight")}
        self._keep(genome, start, row)
        if self._journal is not None:
            self._write({"genome": list(genome), "start": start, **row})

    def _keep(self, genome: Genome, start: int, row: dict[str, list[float]]) -> None:
        known = self._known.setdefault(genome, {name: [] for name in row})
        if start != len(known["score"]):
            raise ValueError(f"rows from {start} on, but {len(known['score'])} are known")
        for name, values in row.items():
            known[name] += values

    def _write(self, row: dict[str, Any]) -> None:
        assert self._journal is not None
        try:
            with open(self._journal, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise InputError(
                f"cannot write {self._journal}: {error.strerror or error}; free space and resume"
            ) from error

    def _read(self, journal: Path) -> None:
        """Reads what was kept; a last line that a kill has torn is cut off."""
        text = journal.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            with open(journal, "r+b") as file:
                file.truncate(len(whole))
        if not whole:
            self._write(self._header)
            return
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = loads(line.decode())
                if number > 1:
                    parts = {name: row[name] for name in ("score", "loss", "weight")}
                    self._keep(tuple(row["genome"]), row["start"], parts)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{journal}:{number} is no evaluation ({error}); remove the file to start anew"
                ) from error
            if number == 1 and row != self._header:
                raise InputError(
                    f"{journal}:1 is of another model, task or menu; remove the file, or use another directory"
                )
