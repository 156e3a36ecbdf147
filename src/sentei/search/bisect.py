"""The smallest share that a path through the space can lose: bisection, then a look beyond what it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sentei.errors import InfeasibleError
from sentei.progress import Progress
from sentei.prune.space import Genome, Space
from sentei.search.cache import Cache
from sentei.search.goal import Evaluator, Goal
from sentei.search.ledger import Allowance, Ledger, Result, Spent
from sentei.search.racing import stops
from sentei.search.workers import Mapper

if TYPE_CHECKING:
    from sentei.metrics.score import Outcome

RESOLUTION = 0.01
NEIGHBOURS = 2
STEP = 0.12  # of the first move of a climb

Path = Callable[[float], Genome]  # share removed -> genome


def bisect(
    space: Space,
    evaluate: Evaluator | Mapper,
    goal: Goal,
    *,
    path: Path | None = None,
    resolution: float = RESOLUTION,
    neighbours: int = NEIGHBOURS,
    allowance: Allowance | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Result:
    """Bisects the share that is removed, each time on all rows.

    LLM-Sieve's uniform pruning (arXiv 2505.18350) with `path=space.even`, the default. Quality need not fall with
    size, so the next shares beyond the one that was found are tried too, and the search goes on from one that holds.

    Args:
        space: what is chosen from.
        evaluate: an evaluator, or workers.
        goal: what has to hold.
        path: the genome for a share; `space.at` is the water-filling one.
        resolution: the share is found to this.
        neighbours: how many shares beyond are tried.
        allowance: evaluations, deadline.
        cache: what is known already; with a journal the search can be resumed.
        progress: told about the evaluations.
    """
    allowance = allowance or Allowance()
    with (progress or Progress()).stage("bisection", total=allowance.most, unit="evaluations") as bar:
        ledger = Ledger(space, evaluate, goal, allowance=allowance, cache=cache, bar=bar)
        try:
            descend(ledger, path or space.even, resolution=resolution, neighbours=neighbours)
        except Spent as why:
            return ledger.result(str(why))
        return ledger.result("resolution")


def descend(
    ledger: Ledger,
    path: Path,
    *,
    resolution: float = RESOLUTION,
    neighbours: int = NEIGHBOURS,
    rungs: Sequence[float] = (1.0,),
) -> float:
    """The bisection itself.

    Args:
        ledger: measures.
        path: the genome for a share; one that raises `InfeasibleError` is too much.
        resolution: of the share.
        neighbours: shares beyond that are tried.
        rungs: shares of the rows; before the last a genome is only looked at, and given up when it is hopeless.

    Returns:
        The largest share that was found to hold, 0 (dense) to 1.

    Raises:
        Spent: the allowance is used up.
    """
    low, high = 0.0, 1.0
    while True:
        while high - low >= resolution:
            middle = (low + high) / 2
            low, high = (middle, high) if holds(ledger, path, middle, rungs) else (low, middle)
        beyond = [low + resolution * (i + 1) for i in range(neighbours) if low + resolution * (i + 1) <= 1]
        found = next((share for share in beyond if holds(ledger, path, share, rungs)), None)
        if found is None:
            return low
        low, high = found, min(1.0, found + resolution * (neighbours + 1))


def climb(ledger: Ledger, path: Path, *, start: float, step: float = STEP, resolution: float = RESOLUTION) -> float:
    """The largest share that holds near one that probably does: steps that grow, up or down, then bisection.

    For evaluations so dear that a bisection of everything is too much.

    Args:
        ledger: measures.
        path: the genome for a share.
        start: the share that is tried first.
        step: of the first move.
        resolution: of the share.

    Returns:
        The largest share that was found to hold.

    Raises:
        Spent: the allowance is used up.
    """
    low, high, share, up = 0.0, 1.0, start or step, True
    while high - low >= resolution:
        if holds(ledger, path, share, (1.0,)):
            low = share
        else:
            high, up = share, up and low > 0
        if high < 1 and low > 0:
            share = (low + high) / 2
        else:  # one end is unknown
            share = min(low + step, (low + 1) / 2) if up and high == 1 else max(high - step, high / 2)
            step *= 1.5
    return low


def holds(ledger: Ledger, path: Path, share: float, rungs: Sequence[float]) -> bool:
    """Whether the genome for a share meets the goal."""
    try:
        genome = path(share)
    except InfeasibleError:
        return False
    *looks, rows = stops(rungs, ledger.goal.rows)
    for stop in looks:
        if ledger.goal.hopeless(_outcome(ledger, genome, stop), looks=len(looks)):
            return False
    return ledger.goal.met(_outcome(ledger, genome, rows))


def _outcome(ledger: Ledger, genome: Genome, stop: int) -> Outcome:
    return ledger.measure([genome], stop, "bisection")[0].outcome
