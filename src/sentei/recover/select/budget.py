"""Sharing a budget between clusters: exactly, in proportion, and never more than a cluster has."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sentei.errors import InputError

_NOTHING = 1e-12  # a weight below this part of the largest counts as zero


def split(total: int, weights: ArrayLike, capacity: ArrayLike, minimum: int = 0) -> NDArray[np.int64]:
    """Whole shares of a budget: water-filling, then largest remainder.

    The real-valued shares are `clip(λ · weight, minimum, capacity)`, with the λ at which they add up to the total: in
    proportion to the weights, except where a cluster is at a bound; what a full cluster cannot take goes to the others
    in the same proportion. They are rounded down, and the largest remainders get the units that are left (a tie goes to
    the lower index). PASER's `floor(B · w / Σ w)` (arXiv 2502.12594, equation 6) instead loses units to the rounding
    and to clusters that are too small.

    Args:
        total: units (samples or tokens) to share out.
        weights: [K], at least 0; only their proportions count. A cluster of weight 0 gets more than its minimum only
            after all others are full; then, and where all weights are 0, the capacities are the weights.
        capacity: [K], whole units that each cluster has.
        minimum: units for every cluster that has so many; a smaller cluster gives all it has.

    Returns:
        [K]; the sum is `min(total, sum of capacity)`.

    Raises:
        InputError: a weight that is negative, NaN or infinite; a negative total, capacity or minimum; minima that are
            more than the total together.
    """
    wanted, most = np.asarray(weights, dtype=np.float64), np.asarray(capacity, dtype=np.int64)
    if wanted.shape != most.shape or wanted.ndim != 1:
        raise InputError(
            f"{list(wanted.shape)} weights do not match {list(most.shape)} capacities; give one per cluster"
        )
    wrong = np.flatnonzero(~np.isfinite(wanted) | (wanted < 0))
    if len(wrong):
        raise InputError(
            f"the weight of cluster {wrong[0]} is {wanted[wrong[0]]}, expected a finite number of at least 0"
        )
    for name, value in (("total", total), ("minimum", minimum), ("smallest capacity", int(most.min(initial=0)))):
        if value < 0:
            raise InputError(f"the {name} of a budget is {value}, expected at least 0")
    least, target = np.minimum(minimum, most), min(total, int(most.sum()))
    if least.sum() > target:
        raise InputError(
            f"at least {minimum} for each of {len(most)} clusters is {least.sum()} in all, the budget is {target}; "
            "lower the minimum per cluster or raise the budget"
        )
    return _split(target, wanted, least, most)


def _split(
    target: int, weights: NDArray[np.float64], least: NDArray[np.int64], most: NDArray[np.int64]
) -> NDArray[np.int64]:
    """`split` with `least <= most` and a target between their sums."""
    shares = least.copy()
    if target == least.sum():
        return shares
    asked = weights > _NOTHING * weights.max(initial=0.0)
    if not asked.any():
        weights, asked = most.astype(np.float64), most > 0
    rest = target - int(most[asked].sum() + least[~asked].sum())
    if rest >= 0:  # all that have a weight are full
        shares[asked] = most[asked]
        if (~asked).any():
            left = ~asked
            shares[left] = _split(rest + int(least[left].sum()), np.zeros(left.sum()), least[left], most[left])
        return shares
    real = _fill(target - int(least[~asked].sum()), weights[asked] / weights.max(), least[asked], most[asked])
    whole = np.floor(real)
    missing = target - int(least[~asked].sum() + whole.sum())
    whole[np.argsort(whole - real, kind="stable")[:missing]] += 1
    shares[asked] = whole.astype(np.int64)
    return shares


def _fill(
    target: int, weights: NDArray[np.float64], least: NDArray[np.int64], most: NDArray[np.int64]
) -> NDArray[np.float64]:
    """`clip(λ · weights, least, most)` that adds up to the target: bisection on λ, to the last bit."""
    low, high = 0.0, float(most.max()) / _NOTHING
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(middle * weights, least, most).sum() < target else (low, middle)
    filled: NDArray[np.float64] = np.clip(high * weights, least, most)
    return filled


def take_tokens(
    order: Sequence[NDArray[np.int64]], tokens: NDArray[np.int64], shares: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Whole rows for a budget in tokens.

    The cluster that lacks most of its share gives its next row, again and again, so every cluster ends within about
    one row of its share, and what one cannot use goes to those that lack most. A row that is longer than what is left
    of the whole budget is passed over. At the end no row that was left behind would fit: the total is below the budget
    by less than the shortest of them.

    Args:
        order: per cluster, its rows (indices into `tokens`), the preferred ones first.
        tokens: of every row.
        shares: tokens per cluster; their sum is the budget.

    Returns:
        Per cluster the rows taken, in the given order.
    """
    left = int(shares.sum())
    taken: list[list[int]] = [[] for _ in order]
    rows = [iter(cluster.tolist()) for cluster in order]
    queue = [(-int(share), k) for k, share in enumerate(shares)]  # what each lacks, the most first
    heapq.heapify(queue)
    while queue:
        lack, k = heapq.heappop(queue)
        row = next((row for row in rows[k] if tokens[row] <= left), None)  # a row too long now is too long for ever
        if row is None:
            continue
        taken[k].append(row)
        left -= int(tokens[row])
        heapq.heappush(queue, (lack + int(tokens[row]), k))
    return [np.array(cluster, dtype=np.int64) for cluster in taken]
