"""Is an engine as like the rounded model as another right implementation would be?

What is left between two of them is what rounding makes of differences in the last bit: now and then a value rounds the
other way, and all that follows from it differs. How much that comes to depends on the model, so it is measured, by
changing the norms of the rounded model in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentei.ship.engines import LogProbs
from sentei.ship.rounding import disturbed, rounded

TOP = 50  # words of the reference, whose log-probabilities are compared
# A right engine's mean KL and median |Δ log p| are at most so many times the disturbance's, plus such a share of what
# rounding itself moves, for engines that keep a scale in fewer bits. Measured: docs/export.md.
TIMES, SHARE = 2.0, 0.1


@dataclass(frozen=True)
class Likeness:
    """How like the engine is to the model rounded as it rounds: mean KL in nats, median |Δ log p| of likely words."""

    divergence: float
    divergence_limit: float
    median: float
    median_limit: float

    @property
    def passed(self) -> bool:
        """Both within what is left between two right implementations."""
        return self.divergence <= self.divergence_limit and self.median <= self.median_limit

    def __str__(self) -> str:
        return (
            f"against the same rounding in torch: mean KL {self.divergence:.1e} (at most {self.divergence_limit:.1e}), "
            f"median |Δ log p| {self.median:.1e} (at most {self.median_limit:.1e})"
        )


@dataclass
class Apart:
    """How far apart log-probabilities are, over some positions.

    Attributes:
        divergence: Kullback–Leibler, nats, one per position.
        deltas: |Δ log p| of the reference's likeliest words, [positions, words].
    """

    divergence: list[NDArray[np.float64]] = field(default_factory=list)
    deltas: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, wanted: LogProbs, got: LogProbs) -> float:
        """Counts rows [n, V]; the largest |Δ log p| among them. What is no number is infinitely far."""
        p, q = wanted.astype(np.float64), got.astype(np.float64)
        with np.errstate(invalid="ignore"):
            apart = (np.exp(p) * (p - q)).sum(1)
        likeliest = np.argpartition(-wanted, min(TOP, wanted.shape[1]) - 1, axis=1)[:, :TOP]
        delta = np.abs(np.take_along_axis(wanted, likeliest, 1) - np.take_along_axis(got, likeliest, 1))
        apart[~np.isfinite(apart)] = delta[~np.isfinite(delta)] = np.inf
        self.divergence.append(apart)
        self.deltas.append(delta)
        return float(delta.max())

    @property
    def mean(self) -> float:
        """Mean divergence."""
        return float(np.concatenate(self.divergence).mean())

    @property
    def median(self) -> float:
        """Median |Δ log p|."""
        return float(np.median(np.concatenate(self.deltas)))


def limits(rounding: Apart, disturbance: Apart) -> tuple[float, float]:
    """What a right engine may be apart from the rounded model: mean divergence, and median |Δ log p|."""
    return (
        TIMES * disturbance.mean + SHARE * rounding.mean + 1e-8,
        TIMES * disturbance.median + SHARE * rounding.median + 1e-5,
    )


class Judge:
    """Compares an engine with the model rounded as it rounds.

    Args:
        reference: the model, fp32.
        facts: of the export.
        computed: what the engine computes in.
        rows: log-probabilities [T, V] of a model for token ids.
    """

    def __init__(
        self, reference: Any, facts: dict[str, Any], computed: str, rows: Callable[[Any, list[int]], LogProbs]
    ) -> None:
        self._facts, self._computed, self._rows = facts, computed, rows
        self._model = rounded(reference, facts, computed)
        self._rounding, self._disturbance, self._engine = Apart(), Apart(), Apart()

    def said(self, ids: list[int], wanted: LogProbs) -> tuple[LogProbs, float]:
        """What the engine should say, [T, V], and how far rounding moved a likely word of the reference at most."""
        rows = self._rows(self._model, ids)
        with disturbed(self._model, self._facts, self._computed) as model:
            self._disturbance.add(rows, self._rows(model, ids))
        return rows, self._rounding.add(wanted, rows)

    def add(self, said: LogProbs, got: LogProbs) -> None:
        """Counts rows [n, V] that the engine gave."""
        self._engine.add(said, got)

    def likeness(self) -> Likeness:
        """Over all that was counted."""
        divergence, median = limits(self._rounding, self._disturbance)
        return Likeness(self._engine.mean, divergence, self._engine.median, median)
