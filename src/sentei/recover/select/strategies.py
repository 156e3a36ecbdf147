"""Strategies: which cluster gets how much of the budget, and which of its rows come first.

A strategy looks at the candidates and says two things: a weight per cluster and a score per row. The budget, the
filters and the reasons are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sentei.data.pools import PoolRow
from sentei.errors import InputError, unknown
from sentei.recover.select.scores import Scores

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """What a strategy may look at.

    Attributes:
        rows: of the pool, N.
        tokens: of each row, prompt and response, int64 [N].
        clusters: of each row, int64 [N].
        allowed: which rows no filter rejected, bool [N].
        scores: damage and likelihoods.
        ids: a published selection, best first, where one was given.
        temperature: exponent on the damage of a cluster; 0 makes all clusters equal.
        weights: of the user, by cluster; 1 where none is given.
        target: share of the wanted capability's texts in each cluster [K], where such texts were given.
        seed: of whatever is random.
    """

    rows: Sequence[PoolRow]
    tokens: NDArray[np.int64]
    clusters: NDArray[np.int64]
    allowed: NDArray[np.bool_]
    scores: Scores
    ids: Sequence[str] = ()
    temperature: float = 1.0
    weights: Mapping[int, float] = field(default_factory=dict)
    target: Floats | None = None
    seed: int = 0

    @property
    def count(self) -> int:
        """Number of clusters, K."""
        return int(self.clusters.max()) + 1

    def damage(self) -> Floats:
        """Mean damage of each cluster's allowed rows [K] (CDS); 0 where it has none."""
        jsd = self.scores.jsd.astype(np.float64)
        rows = self.allowed & np.isfinite(jsd)
        sums = np.bincount(self.clusters[rows], jsd[rows], self.count)
        return sums / np.maximum(1, np.bincount(self.clusters[rows], minlength=self.count))

    def by_damage(self) -> Floats:
        """Weight of each cluster: its damage, tempered, times what the user and the target say."""
        weights = self.weighted(self.damage() ** self.temperature)
        return weights if self.target is None else weights * self.target

    def weighted(self, weights: Floats) -> Floats:
        """Weights of the clusters times what the user says.

        Raises:
            InputError: a factor for a cluster that there is not.
        """
        weights = weights.copy()
        for cluster, weight in self.weights.items():
            if not 0 <= cluster < self.count:
                raise InputError(f"a weight is given for cluster {cluster}, the clusters are 0 to {self.count - 1}")
            weights[cluster] *= weight
        return weights


@dataclass(frozen=True)
class Preference:
    """Scores [N], the highest first, and weights [K]; None: the clusters do not matter."""

    scores: Floats
    weights: Floats | None = None


@dataclass(frozen=True)
class Strategy:
    """One line of `STRATEGIES`.

    Attributes:
        prefer: the strategy itself.
        explain: what it does, for `sentei methods` and the page.
        filters: whether the default filters are on; a baseline takes the pool as it is.
        concepts: whether PASER's concept graph is on.
        takes_all: whether it takes every row, whatever the budget.
    """

    prefer: Callable[[Candidates], Preference]
    explain: str
    filters: bool = False
    concepts: bool = False
    takes_all: bool = False


def _efficiency(c: Candidates) -> Floats:
    """Damage by the logarithm of the cost (IES): JSD / (2 ln tokens). PASER, arXiv 2502.12594, equation 7."""
    efficiency: Floats = c.scores.jsd / (2 * np.log(np.maximum(2, c.tokens)))
    return efficiency


def _density(c: Candidates) -> Floats:
    """Damage that training meets per token that it reads: mean JSD · response tokens / all tokens.

    A budget in tokens is spent on prompts too, and a mean says nothing of how many tokens there are to learn from: by
    PASER's score the rows of a budget hold less damage than random ones, because short rows come first.
    """
    density: Floats = c.scores.jsd.astype(np.float64) * c.scores.counts / np.maximum(1, c.tokens)
    return density


def _random(c: Candidates) -> Floats:
    return np.random.default_rng(c.seed).random(len(c.rows))


def _published_list(c: Candidates) -> Preference:
    if not c.ids:
        raise InputError("the strategy 'ids' needs a list of ids; give one with --ids FILE")
    rank = {id: -float(place) for place, id in enumerate(c.ids)}
    known = {row.id for row in c.rows}
    missing = [id for id in c.ids if id not in known]
    if missing:
        raise InputError(f"{len(missing)} of {len(c.ids)} ids are not in the pool, the first is {missing[0]!r}")
    return Preference(np.array([rank.get(row.id, -np.inf) for row in c.rows]))


def _paser(c: Candidates) -> Preference:
    return Preference(_efficiency(c), c.by_damage())


STRATEGIES: dict[str, Strategy] = {
    "auto": Strategy(
        lambda c: Preference(_density(c), c.by_damage()),
        "budget by each cluster's damage, rows by damage per token that training reads, with filters",
        True,
    ),
    "efficiency": Strategy(_paser, "PASER's shares and scores, with filters in place of its concept graph", True),
    "paser": Strategy(
        _paser,
        "budget by each cluster's damage, rows by damage per cost, concept graph (arXiv 2502.12594)",
        concepts=True,
    ),
    "uniform": Strategy(
        lambda c: Preference(_random(c), c.weighted(np.ones(c.count))), "the same from every cluster, at random"
    ),
    "random": Strategy(lambda c: Preference(_random(c)), "at random"),
    "length": Strategy(lambda c: Preference(c.tokens.astype(np.float64)), "the longest rows"),
    "perplexity": Strategy(
        lambda c: Preference(c.scores.pruned_nll.astype(np.float64)),
        "the answers that the pruned model finds hardest",
    ),
    "ifd": Strategy(
        lambda c: Preference(np.where(c.scores.ifd < 1, c.scores.ifd, -c.scores.ifd).astype(np.float64)),
        "the highest instruction-following difficulty below 1: PPL(answer | question) / PPL(answer) (arXiv 2308.12032)",
    ),
    "ids": Strategy(_published_list, "a published list of ids, in its order"),
    "all": Strategy(lambda c: Preference(np.zeros(len(c.rows))), "every row, whatever the budget", takes_all=True),
}


def find_strategy(name: str) -> Strategy:
    """A strategy by name.

    Raises:
        InputError: there is none of this name.
    """
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    return STRATEGIES[name]
