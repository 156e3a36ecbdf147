"""What a search chooses from: genes with priced levels, and the knapsack over them.

A *gene* is a part of the model (or one matrix) with its variants; a *genome* picks a level of every gene. Prices are
exact; losses are predictions and additive, so that a genome for any budget is made in milliseconds, without a model.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from sentei.errors import InfeasibleError
from sentei.files import hash_json

Genome = tuple[int, ...]  # the level of each gene; 0: dense
DETOURS = 32  # segments that a solution goes on without, at most
CLOSE = 1e-4  # so near to the bound of the relaxation no detour is worth its time


@dataclass(frozen=True)
class Gene:
    """One thing that is chosen.

    Attributes:
        name: of the part or matrix; unique in its space.
        costs: of each level, in the unit of the budget; strictly decreasing, level 0 is dense.
        losses: predicted loss of each level, nats; not decreasing.

    Raises:
        ValueError: lengths that differ, or values that are not in order.
    """

    name: str
    costs: tuple[int, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.costs or len(self.costs) != len(self.losses):
            raise ValueError(f"gene {self.name!r} has {len(self.costs)} costs and {len(self.losses)} losses")
        if self.costs[-1] < 0 or any(a <= b for a, b in zip(self.costs, self.costs[1:], strict=False)):
            raise ValueError(f"costs of gene {self.name!r} must fall strictly and not below 0, got {self.costs[:8]}…")
        if not all(map(math.isfinite, self.losses)) or any(
            a > b for a, b in zip(self.losses, self.losses[1:], strict=False)
        ):
            raise ValueError(f"losses of gene {self.name!r} must be finite and not fall, got {self.losses[:8]}…")

    @cached_property
    def steps(self) -> tuple[tuple[int, float], ...]:
        """Of each level but the last: the deeper level with the least loss per cost saved, and that slope.

        Followed from level 0 they are the corners of the lower convex hull of (cost, loss), in rising slope.
        """
        last = len(self.costs) - 1
        found: list[tuple[int, float]] = [(last, math.inf)] * (last + 1)
        for level in reversed(range(last)):
            to = level + 1
            while to < last and self.slope(level, to) > found[to][1]:
                to = found[to][0]
            found[level] = (to, self.slope(level, to))
        return tuple(found[:last])

    def slope(self, level: int, deeper: int) -> float:
        """Predicted loss per unit of cost that going to a deeper level saves."""
        return (self.losses[deeper] - self.losses[level]) / (self.costs[level] - self.costs[deeper])


@dataclass(frozen=True)
class Space:
    """All genomes, what they cost and what they are predicted to lose.

    Attributes:
        genes: the choices.
        fixed: what every genome costs besides its genes.
    """

    genes: tuple[Gene, ...]
    fixed: int = 0

    def __post_init__(self) -> None:
        if not self.genes or len({gene.name for gene in self.genes}) != len(self.genes):
            raise ValueError(f"a space needs genes with names of their own, got {[gene.name for gene in self.genes]}")

    @property
    def dense(self) -> Genome:
        """Nothing removed."""
        return (0,) * len(self.genes)

    @property
    def smallest(self) -> Genome:
        """Every gene at its last level."""
        return tuple(len(gene.costs) - 1 for gene in self.genes)

    @cached_property
    def key(self) -> str:
        """Hash of names and costs: what genomes are. Predictions may differ in their last bits from day to day."""
        return hash_json([self.fixed, [[gene.name, gene.costs] for gene in self.genes]])

    def digest(self, genome: Genome) -> str:
        """Hash of a genome in this space."""
        return hash_json([self.key, genome])

    def cost(self, genome: Genome) -> int:
        """Exact cost, in the unit of the budget."""
        return self.fixed + sum(gene.costs[level] for gene, level in zip(self.genes, genome, strict=True))

    def loss(self, genome: Genome, multipliers: Sequence[float] | None = None) -> float:
        """Predicted loss, nats: the sum over genes, each times its multiplier."""
        losses = [gene.losses[level] for gene, level in zip(self.genes, genome, strict=True)]
        return float(np.dot(losses, self._multipliers(multipliers)))

    def removed(self, genome: Genome) -> float:
        """Share of the dense cost that a genome saves."""
        return 1 - self.cost(genome) / self.cost(self.dense)

    def even(self, share: float) -> Genome:
        """The same share (0 to 1) of every gene's cost removed: of each gene the level that is nearest to it."""
        return tuple(
            min(range(len(gene.costs)), key=lambda i: (abs(gene.costs[i] - (1 - share) * gene.costs[0]), i))
            for gene in self.genes
        )

    def at(self, share: float, multipliers: Sequence[float] | None = None) -> Genome:
        """`solve` for the budget that removes `share` of the dense cost."""
        return self.solve(math.floor(self.cost(self.dense) * (1 - share)), multipliers)

    def solve(self, budget: float, multipliers: Sequence[float] | None = None) -> Genome:
        """The least predicted loss within a budget: Lagrangian relaxation, then the slack is filled.

        The relaxation takes hull segments in rising loss per cost until the budget is met, which is the optimum for
        every budget that it meets exactly (Everett, Operations Research 11, 1963); between these, the loss is at most
        one segment above the optimum. Where that last segment saves more than was asked for, genes with finer levels
        may do for less: the walk goes on without it, and the best of such genomes is taken.

        Args:
            budget: the most that it may cost.
            multipliers: factors [genes] on the predicted losses.

        Raises:
            InfeasibleError: the smallest genome costs more.
        """
        start, held, best = self.dense, set[int](), None
        if self.cost(start) <= budget:
            return start
        bound = -math.inf
        while len(held) < DETOURS and (walked := self._walk(start, budget, multipliers, held)):
            found, start, last = walked
            found = self.fill(found, budget, multipliers)
            best = min(best or found, found, key=lambda genome: self.loss(genome, multipliers))
            bound = bound if held else self._bound(start, last, budget, multipliers)
            if self.loss(best, multipliers) <= bound:
                break
            held.add(last)
        if best is None:
            self._refuse(budget)
        return best

    def _bound(self, start: Genome, last: int, budget: float, multipliers: Sequence[float] | None) -> float:
        """What no genome within the budget loses less than, but for `CLOSE`: the first segment to meet it, in part."""
        slope = self.genes[last].steps[start[last]][1] * self._multipliers(multipliers)[last]
        return (1 + CLOSE) * (self.loss(start, multipliers) + float(slope) * (self.cost(start) - budget))

    def shrink(self, genome: Genome, budget: float, multipliers: Sequence[float] | None = None) -> Genome:
        """Goes from a genome down its genes' hulls, the least loss per cost first, until the budget is met.

        Raises:
            InfeasibleError: the smallest genome costs more.
        """
        if self.cost(genome) <= budget:
            return genome
        walked = self._walk(genome, budget, multipliers)
        if walked is None:
            self._refuse(budget)
        return walked[0]

    def _refuse(self, budget: float) -> NoReturn:
        least = self.cost(self.smallest)
        raise InfeasibleError(
            f"the smallest choice costs {least:,}, more than the {budget:,.0f} asked for; ask for more"
        )

    def _walk(
        self, genome: Genome, budget: float, multipliers: Sequence[float] | None, held: Collection[int] = ()
    ) -> tuple[Genome, Genome, int] | None:
        """Down the hulls of all genes but those held.

        Returns:
            The first genome within the budget, the one before it, and the gene between them; None where there is none.
        """
        factors, levels, cost = self._multipliers(multipliers), list(genome), self.cost(genome)

        def step(i: int) -> tuple[float, int]:
            return float(factors[i]) * self.genes[i].steps[levels[i]][1], i

        heap = [step(i) for i, gene in enumerate(self.genes) if i not in held and levels[i] < len(gene.costs) - 1]
        heapq.heapify(heap)
        while heap:
            _, i = heapq.heappop(heap)
            gene, level = self.genes[i], levels[i]
            levels[i] = gene.steps[level][0]
            cost -= gene.costs[level] - gene.costs[levels[i]]
            if cost <= budget:
                return tuple(levels), (*levels[:i], level, *levels[i + 1 :]), i
            if levels[i] < len(gene.costs) - 1:
                heapq.heappush(heap, step(i))
        return None

    def evenly(self, budget: float) -> Genome:
        """The same share of every gene's cost removed, as little as the budget allows; then the slack is filled.

        Raises:
            InfeasibleError: the smallest genome costs more.
        """
        if self.cost(self.smallest) > budget:
            self._refuse(budget)
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.cost(self.even(middle)) <= budget else (middle, high)
        return self.fill(self.even(high), budget)

    def fill(
        self,
        genome: Genome,
        budget: float,
        multipliers: Sequence[float] | None = None,
        locked: Collection[int] = (),
    ) -> Genome:
        """Spends what a genome leaves of a budget: the most predicted loss per cost first. `locked` genes stay."""
        costs, losses = self._tables
        losses = losses * self._multipliers(multipliers)[:, None]
        levels, slack = np.array(genome), budget - self.cost(genome)
        genes = np.arange(len(levels))
        free = np.ones((len(levels), 1), bool)
        free[list(locked)] = False
        while True:
            extra = costs - costs[genes, levels][:, None]
            gain = losses[genes, levels][:, None] - losses
            fits = free & (extra > 0) & (extra <= slack) & (gain > 0)
            if not fits.any():
                return tuple(levels.tolist())
            rate = np.divide(gain, extra, out=np.full(gain.shape, -1.0), where=fits)
            i, level = divmod(int(rate.argmax()), rate.shape[1])
            slack -= float(extra[i, level])
            levels[i] = level

    def _multipliers(self, given: Sequence[float] | None) -> NDArray[np.float64]:
        return np.ones(len(self.genes)) if given is None else np.asarray(given, np.float64)

    @cached_property
    def _tables(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Costs and losses [genes, levels]; short rows repeat their last level, which is never worth going to."""
        width = max(len(gene.costs) for gene in self.genes)
        costs = [gene.costs + gene.costs[-1:] * (width - len(gene.costs)) for gene in self.genes]
        losses = [gene.losses + gene.losses[-1:] * (width - len(gene.losses)) for gene in self.genes]
        return np.array(costs, np.float64), np.array(losses, np.float64)
