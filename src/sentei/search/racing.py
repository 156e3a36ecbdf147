"""Racing: many candidates on few rows, few on all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sentei.prune.space import Genome
from sentei.search.goal import ERROR, below_zero, loss
from sentei.search.ledger import Ledger, Trial

RUNGS = (1 / 8, 1 / 4, 1 / 2, 1.0)
LEAST_ROWS = 16


def stops(rungs: Sequence[float], rows: int) -> list[int]:
    """Numbers of rows, rising, the last one all of them; none below `LEAST_ROWS`, where tests mean little."""
    counts = {max(round(rung * rows), LEAST_ROWS) for rung in rungs if rung < 1}
    return [*sorted(count for count in counts if count < rows), rows]


def race(
    ledger: Ledger,
    genomes: Sequence[Genome],
    *,
    rungs: Sequence[float] = RUNGS,
    keep: float = 0.5,
    error: float = ERROR,
    by: str = "race",
) -> list[Trial]:
    """Successive halving (Jamieson and Talwalkar, arXiv 1502.07943) with sequential tests.

    At every rung a candidate goes that will not meet the goal (`Goal.hopeless`) or will lose more than the one that
    leads (`behind`), each with `error` over all rungs; of the others the share `keep` with the least task loss goes on.
    The loss is smooth and the rows are the same for all, so it tells candidates of one size apart when the score cannot
    yet.

    Args:
        ledger: measures.
        genomes: candidates of about the same cost.
        rungs: shares of the rows, rising to 1.
        keep: share of the candidates that goes on from one rung to the next, rounded up.
        error: of each test.
        by: said in the history.

    Returns:
        The candidates that were ahead at the last rung that had any, the least loss first, as far as they were
        measured: on all rows for those that came to the end.

    Raises:
        Spent: the allowance is used up.
    """
    *looks, rows = stops(rungs, ledger.goal.rows)
    alive = list(dict.fromkeys(genomes))
    for stop in looks:
        ahead = sorted(ledger.measure(alive, stop, by), key=lambda trial: loss(trial.outcome))
        sound = [trial for trial in ahead if math.isfinite(loss(trial.outcome))]
        left = [t for t in sound if not ledger.goal.hopeless(t.outcome, looks=len(looks), error=error)]
        if not left:
            return ahead
        left = [t for t in left if not behind(t, left[0], rows, looks=len(looks), error=error)]
        alive = [trial.genome for trial in left[: math.ceil(keep * len(alive))]]
    return sorted(ledger.measure(alive, rows, by), key=lambda trial: loss(trial.outcome))


def behind(trial: Trial, leader: Trial, rows: int, *, looks: int = 1, error: float = ERROR) -> bool:
    """Whether a candidate, seen on as many rows as the leader, will lose more than it on all of them."""
    gain = leader.outcome.loss - trial.outcome.loss
    return below_zero(gain, trial.outcome.weight, rows, looks=looks, error=error)
