"""What a search has measured, and what it has spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sentei.files import finite
from sentei.progress import Bar
from sentei.prune.space import Genome, Space
from sentei.search.cache import Cache
from sentei.search.goal import Evaluator, Goal, loss, take
from sentei.search.workers import Mapper, Serial, Task

if TYPE_CHECKING:
    from sentei.metrics.score import Outcome

_RECENT = 5  # batches whose slowest pace is expected of the next one


class Spent(Exception):  # noqa: N818 - nothing is wrong: a search ends
    """The next evaluation would go over the allowance; the message says which."""


@dataclass(frozen=True)
class Allowance:
    """What a search may spend.

    Attributes:
        evaluations: of all rows, at most; a part of the rows counts as that part.
        deadline: on the clock; nothing is started that cannot end before it at the pace so far.
        pace: seconds that one evaluation of all rows is expected to take, until some are measured.
        clock: seconds.
    """

    evaluations: float = math.inf
    deadline: float = math.inf
    pace: float = 0.0
    clock: Callable[[], float] = time.monotonic

    @property
    def most(self) -> float | None:
        """The evaluations, where they are limited."""
        return self.evaluations if math.isfinite(self.evaluations) else None


@dataclass(frozen=True)
class Trial:
    """A genome that was evaluated: on its first `len(outcome.score)` rows."""

    genome: Genome
    cost: int
    outcome: Outcome


@dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes:
        genome: the smallest that meets the goal on all search rows; the dense one where nothing smaller does.
        cost: in the unit of the budget.
        outcome: on all search rows.
        feasible: whether it meets the goal.
        evaluations: how many of all rows were paid for; the dense model's is not among them.
        history: one JSON-able row per evaluation.
        stopped: why the search ended: "resolution", "stagnation", "generations", "evaluations" or "deadline".
    """

    genome: Genome
    cost: int
    outcome: Outcome
    feasible: bool
    evaluations: float
    history: list[dict[str, Any]]
    stopped: str


class Ledger:
    """Measures genomes for one search: what is known is taken from the cache, and everything is counted.

    Args:
        space: what genomes are.
        evaluate: an evaluator, or workers that hold one each.
        goal: with the dense model's outcome.
        allowance: what may be spent.
        cache: what is known already; default: nothing.
        bar: told how many evaluations were made.
    """

    def __init__(
        self,
        space: Space,
        evaluate: Evaluator | Mapper,
        goal: Goal,
        *,
        allowance: Allowance | None = None,
        cache: Cache | None = None,
        bar: Bar | None = None,
    ) -> None:
        self.space, self.goal, self.bar = space, goal, bar or Bar()
        self.mapper: Mapper = evaluate if isinstance(evaluate, Mapper) else Serial(evaluate)
        self.allowance = allowance or Allowance()
        self.cache = Cache(space, goal.rows) if cache is None else cache
        self.evaluations = 0.0
        self.history: list[dict[str, Any]] = []
        self.trials: dict[Genome, Trial] = {}
        self.best = self.trials[space.dense] = Trial(space.dense, space.cost(space.dense), goal.dense)
        self._paces: list[float] = []

    def measure(self, genomes: Sequence[Genome], stop: int | None = None, by: str = "") -> list[Trial]:
        """Outcomes on the first `stop` rows (default: all), one per genome; only what is missing is evaluated.

        Raises:
            Spent: the allowance does not cover all of them; those that it covers are in the history.
        """
        stop = self.goal.rows if stop is None else stop
        waiting = [genome for genome in dict.fromkeys(genomes) if self._seen(genome) < stop]
        while waiting:
            batch = self._allowed(waiting[: self.mapper.width], stop)
            for genome, outcome in zip(batch, self._outcomes(batch, stop), strict=True):
                self._record(genome, outcome, stop, by)
            waiting = waiting[len(batch) :]
        trials = [self.trials[genome] for genome in genomes]
        return [replace(trial, outcome=take(trial.outcome, 0, stop)) for trial in trials]

    def rank(self, trial: Trial) -> tuple[float, ...]:
        """Less is better: feasible first, then size, then task loss; what is infeasible by how far it is off."""
        if self.goal.met(trial.outcome):
            return (0, trial.cost, loss(trial.outcome))
        return (1, -self.goal.margin(trial.outcome), trial.cost)

    def result(self, stopped: str) -> Result:
        """The best so far."""
        best = self.best
        feasible = self.goal.met(best.outcome)
        return Result(best.genome, best.cost, best.outcome, feasible, self.evaluations, self.history, stopped)

    def _seen(self, genome: Genome) -> int:
        return len(self.trials[genome].outcome.score) if genome in self.trials else 0

    def _units(self, genome: Genome, stop: int) -> float:
        return (stop - self._seen(genome)) / self.goal.rows

    def _allowed(self, batch: list[Genome], stop: int) -> list[Genome]:
        """As much of a batch as the allowance covers."""
        left = self.allowance.evaluations - self.evaluations + 1e-9
        while batch and sum(self._units(genome, stop) for genome in batch) > left:
            batch = batch[:-1]
        if not batch:
            raise Spent("evaluations")
        live = [self._units(genome, stop) for genome in batch if self.cache.rows(genome) < stop]
        pace = max(self._paces[-_RECENT:], default=self.allowance.pace)
        if live and self.allowance.clock() + pace * max(live) >= self.allowance.deadline:
            raise Spent("deadline")
        return batch

    def _outcomes(self, batch: list[Genome], stop: int) -> list[Outcome]:
        """Outcomes on rows 0 to `stop`; what the cache does not hold is evaluated, and timed."""
        tasks: list[Task] = [(g, self.cache.rows(g), stop) for g in batch if self.cache.rows(g) < stop]
        if tasks:
            started = self.allowance.clock()
            for (genome, start, _), outcome in zip(tasks, self.mapper.map(tasks), strict=True):
                if len(outcome.score) != stop - start:
                    raise ValueError(f"the evaluator gave {len(outcome.score)} rows for {start} to {stop}")
                self.cache.add(genome, start, outcome)
            most = max(end - start for _, start, end in tasks) / self.goal.rows
            self._paces.append((self.allowance.clock() - started) / most)
        return [self.cache.get(genome, stop, self.goal.dense) for genome in batch]

    def _record(self, genome: Genome, outcome: Outcome, stop: int, by: str) -> None:
        units = self._units(genome, stop)
        self.evaluations += units
        self.bar.advance(units)
        trial = self.trials[genome] = Trial(genome, self.space.cost(genome), outcome)
        whole = stop == self.goal.rows
        if whole and self.rank(trial) < self.rank(self.best):
            self.best = trial
        self.history.append(
            {
                "by": by,
                "genome": list(genome),
                "cost": trial.cost,
                "removed": self.space.removed(genome),
                "rows": stop,
                "value": finite(self.goal.value(outcome)),
                "loss": finite(loss(outcome)),
                "met": self.goal.met(outcome) if whole else None,
                "evaluations": self.evaluations,
            }
        )
