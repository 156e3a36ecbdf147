"""Picking rows: an exact budget, shared between clusters, filled with each cluster's best rows."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sentei.errors import InputError
from sentei.recover.select.budget import split, take_tokens
from sentei.recover.select.strategies import Candidates, Strategy

_TOKENS = re.compile(r"(\d+(?:\.\d+)?)\s*([kM]?)\s*(?:t|tok|tokens)", re.ASCII)


@dataclass(frozen=True)
class Amount:
    """A budget: a share of the pool's rows, a number of rows, or a number of tokens."""

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str | float) -> Amount:
        """Reads "0.2", "20%", "500" or "40k tokens"; a number below 1 is a share, one of at least 1 a number of rows.

        Raises:
            InputError: anything else.
        """
        said = str(text).strip()
        found = _TOKENS.fullmatch(said)
        if found:
            return cls(float(found[1]) * {"": 1, "k": 1e3, "M": 1e6}[found[2]], "tokens")
        try:
            value = float(said.removesuffix("%")) / (100 if said.endswith("%") else 1)
        except ValueError:
            value = float("nan")
        if said.endswith("%") and 0 < value <= 1:
            return cls(value, "share")
        if 0 < value < 1:
            return cls(value, "share")
        if value >= 1 and value.is_integer() and not said.endswith("%"):
            return cls(value, "rows")
        raise InputError(
            f"budget {said!r} is not understood; give a share of the pool (0.2 or 20%), a number of rows (500) or of "
            "tokens ('40000 tokens')"
        )

    def units(self, rows: int) -> int:
        """Rows or tokens, for a pool of so many rows; at least one."""
        return max(1, round(self.value * rows)) if self.unit == "share" else int(self.value)

    def check(self, rows: int, tokens: int, rejected: int = 0) -> None:
        """Refuses a budget that a pool cannot fill.

        Args:
            rows: of the pool.
            tokens: of the rows that may be selected.
            rejected: how many rows may not be selected.

        Raises:
            InputError: it is too large.
        """
        total, unit = self.units(rows), "tokens" if self.unit == "tokens" else "rows"
        reachable = tokens if unit == "tokens" else rows - rejected
        if total > reachable:
            lost = f" ({rejected:,} of {rows:,} rows are rejected or have no score)" if rejected else ""
            mend = "lower --budget, or turn a filter off" if rejected else "lower --budget, or give a larger pool"
            raise InputError(
                f"the budget is {total:,} {unit}, the pool has {reachable:,} {unit} that may be selected{lost}; {mend}"
            )


@dataclass(frozen=True)
class Picked:
    """What was picked.

    Attributes:
        rows: positions in the pool, group by group, the best first.
        groups: which rows share a part of the budget, int64 [N]: the clusters, or all rows where those do not matter.
        shared: whether the groups are the clusters.
        shares: budget of each group, int64 [K].
        scores: of every row [N], as the strategy gave them.
        refused: rows that the concept graph refused, with the reason.
    """

    rows: list[int]
    groups: NDArray[np.int64]
    shared: bool
    shares: NDArray[np.int64]
    scores: NDArray[np.float64]
    refused: dict[int, str]


def pick(candidates: Candidates, strategy: Strategy, amount: Amount, minimum: int = 0) -> Picked:
    """Fills the budget.

    Raises:
        InputError: fewer rows are allowed than the budget asks for; a strategy whose scores are missing.
    """
    preference = strategy.prefer(candidates)
    scores = np.asarray(preference.scores, np.float64)
    usable = candidates.allowed & ~np.isnan(scores) & ~np.isneginf(scores)
    if not usable.any():
        if candidates.allowed.any():
            raise InputError("the scores that this strategy needs are not there; select from the models with it")
        raise InputError(f"all {len(usable)} rows are rejected, nothing can be selected; see the filters, --filters")
    whole = strategy.takes_all
    total = int(usable.sum()) if whole else amount.units(len(usable))
    in_tokens = amount.unit == "tokens" and not whole
    tokens = candidates.tokens
    if not whole:
        amount.check(len(usable), int(tokens[usable].sum()), len(usable) - int(usable.sum()))
    shared = preference.weights is not None
    if not shared and (minimum or candidates.weights):
        raise InputError(
            "this strategy does not look at clusters: --minimum and --weight mean nothing to it; leave them out"
        )
    groups = candidates.clusters if shared else np.zeros(len(usable), np.int64)
    weights = np.ones(1) if preference.weights is None else preference.weights
    costs = tokens if in_tokens else np.ones(len(usable), np.int64)
    refused: dict[int, str] = {}
    if strategy.concepts:
        refused = _refused(candidates, _orders(scores, usable, groups, len(weights)), weights, costs, total, minimum)
        usable = usable & ~np.isin(np.arange(len(usable)), list(refused))
    orders = _orders(scores, usable, groups, len(weights))
    shares = split(total, weights, [int(costs[order].sum()) for order in orders], minimum)
    if in_tokens:
        taken = take_tokens(orders, tokens, shares)
    else:
        taken = [order[:share] for order, share in zip(orders, shares, strict=True)]
    rows = [int(row) for some in taken for row in some]
    if not rows:
        raise InputError(
            f"the budget of {total:,} tokens is less than the shortest row ({int(tokens[usable].min()):,}); raise it"
        )
    return Picked(rows, groups, shared, shares, scores, refused)


def _orders(
    scores: NDArray[np.float64], usable: NDArray[np.bool_], groups: NDArray[np.int64], count: int
) -> list[NDArray[np.int64]]:
    """Usable rows of each group, the best first; equal scores in the order of the pool."""
    best = np.argsort(-scores, kind="stable")
    best = best[usable[best]]
    return [best[groups[best] == group].astype(np.int64) for group in range(count)]


def _refused(
    candidates: Candidates,
    orders: list[NDArray[np.int64]],
    weights: NDArray[np.float64],
    costs: NDArray[np.int64],
    total: int,
    minimum: int,
) -> dict[int, str]:
    """What PASER's concept graph refuses on the way to the budget, cluster by cluster as published.

    A refusal counts only while other rows can fill the budget: the graph would refuse most of a large pool.
    """
    from sentei.recover.select.concepts import ConceptGraph

    graph = ConceptGraph()
    refused: dict[int, str] = {}
    capacity = [int(costs[order].sum()) for order in orders]
    shares, spare = split(total, weights, capacity, minimum), sum(capacity) - total
    for order, share in zip(orders, shares, strict=True):
        taken = 0
        for row in order.tolist():
            if taken >= share:
                break
            if costs[row] > spare or graph.accepts(candidates.rows[row]):
                graph.add(candidates.rows[row])
                taken += int(costs[row])
            else:
                spare -= int(costs[row])
                refused[row] = "the concept graph refuses it: concepts seen before, never together"
    return refused
