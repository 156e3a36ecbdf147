"""Synthetic spaces, and an evaluator whose best genome is known: what a search is tried on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sentei.metrics.answers import Metric
from sentei.metrics.score import Outcome
from sentei.prune.space import Gene, Genome, Space
from sentei.search.goal import Goal

ACCURACY = Metric("acc", higher=True, kind="choices")
PERPLEXITY = Metric("perplexity", higher=False, kind="target")


def outcome(
    score: Sequence[float], loss: Sequence[float] | None = None, weight: Sequence[float] | None = None
) -> Outcome:
    n = len(score)
    return Outcome(
        np.asarray(score, float),
        np.asarray(np.zeros(n) if loss is None else loss, float),
        np.asarray(np.ones(n) if weight is None else weight, float),
    )


def space(genes: int = 12, levels: int = 8, seed: int = 0) -> Space:
    """Convex-ish curves of very different steepness."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(genes):
        size = int(rng.integers(200, 2000))
        costs = np.linspace(size, size * 0.1, levels).round().astype(int)
        shape = np.linspace(0, 1, levels) ** rng.uniform(1.2, 3.5)
        losses = shape * rng.lognormal(-2.5, 1.0)
        made.append(Gene(f"part {i}", tuple(map(int, costs)), tuple(map(float, losses))))
    return Space(tuple(made), fixed=500)


@dataclass
class Landscape:
    """A task whose true loss is the predicted one times hidden factors: rows go wrong as the loss grows.

    Row r is right while the loss is below its threshold; its smooth loss is the total with a little noise of its own.
    """

    space: Space
    rows: int = 200
    spread: float = 0.0  # of the hidden log factors
    noise: float = 0.02
    seed: int = 0
    calls: list[tuple[Genome, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.factors = np.exp(rng.normal(0, self.spread, len(self.space.genes)))
        self.thresholds = rng.exponential(1.0, self.rows)
        self.thresholds[rng.random(self.rows) < 0.2] = -1.0  # the dense model is wrong there too
        self.offsets = rng.normal(0, 1, self.rows)

    def truth(self, genome: Genome) -> float:
        return self.space.loss(genome, self.factors.tolist())

    def __call__(self, genome: Genome, start: int, stop: int) -> Outcome:
        self.calls.append((genome, start, stop))
        loss = self.truth(genome)
        return Outcome(
            (loss <= self.thresholds[start:stop]).astype(float),
            1.0 + loss * (1 + self.noise * self.offsets[start:stop]) + 0.3 * self.offsets[start:stop],
            np.ones(stop - start),
        )

    def goal(self, tolerance: float = 0.05) -> Goal:
        return Goal(self(self.space.dense, 0, self.rows), tolerance, ACCURACY)

    def best(self, goal: Goal) -> int:
        """Cost of the smallest feasible genome along the true Lagrangian path."""
        space, factors = self.space, self.factors.tolist()
        low, high = space.cost(space.smallest), space.cost(space.dense)
        while high - low > 1:
            middle = (low + high) // 2
            met = goal.met(self(space.solve(middle, factors), 0, self.rows))
            low, high = (low, middle) if met else (middle, high)
        return space.cost(space.solve(high, factors))
