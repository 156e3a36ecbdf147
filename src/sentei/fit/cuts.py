"""Real cuts as candidates: what a search in place found is cut, measured, and cut further while it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentei.fit.setup import Setup
from sentei.metrics.score import Outcome
from sentei.plan import Plan
from sentei.progress import Progress
from sentei.prune.menu import Entry
from sentei.prune.space import Genome
from sentei.search.bisect import STEP, climb, holds
from sentei.search.cache import Cache
from sentei.search.ledger import Allowance, Ledger, Spent

RESOLUTION = 0.01


@dataclass(frozen=True)
class Candidate:
    """A plan that was cut, and what it scored on the search rows."""

    plan: Plan
    outcome: Outcome


class Cutter:
    """Makes the models of plans, and keeps the latest; as an evaluator, those of genomes of the menus."""

    def __init__(self, setup: Setup, progress: Progress) -> None:
        self.setup, self.progress, self.rows = setup, progress, len(setup.prepared["search"])
        self._plan: Plan | None = None
        self._model: Any = None

    def model(self, plan: Plan) -> Any:
        """The cut model of a plan."""
        if plan != self._plan:
            self._model = None  # freed before the next one is made
            self._model, self._plan = self.setup.cut(plan, self.progress), plan
        return self._model

    def candidate(self, entries: Sequence[Entry]) -> Candidate:
        """Cuts, and scores all search rows."""
        plan = self.setup.plan(entries)
        return Candidate(plan, self.setup.prepared["search"].score(self.model(plan)))

    def __call__(self, genome: Genome, start: int, stop: int) -> Outcome:
        """Scores search rows `start` to `stop`."""
        model = self.model(self.setup.plan(self.setup.menus.entries(genome)))
        return self.setup.prepared["search"].score(model, start, stop)


def climbed(
    setup: Setup, cutter: Cutter, genome: Genome, *, deadline: float, journal: Path, progress: Progress
) -> tuple[list[Candidate], float, list[dict[str, Any]], str]:
    """Cuts from a genome on along the knapsack's path, smaller while they hold and larger while they do not.

    The first cut is made whatever the deadline says: a search that ends late is worth more than one that gives nothing.

    Returns:
        Those that hold on the search rows, the smallest first; how many were scored; the history; why it ended.
    """
    space = setup.menus.space
    with progress.stage("cuts") as bar:
        cache = Cache(space, setup.goal.rows, journal, setup.identity)
        ledger = Ledger(space, cutter, setup.goal, cache=cache, bar=bar)
        path, start = around(setup, genome), space.removed(genome) or STEP
        holds(ledger, path, start, (1.0,))
        ledger.allowance = Allowance(deadline=deadline, pace=setup.cut_seconds)
        try:
            climb(ledger, path, start=start, resolution=RESOLUTION)
            ended = "resolution"
        except Spent as why:
            progress.say(f"  cuts: ended by the {why}")
            ended = str(why)
    held = [trial for trial in ledger.trials.values() if trial.genome != space.dense and setup.goal.met(trial.outcome)]
    held.sort(key=lambda trial: trial.cost)
    found = [Candidate(setup.plan(setup.menus.entries(trial.genome)), trial.outcome) for trial in held]
    return found, ledger.evaluations, ledger.history, ended


def around(setup: Setup, genome: Genome) -> Callable[[float], Genome]:
    """The path of shares through a genome: what it chose stays as far as the size allows."""
    space = setup.menus.space

    def path(share: float) -> Genome:
        size = math.floor(space.cost(space.dense) * (1 - share))
        return space.fill(space.shrink(genome, size), size)

    return path
