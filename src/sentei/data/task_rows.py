"""The rows of a task: a context, and what is to follow it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentei.data.sources import ROW_FILES, file_rows, find_files, hf_rows
from sentei.data.task_file import CHOICE_METRICS, TaskFile
from sentei.data.tasks import CHOICES, wrong_row
from sentei.data.templates import look_up, parse_path
from sentei.errors import InputError, nearest

MOST_CHOICES = 256  # distinct targets; with more, they are answers and not classes


@dataclass(frozen=True)
class TaskRow:
    """One row of a task.

    Attributes:
        id: its own `id` where all rows have different ones, else its number in the data (from 0).
        context: what the model reads.
        choices: the continuations that are compared, as they follow the context; empty where an answer is written.
        label: which of the choices is right; -1 without choices.
        target: the right continuation.
        aliases: accepted answers besides the target; empty where there is one answer.
        raw: the row as it was read.
        place: `file:line`, for errors.
    """

    id: str
    context: str
    choices: tuple[str, ...]
    label: int
    target: str
    aliases: tuple[str, ...]
    raw: Mapping[str, Any]
    place: str


def read_rows(task: TaskFile) -> list[TaskRow]:
    """The rows of a task's data.

    With templates and a choice metric, the choices are the distinct targets of the whole data, sorted. Rows without
    templates have the form {context, choices, label}, and a space stands between context and choice; with a metric that
    judges a written answer, the right choice is the target.

    Raises:
        InputError: missing, empty or broken data; a row that does not fit (file and line); one distinct target, or so
            many that they are no classes.
    """
    placed = list(_read(task.data))
    if not placed:
        raise InputError(f"{task.data} is empty: there is no row in it; give a file with some")
    own = [str(row["id"]) for _, row in placed if "id" in row]
    named = len(set(own)) == len(placed)
    rows = []
    for number, (place, row) in enumerate(placed):
        name = str(row["id"]) if named else str(number)
        rows.append((_chosen if task.templates is None else _filled)(task, name, row, place))
    return rows if task.templates is None or task.metric not in CHOICE_METRICS else _among_targets(task, rows)


def chance(rows: Sequence[TaskRow]) -> float:
    """The score of a model that has learnt nothing of the contexts, between 0 and 1.

    Where all rows have the same choices, or answers are written: the share of the most frequent target. Else the mean
    of 1 / choices. It says nothing about perplexity, and for F1 it is a lower bound.
    """
    if len({row.choices for row in rows}) == 1:
        return max(Counter(row.target for row in rows).values()) / len(rows)
    return sum(1 / len(row.choices) for row in rows) / len(rows)


def _read(data: str) -> Iterable[tuple[str, dict[str, Any]]]:
    if data.startswith("hf:"):
        return hf_rows(data)
    return (placed for file in find_files(Path(data), ROW_FILES) for placed in file_rows(file))


def _chosen(task: TaskFile, name: str, row: dict[str, Any], place: str) -> TaskRow:
    if wrong := wrong_row(row, CHOICES):
        missing = next((key for key in CHOICES if key not in row), None)
        hint = nearest(missing, row) if missing else ""
        raise InputError(
            f"{place}: {wrong}{hint}; expected {', '.join(CHOICES)}, or `input:` and `target:` in the task file"
        )
    choices = tuple(f" {choice}" for choice in row["choices"])
    label, target = row["label"], choices[row["label"]]
    if task.metric not in CHOICE_METRICS:
        choices, label = (), -1
    return TaskRow(name, row["context"], choices, label, target, (), row, place)


def _filled(task: TaskFile, name: str, row: dict[str, Any], place: str) -> TaskRow:
    assert task.templates is not None
    context, target = (template.fill(row, place) for template in task.templates)
    if not target.strip():
        raise InputError(f"{place}: the target {task.target!r} is empty here; remove that row or change the template")
    aliases = () if task.aliases is None else tuple(look_up(row, parse_path(task.aliases), place))
    return TaskRow(name, context, (), -1, target, aliases, row, place)


def _among_targets(task: TaskFile, rows: list[TaskRow]) -> list[TaskRow]:
    choices = tuple(sorted({row.target for row in rows}))
    if len(choices) < 2:
        raise InputError(
            f"{task.data}: all {len(rows)} rows have the target {choices[0]!r}, so there is nothing to choose; "
            "check `target:`, or give data with several"
        )
    if len(choices) > MOST_CHOICES:
        raise InputError(
            f"{task.data}: {task.metric} chooses among the distinct targets, and {len(rows)} rows have {len(choices)} "
            f"of them, expected at most {MOST_CHOICES}; take metric: exact_match or f1 for free answers"
        )
    number = {choice: at for at, choice in enumerate(choices)}
    return [
        TaskRow(row.id, row.context, choices, number[row.target], row.target, (), row.raw, row.place) for row in rows
    ]
