"""Dividing a task's rows: one part to calibrate on, one to search with, one to confirm, one to test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sentei.data.task_file import TaskFile
from sentei.data.task_rows import TaskRow
from sentei.errors import InputError
from sentei.files import hash_json, read_json, write_json

NAMES = ("calibrate", "search", "confirm", "test")
FEW_LABELS = 64  # distinct targets up to which they are divided evenly


@dataclass(frozen=True)
class Splits:
    """Disjoint rows of one task. Within a split, every beginning is a fair sample too.

    Attributes:
        calibrate: for statistics and a first fine-tuning.
        search: candidates are compared on these.
        confirm: the winner is measured again on these.
        test: read once, at the end.
        digest: of the data that were divided.
    """

    calibrate: tuple[TaskRow, ...]
    search: tuple[TaskRow, ...]
    confirm: tuple[TaskRow, ...]
    test: tuple[TaskRow, ...]
    digest: str

    def save(self, path: str | Path) -> None:
        """Writes the ids of each split and the digest of the data, as JSON."""
        ids = {name: [row.id for row in getattr(self, name)] for name in NAMES}
        write_json(Path(path), {"schema_version": 1, "data": self.digest, **ids})

    @classmethod
    def load(cls, path: str | Path, rows: Sequence[TaskRow]) -> Splits:
        """The stored division of the same rows.

        Raises:
            InputError: missing or broken, or made from other data.
        """
        stored = read_json(Path(path))
        named = {row.id: row for row in rows}
        if not isinstance(stored, dict) or not all(_are_names(stored.get(name)) for name in NAMES):
            raise InputError(f"{path} holds no splits; expected lists of ids under {', '.join(NAMES)}; remove it")
        if stored.get("data") != digest(rows):
            raise InputError(
                f"{path} was made from other data (sha256 {str(stored.get('data'))[:12]}, now {digest(rows)[:12]}): "
                "a row of one split could now be in another; give the same data, or another --out"
            )
        if unknown := [name for split in NAMES for name in stored[split] if name not in named]:
            raise InputError(f"{path} names row {unknown[0]!r}, which the data do not have; remove it")
        return cls(**{split: tuple(named[name] for name in stored[split]) for split in NAMES}, digest=digest(rows))


def digest(rows: Sequence[TaskRow]) -> str:
    """sha256 of the rows as they were read, whatever the file is called and however it is compressed."""
    return hash_json([row.raw for row in rows])


def split(task: TaskFile, rows: Sequence[TaskRow]) -> Splits:
    """Divides the rows by the task's sizes and seed.

    Rows with the same context stay together. Where there are few distinct targets, each has the same share in every
    split, and in every beginning of a split, to within a row or two.

    Raises:
        InputError: fewer rows than the splits need, with the counts and sizes that would fit.
    """
    sizes = task.splits.as_dict()
    parts: dict[str, list[TaskRow]] = {name: [] for name in NAMES}
    for group in _spread(rows, task.seed):
        # the first split with room: a group that is too large for what one has left waits for the next
        for name, part in parts.items():
            if len(part) + len(group) <= sizes[name]:
                part += group
                break
    if any(len(parts[name]) < sizes[name] for name in NAMES):
        raise InputError(_too_few(task, rows, sizes))
    return Splits(**{name: tuple(part) for name, part in parts.items()}, digest=digest(rows))


def _spread(rows: Sequence[TaskRow], seed: int) -> list[list[TaskRow]]:
    """Rows by context, in random order, with every target (where they are few) spread evenly over it."""
    groups: dict[str, list[TaskRow]] = {}
    for row in rows:
        groups.setdefault(row.context, []).append(row)
    few = len({row.target for row in rows}) <= FEW_LABELS
    strata: dict[str, list[list[TaskRow]]] = {}
    for group in groups.values():
        strata.setdefault(group[0].target if few else "", []).append(group)
    generator = np.random.default_rng(seed)
    placed: list[tuple[float, list[TaskRow]]] = []
    for name in sorted(strata):
        members = strata[name]
        places = (np.arange(len(members)) + generator.random()) / len(members)
        placed += zip(places.tolist(), (members[at] for at in generator.permutation(len(members))), strict=True)
    placed.sort(key=lambda pair: pair[0])
    return [group for _, group in placed]


def _too_few(task: TaskFile, rows: Sequence[TaskRow], sizes: dict[str, int]) -> str:
    needed = sum(sizes.values())
    wanted = ", ".join(f"{name} {size}" for name, size in sizes.items())
    if len(rows) >= needed:
        most = max(Counter(row.context for row in rows).values())
        return (
            f"{task.data}: {len(rows)} rows do not fill the splits ({wanted}), because rows with one context stay "
            f"together and one context has {most} rows; ask for smaller splits"
        )
    if len(rows) < len(NAMES):
        return f"{task.data}: {len(rows)} rows, the splits need {needed} ({wanted}); give more rows"
    fitting = ", ".join(f"{name}: {max(1, size * len(rows) // needed)}" for name, size in sizes.items())
    return (
        f"{task.data}: {len(rows)} rows, the splits need {needed} ({wanted}); give more rows, or write "
        f"`splits: {{{fitting}}}` in the task file"
    )


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
