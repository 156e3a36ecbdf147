"""Rows of a task after scoring, and what they say of a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sentei.metrics.intervals import Interval, mean_interval


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
