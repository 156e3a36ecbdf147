"""Zero-shot and few-shot tasks, scored by lm-evaluation-harness's own code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sentei.data.tasks import TaskSet
from sentei.errors import InputError
from sentei.prove.scored import TaskResult


def score_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[TaskSet | str],
    *,
    limit: int | None = None,
    shots: int | None = None,
    progress: Any = None,
) -> dict[str, TaskResult]:
    """Scores an in-memory model.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        tasks: local sets, and names of tasks or groups of lm-evaluation-harness (their data is loaded with `datasets`).
        limit: take the first rows of each task only.
        shots: solved examples before each question: for a local set drawn from its other rows. By default none, and for
            a harness task what it asks for.
        progress: shows a stage called `tasks`, counted in requests (one per choice).

    Raises:
        InputError: an unknown or repeated name, a task whose data cannot be loaded or that has no accuracy.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1")
    names = _names(tasks)
    if not names:
        return {}
    from sentei.prove.harness import run_harness

    return {
        name: TaskResult.of(rows)
        for name, rows in run_harness(model, tokenizer, tasks, limit=limit, shots=shots, progress=progress).items()
    }


def check_tasks(tasks: Sequence[TaskSet | str]) -> None:
    """Refuses, before any model is loaded, tasks that cannot be scored; those of the harness have their data loaded.

    Raises:
        InputError: as `score_tasks`.
    """
    _names(tasks)
    if named := [task for task in tasks if isinstance(task, str)]:
        from sentei.prove.harness import load_tasks

        load_tasks(named)


def _names(tasks: Sequence[TaskSet | str]) -> list[str]:
    names = [task if isinstance(task, str) else task.name for task in tasks]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two tasks are called {sorted(repeated)[0]!r}; rename one of the files")
    return names
