"""Zero-shot and few-shot tasks, scored by lm-evaluation-harness's own code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sentei.data.tasks import TaskSet
from sentei.errors import InputError
from sentei.prove.intervals import Interval, bootstrap


@dataclass(frozen=True)
class TaskResult:
    """Accuracy of a model on a task.

    Attributes:
        acc: share of rows that are right, by the sum of log-probabilities (or by `metric`).
        acc_norm: the same with sums divided by the characters of each choice; None where a task has none.
        n: rows.
        interval: 95 % bootstrap interval of acc.
        correct: per row, 1 where right, for paired tests.
        correct_norm: the same for acc_norm.
        metric: what `acc` is: `acc`, or for a generative harness task its own first metric, such as `exact_match`.
    """

    acc: float
    acc_norm: float | None
    n: int
    interval: Interval
    correct: list[float]
    correct_norm: list[float] | None
    metric: str = "acc"

    @classmethod
    def of(cls, correct: list[float], correct_norm: list[float] | None, metric: str = "acc") -> TaskResult:
        """The result of scored rows."""
        n = len(correct)
        norm = sum(correct_norm) / n if correct_norm is not None else None
        return cls(sum(correct) / n, norm, n, bootstrap(correct), correct, correct_norm, metric)


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
    names = [task if isinstance(task, str) else task.name for task in tasks]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two tasks are called {sorted(repeated)[0]!r}; rename one of the files")
    if not names:
        return {}
    from sentei.prove.harness import run_harness

    return {
        name: TaskResult.of(*rows)
        for name, rows in run_harness(model, tokenizer, tasks, limit=limit, shots=shots, progress=progress).items()
    }
