"""The genetic algorithm of LLM-Sieve (arXiv 2505.18350), with an order of merit that is right.

The published fitness, compression · (1 + exp(50 (acc − a0))), gives 0.95 to a model that is always wrong and keeps 5 %,
and 0.90 to one that meets the goal and keeps 55 %. Here what meets the goal comes first, then size, then task loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sentei.progress import Progress
from sentei.prune.space import Genome, Space
from sentei.search.cache import Cache
from sentei.search.goal import Evaluator, Goal
from sentei.search.ledger import Allowance, Ledger, Result, Spent, Trial
from sentei.search.workers import Mapper


@dataclass(frozen=True)
class Genetic:
    """Settings; the defaults are the paper's.

    Attributes:
        population: individuals per generation.
        generations: at most.
        uniform: individuals of the first generation that remove one share everywhere; the others are random.
        tournament: individuals of which the best becomes a parent.
        crossover: probability that a child has two parents, cut at one point.
        mutation: probability, per gene, of one step up or down.
        elite: individuals that live on as they are.
        patience: generations after which an improvement …
        improvement: … of less than this share of the size ends the search.
    """

    population: int = 100
    generations: int = 30
    uniform: int = 10
    tournament: int = 5
    crossover: float = 0.5
    mutation: float = 0.2
    elite: int = 1
    patience: int = 10
    improvement: float = 0.05


def genetic(
    space: Space,
    evaluate: Evaluator | Mapper,
    goal: Goal,
    *,
    settings: Genetic | None = None,
    seed: int = 0,
    allowance: Allowance | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Result:
    """Evolves genomes, each evaluated on all rows.

    Args:
        space: what is chosen from.
        evaluate: an evaluator, or workers.
        goal: what has to hold.
        settings: sizes and probabilities.
        seed: of all that is random.
        allowance: evaluations, deadline.
        cache: what is known already; with a journal the search can be resumed.
        progress: told about the generations.
    """
    settings, rng = settings or Genetic(), np.random.default_rng(seed)
    with (progress or Progress()).stage("genetic search", total=settings.generations, unit="generations") as bar:
        ledger = Ledger(space, evaluate, goal, allowance=allowance, cache=cache)
        population, sizes = _first(space, settings, rng), []
        try:
            for generation in range(settings.generations):
                trials = sorted(ledger.measure(population, by=f"generation {generation}"), key=ledger.rank)
                bar.advance()
                sizes.append(ledger.best.cost)
                if _stale(sizes, settings, space):
                    return ledger.result("stagnation")
                population = [trial.genome for trial in trials[: settings.elite]]
                while len(population) < settings.population:
                    population.append(_child(trials, space, settings, rng))
        except Spent as why:
            return ledger.result(str(why))
        return ledger.result("generations")


def _first(space: Space, settings: Genetic, rng: np.random.Generator) -> list[Genome]:
    shares = np.linspace(0, 1, settings.uniform + 2)[1:-1]
    levels = [len(gene.costs) for gene in space.genes]
    drawn = rng.integers(0, levels, (max(0, settings.population - settings.uniform), len(levels)))
    return [*(space.even(float(share)) for share in shares), *(tuple(row) for row in drawn.tolist())]


def _child(ranked: list[Trial], space: Space, settings: Genetic, rng: np.random.Generator) -> Genome:
    def parent() -> Genome:
        drawn = rng.integers(0, len(ranked), settings.tournament)
        return ranked[int(drawn.min())].genome  # they are in order of merit

    child = list(parent())
    if len(child) > 1 and rng.random() < settings.crossover:
        cut = int(rng.integers(1, len(child)))
        child[cut:] = parent()[cut:]
    for i in np.flatnonzero(rng.random(len(child)) < settings.mutation).tolist():
        step = 1 if rng.random() < 0.5 else -1
        child[i] = min(max(child[i] + step, 0), len(space.genes[i].costs) - 1)
    return tuple(child)


def _stale(sizes: list[int], settings: Genetic, space: Space) -> bool:
    """Whether the size has hardly fallen for long; while only the dense model meets the goal, the search goes on."""
    if len(sizes) <= settings.patience or sizes[-1] == space.cost(space.dense):
        return False
    return sizes[-1] > (1 - settings.improvement) * sizes[-1 - settings.patience]
