"""Our search: from the knapsack's answer downwards, with what evaluations teach.

1. Bisection along the knapsack's path finds a first size that holds, hopeless sizes being given up on few rows.
2. Then generations: the budget is a step below the smallest genome that holds. Candidates for it are the knapsack's
   answer with the learnt corrections, its answers with drawn ones, and swaps in the best genomes (a gene goes down,
   another up). They race on growing sets of rows. Where one holds, the step grows; where none does for `patience`
   generations, it is halved, until it is below the resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sentei.errors import InfeasibleError
from sentei.progress import Progress
from sentei.prune.space import Genome, Space
from sentei.search.bisect import descend
from sentei.search.cache import Cache
from sentei.search.corrections import Corrections
from sentei.search.goal import ERROR, Evaluator, Goal
from sentei.search.ledger import Allowance, Ledger, Result, Spent
from sentei.search.racing import RUNGS, race
from sentei.search.workers import Mapper


@dataclass(frozen=True)
class Evolution:
    """Settings.

    Attributes:
        offspring: candidates of a generation.
        drawn: how many of them are the knapsack's answer with drawn corrections.
        parents: genomes that swaps start from.
        step: share of the dense cost by which the first budget is below what holds.
        growth: factor on the step after a success.
        patience: generations without success until the step is halved.
        resolution: the step at which the search ends.
        coarse: resolution of the bisection at the start.
        rungs: shares of the rows at which candidates race.
        keep: share of them that goes on.
        error: of the tests that drop candidates early.
        generations: at most.
    """

    offspring: int = 12
    drawn: int = 4
    parents: int = 4
    step: float = 0.03
    growth: float = 1.5
    patience: int = 2
    resolution: float = 0.005
    coarse: float = 0.05
    rungs: tuple[float, ...] = RUNGS
    keep: float = 0.5
    error: float = ERROR
    generations: int = 200


def evolve(
    space: Space,
    evaluate: Evaluator | Mapper,
    goal: Goal,
    *,
    settings: Evolution | None = None,
    seed: int = 0,
    allowance: Allowance | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Result:
    """The smallest genome that meets the goal, in few evaluations.

    Args:
        space: what is chosen from.
        evaluate: an evaluator, or workers.
        goal: what has to hold.
        settings: sizes and steps.
        seed: of all that is random.
        allowance: evaluations, deadline.
        cache: what is known already; with a journal the search can be resumed.
        progress: told about the evaluations.
    """
    settings, rng = settings or Evolution(), np.random.default_rng(seed)
    allowance = allowance or Allowance()
    with (progress or Progress()).stage("search", total=allowance.most, unit="evaluations") as bar:
        ledger = Ledger(space, evaluate, goal, allowance=allowance, cache=cache, bar=bar)
        try:
            descend(ledger, space.at, resolution=settings.coarse, neighbours=1, rungs=settings.rungs)
            return ledger.result(_generations(ledger, settings, rng))
        except Spent as why:
            return ledger.result(str(why))


def _generations(ledger: Ledger, settings: Evolution, rng: np.random.Generator) -> str:
    """Shrinks the best of the ledger; returns why it stopped."""
    space, step, stale, parents = ledger.space, settings.step, 0, [ledger.best.genome]
    for generation in range(settings.generations):
        before = ledger.best
        budget = before.cost - step * space.cost(space.dense)
        learnt = Corrections.learn(space, ledger.goal, list(ledger.trials.values()))
        candidates = _offspring(space, budget, learnt, parents, settings, rng)
        ahead = race(
            ledger,
            [genome for genome in candidates if genome not in ledger.trials],
            rungs=settings.rungs,
            keep=settings.keep,
            error=settings.error,
            by=f"generation {generation}",
        )
        parents = [ledger.best.genome, *(trial.genome for trial in ahead)][: settings.parents]
        stale = 0 if ledger.best is not before else stale + 1
        if not stale:
            step *= settings.growth
        elif stale == settings.patience or not candidates:
            step, stale = step / 2, 0
        if step < settings.resolution:
            return "stagnation"
    return "generations"


def _offspring(
    space: Space,
    budget: float,
    learnt: Corrections,
    parents: Sequence[Genome],
    settings: Evolution,
    rng: np.random.Generator,
) -> list[Genome]:
    """Different genomes within a budget; none where the space has nothing so small."""
    try:
        found = {space.solve(budget, learnt.mean.tolist()): None}
        for _ in range(settings.drawn):
            found[space.solve(budget, learnt.draw(rng).tolist())] = None
        for i in range(4 * settings.offspring):  # swaps may repeat each other
            if len(found) >= settings.offspring:
                break
            parent = space.shrink(parents[i % len(parents)], budget, learnt.mean.tolist())
            found[swap(space, parent, budget, learnt.mean, rng)] = None
    except InfeasibleError:
        return []
    return list(found)


def swap(
    space: Space, genome: Genome, budget: float, multipliers: NDArray[np.float64], rng: np.random.Generator
) -> Genome:
    """One to three times: a gene some levels down, and others up by what it frees; the budget holds.

    A gene that loses little per cost goes down more often, one that gains much goes up more often; the probabilities
    are bounded by the median, so that a wrong prediction excludes nothing.
    """
    factors, levels, moved = multipliers.tolist(), list(genome), set()
    for _ in range(min(rng.integers(1, 4, 2))):
        down = [i for i, gene in enumerate(space.genes) if levels[i] < len(gene.costs) - 1]
        if not down:
            break
        slopes = [factors[i] * space.genes[i].slope(levels[i], levels[i] + 1) for i in down]
        i = down[_drawn(1 / _bounded(slopes), rng)]
        moved.add(i)
        levels[i] = min(levels[i] + _jump(rng), len(space.genes[i].costs) - 1)
        slack = budget - space.cost(tuple(levels))
        up = [
            j
            for j, gene in enumerate(space.genes)
            if j not in moved and levels[j] and gene.costs[levels[j] - 1] - gene.costs[levels[j]] <= slack
        ]
        if up:
            gains = [factors[j] * space.genes[j].slope(levels[j] - 1, levels[j]) for j in up]
            j = up[_drawn(_bounded(gains), rng)]
            levels[j] = next(
                level
                for level in range(levels[j])
                if space.genes[j].costs[level] - space.genes[j].costs[levels[j]] <= slack
            )
            moved.add(j)
    return space.fill(tuple(levels), budget, factors, locked=moved)


def _bounded(rates: list[float]) -> NDArray[np.float64]:
    """Rates plus their median: the smallest and the largest are not infinitely far apart."""
    return np.array(rates) + max(float(np.median(rates)), 1e-30)


def _drawn(weights: NDArray[np.float64], rng: np.random.Generator) -> int:
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def _jump(rng: np.random.Generator) -> int:
    """1, 2, 4, 8, … levels, each half as often as the one before."""
    return 1 << int(rng.geometric(0.5) - 1)
