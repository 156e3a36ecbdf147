"""Zero-shot and few-shot tasks, scored by lm-evaluation-harness's own code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sentei.data.tasks import TaskSet
from sentei.errors import InputError
from sentei.prove.intervals import Interval, mean_interval


@dataclass(frozen=True)
class Answers:
    """Rows that all have the same answers to choose from, such as yes and no; in what order does not matter.

    Attributes:
        right: the right answer of each row.
        said: the model's.
    """

    right: list[str]
    said: list[str]

    def majority(self) -> tuple[str, float]:
        """The answer that is right most often, and the accuracy of always saying it."""
        answer, rows = Counter(sorted(self.right)).most_common(1)[0]
        return answer, rows / len(self.right)

    def shares(self) -> dict[str, float]:
        """How often the model says each answer; all that are ever right or said, in alphabetical order."""
        counts = Counter(self.said)
        return {answer: counts[answer] / len(self.said) for answer in sorted({*self.right, *self.said})}


@dataclass(frozen=True)
class Scored:
    """Rows of a task after scoring.

    Attributes:
        correct: per row, 1 where right (or what `metric` gives).
        correct_norm: the same by log-probability per character; None where the task has none.
        metric: the name of `correct`.
        answers: where all rows have the same answers to choose from; else None.
    """

    correct: list[float]
    correct_norm: list[float] | None
    metric: str = "acc"
    answers: Answers | None = None


@dataclass(frozen=True)
class TaskResult:
    """Accuracy of a model on a task.

    Attributes:
        acc: share of rows that are right, by the sum of log-probabilities (or by `metric`).
        acc_norm: the same with sums divided by the characters of each choice; None where a task has none.
        n: rows.
        interval: 95 % interval of acc: Wilson's, or of a metric that is not 0 or 1 by a bootstrap.
        correct: per row, 1 where right, for paired tests.
        correct_norm: the same for acc_norm.
        metric: what `acc` is: `acc`, or for a generative harness task its own first metric, such as `exact_match`.
        answers: where all rows have the same answers to choose from; else None.
    """

    acc: float
    acc_norm: float | None
    n: int
    interval: Interval
    correct: list[float]
    correct_norm: list[float] | None
    metric: str = "acc"
    answers: Answers | None = None

    @classmethod
    def of(cls, rows: Scored) -> TaskResult:
        """The result of scored rows."""
        n, correct, norm = len(rows.correct), rows.correct, rows.correct_norm
        acc_norm = sum(norm) / n if norm is not None else None
        return cls(sum(correct) / n, acc_norm, n, mean_interval(correct), correct, norm, rows.metric, rows.answers)

    def answers_json(self) -> dict[str, Any]:
        """`majority` and `said` of a task with the same answers everywhere; else nothing."""
        if self.answers is None:
            return {}
        answer, share = self.answers.majority()
        return {"majority": {"answer": answer, "share": share}, "said": self.answers.shares()}


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
