"""What evaluations teach about the predictions: a factor per gene.

Predicted losses of genes are right in their order of magnitude, and add up nearly. With z the measured loss over the
predicted one, divided by its median, and F [trials, genes] the shares of the genes in the prediction,

    z = F m + noise,     m ~ N(1, τ²),     noise_i² = misfit² + (standard error of z_i)²

a Bayesian linear regression; draws from its posterior (Matheron's rule) are factors that fit what was seen and differ
where nothing was, so that a knapsack with drawn factors looks where there is something to learn (Thompson sampling).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from sentei.prune.space import Space
from sentei.search.goal import Goal, paired_loss
from sentei.search.ledger import Trial

SPREAD = 0.7  # τ
MISFIT = 0.1  # of the sum over genes
BOUNDS = (0.1, 10.0)
_MOST = 400  # trials, the latest


@dataclass(frozen=True)
class Corrections:
    """Factors on the predicted losses [genes], and how sure they are.

    Attributes:
        mean: of the posterior; all 1 where nothing is known.
    """

    mean: NDArray[np.float64]
    _shares: NDArray[np.float64]
    _ratios: NDArray[np.float64]
    _noise: NDArray[np.float64]

    @classmethod
    def learn(cls, space: Space, goal: Goal, trials: Sequence[Trial]) -> Corrections:
        """From trials on any number of rows, each against the dense model on the same rows."""
        rows = []
        for trial in trials[-_MOST:]:
            parts = np.array(
                [gene.losses[i] - gene.losses[0] for gene, i in zip(space.genes, trial.genome, strict=True)]
            )
            if (predicted := float(parts.sum())) > 0 and np.isfinite(trial.outcome.loss).all():
                measured, error = paired_loss(trial.outcome, goal.dense)
                rows.append((parts / predicted, measured / predicted, error / predicted))
        scale = float(np.median([ratio for _, ratio, _ in rows])) if rows else 0.0
        if scale <= 0:  # nothing was lost so far: nothing is known
            rows, scale = [], 1.0
        shares = np.array([share for share, _, _ in rows]).reshape(len(rows), len(space.genes))
        ratios = np.array([ratio for _, ratio, _ in rows]) / scale
        noise = np.hypot(MISFIT, np.array([error for _, _, error in rows]) / scale)
        blank = cls(np.ones(len(space.genes)), shares, ratios, noise)
        return cls(blank._posterior(np.ones(len(space.genes)), ratios), shares, ratios, noise)

    def draw(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Factors [genes] from the posterior."""
        prior = 1 + SPREAD * rng.standard_normal(len(self.mean))
        return self._posterior(prior, self._ratios + self._noise * rng.standard_normal(len(self._noise)))

    def _posterior(self, prior: NDArray[np.float64], ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        if not len(ratios):
            return np.clip(prior, *BOUNDS)
        kernel = SPREAD**2 * self._shares @ self._shares.T + np.diag(self._noise**2)
        pull = scipy.linalg.solve(kernel, ratios - self._shares @ prior, assume_a="pos")
        return np.clip(prior + SPREAD**2 * self._shares.T @ pull, *BOUNDS)
