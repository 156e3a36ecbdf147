"""The goal of a search: within a tolerance of the dense model, on the same rows.

Everything is decided on *margins*: one number per row, whose mean is at least 0 exactly when the goal is met. Rows are
paired, so what is hard for both models cancels; and every prefix of the rows must be a random sample of all of them,
which the seeded splits of a task are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from sentei.errors import InputError
from sentei.metrics.intervals import Interval, proportions, ratio_bootstrap, ratio_interval
from sentei.metrics.proportions import Pairs, z_of
from sentei.prune.space import Genome

if TYPE_CHECKING:
    from sentei.metrics.answers import Metric
    from sentei.metrics.score import Outcome

Rows = NDArray[np.float64]
ERROR = 0.05  # of dropping a candidate that would meet the goal on all rows


class Evaluator(Protocol):
    """Scores a genome on the search rows from `start` to before `stop`."""

    def __call__(self, genome: Genome, start: int, stop: int) -> Outcome:
        """What these rows score; the same whenever it is asked."""
        ...


@dataclass(frozen=True)
class Goal:
    """At most `tolerance` worse than the dense model, relative: a mean score of at least (1 − tolerance) · dense.

    Where less is better, at most (1 + tolerance) · dense; for perplexity that is of exp(mean nll per token).

    Attributes:
        dense: the dense model's `Outcome` on all search rows.
        tolerance: 0.01 allows a loss of 1 %.
        metric: of the task.

    Raises:
        InputError: a tolerance that is not between 0 and 1, or a dense model that scores nothing.
    """

    dense: Outcome
    tolerance: float
    metric: Metric

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance: {self.tolerance:g} must be between 0 and 1; 0.01 allows a loss of 1 %")
        dense = self.value(self.dense)
        if not math.isfinite(dense) or dense <= 0:
            raise InputError(
                f"the dense model's {self.metric.name} is {dense:g}: there is nothing to keep; tune it first"
            )

    @property
    def rows(self) -> int:
        """How many rows there are in all."""
        return len(self.dense.score)

    @property
    def logarithmic(self) -> bool:
        """Whether scores are nats and the metric is exp of their mean."""
        return self.metric.name == "perplexity"

    def value(self, outcome: Outcome) -> float:
        """The metric of an outcome."""
        return self.metric.aggregate(outcome.score, outcome.weight)

    def margins(self, outcome: Outcome) -> Rows:
        """Of each row by how much it is better than it must be on average, in the unit of the scores."""
        score = outcome.score
        dense = self.dense.score[: len(score)]
        if self.logarithmic:
            return dense + math.log1p(self.tolerance) - score
        return score - (1 - self.tolerance) * dense if self.metric.higher else (1 + self.tolerance) * dense - score

    def margin(self, outcome: Outcome) -> float:
        """The mean of the margins: at least 0 where the goal is met; −inf where a score is not finite."""
        mean = float(np.average(self.margins(outcome), weights=outcome.weight))
        return mean if math.isfinite(mean) else -math.inf

    def met(self, outcome: Outcome) -> bool:
        """Whether the point estimate is within the tolerance, over the rows that the outcome has."""
        return self.margin(outcome) >= -1e-9  # means of the same scores may differ in the last bits

    def met_strictly(self, outcome: Outcome, level: float = 0.95) -> bool:
        """Whether the whole interval of the change is within the tolerance."""
        return self._holds(*self.interval(outcome, level))

    def _holds(self, low: float, high: float) -> bool:
        """Whether an interval of the change is within the tolerance."""
        return low >= -self.tolerance - 1e-9 if self.metric.higher else high <= self.tolerance + 1e-9

    def change(self, outcome: Outcome) -> float:
        """Relative change of the metric against the dense model on the same rows; −0.02: 2 % lower."""
        return self.value(outcome) / self.value(take(self.dense, 0, len(outcome.score))) - 1

    def interval(self, outcome: Outcome, level: float = 0.95, seed: int = 0) -> Interval:
        """Interval of `change`, rows being paired with their dense partners; see `ratio_interval`.

        Returns:
            (low, high); (nan, nan) where a score is not finite or a draw holds no dense score at all.
        """
        score = outcome.score
        dense = self.dense.score[: len(score)]
        if not self.logarithmic:
            low, high = ratio_interval(score.tolist(), dense.tolist(), level=level, seed=seed)
            return low - 1, high - 1
        weight = outcome.weight
        low, high = ratio_bootstrap((weight * (score - dense)).tolist(), weight.tolist(), level=level, seed=seed)
        return math.expm1(low), math.expm1(high)

    def hopeless(self, outcome: Outcome, *, looks: int = 1, error: float = ERROR) -> bool:
        """Whether a candidate that has been seen on the first rows will not meet the goal on all of them.

        Args:
            outcome: of the rows so far.
            looks: how often the candidate is looked at before its last row.
            error: how likely, over all looks, a candidate is dropped that would meet the goal on all rows.
        """
        return below_zero(self.margins(outcome), outcome.weight, self.rows, looks=looks, error=error)

    def rows_needed(self, outcome: Outcome, level: float = 0.95) -> int | None:
        """Rows at which the interval of a candidate like this one would be within the tolerance.

        One candidate, two-sided level. Of rows that are right or wrong by their interval, were there more of them in
        the same proportions; else from the spread of the margins so far, n = (z · sd / mean)². None where the point
        estimate does not meet the goal, so that no number of rows would do.
        """
        values, weight = self.margins(outcome), outcome.weight
        if not (mean := self.margin(outcome)) > 0:
            return None
        dense = self.dense.score[: len(outcome.score)]
        if not self.logarithmic and proportions(outcome.score.tolist()) and proportions(dense.tolist()):
            return self._pairs_needed(Pairs.of(outcome.score.tolist(), dense.tolist()), len(dense), level)
        error = _standard_error(values, weight) * math.sqrt(len(values))
        return max(2, math.ceil((z_of(level) * error / mean) ** 2))

    def _pairs_needed(self, pairs: Pairs, rows: int, level: float) -> int:
        """The least number of rows, by bisection between too few and enough."""

        def enough(n: int) -> bool:
            low, high = pairs.times(n / rows).ratio(level=level)
            return self._holds(low - 1, high - 1)

        few, many = 1, 2
        while not enough(many):
            few, many = many, 2 * many
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if enough(middle) else (middle, many)
        return many


def below_zero(values: Rows, weight: Rows, total: int, *, looks: int = 1, error: float = ERROR) -> bool:
    """Whether the mean over all `total` rows will be below 0, from the first `len(values)` of them.

    A one-sided z-test of the mean of a finite population, rows drawn without replacement: the standard error has the
    factor √(1 − n/N) (Cochran, Sampling Techniques, 1977, equation 2.20), so that with all rows it is the plain
    comparison. The error is divided among the looks (Bonferroni).

    Args:
        values: per row [n].
        weight: what each counts [n].
        total: N.
        looks: how often the test is made before all rows are seen.
        error: how likely, over all looks, the answer is yes though the mean over all rows is not below 0.
    """
    mean = float(np.average(values, weights=weight))
    if not math.isfinite(mean):
        return True
    if len(values) >= total:
        return mean < -1e-9
    unseen = math.sqrt(1 - len(values) / total)
    return mean + _z(error / looks) * _standard_error(values, weight) * unseen < -1e-9


def _standard_error(values: Rows, weight: Rows) -> float:
    """Of a weighted mean, by linearisation of the ratio of two sums."""
    n = len(values)
    if n < 2:
        return math.inf
    off = weight * (values - np.average(values, weights=weight)) / weight.mean()
    return float(off.std(ddof=1)) / math.sqrt(n)


def _z(tail: float) -> float:
    return -NormalDist().inv_cdf(tail)


def loss(outcome: Outcome) -> float:
    """Mean task loss, nats, weighted; inf where a row's is not finite."""
    mean = float(np.average(outcome.loss, weights=outcome.weight))
    return mean if math.isfinite(mean) else math.inf


def paired_loss(outcome: Outcome, dense: Outcome) -> tuple[float, float]:
    """Mean task loss above the dense model's on the same rows, and its standard error; nats, weighted."""
    more = outcome.loss - dense.loss[: len(outcome.loss)]
    return float(np.average(more, weights=outcome.weight)), _standard_error(more, outcome.weight)


def take(outcome: Outcome, start: int, stop: int) -> Outcome:
    """Rows `start` to before `stop` of an outcome."""
    rows = slice(start, stop)
    return replace(outcome, score=outcome.score[rows], loss=outcome.loss[rows], weight=outcome.weight[rows])
