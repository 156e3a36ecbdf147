"""Which rows of a pool may not be selected, and what is said about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from sentei.data.pools import PoolRow
from sentei.errors import InputError
from sentei.recover.select.filters import DEFAULTS, FILTERS, Evidence, reject
from sentei.recover.select.scores import Scores
from sentei.recover.select.strategies import Strategy

LOUD = 0.05  # of the rows; more rejected rows are shown with examples
_EXAMPLES, _WIDTH = 2, 160


def filter_names(strategy: Strategy, asked: Sequence[str] | None, target: bool) -> list[str]:
    """The filters that are asked for, else those of the strategy.

    Raises:
        InputError: an unknown one; "off-target" without a target.
    """
    names = [*DEFAULTS, *(["off-target"] if target else [])] if strategy.filters else []
    names = names if asked is None else [*asked]
    for name in names:
        FILTERS[name]
    if "off-target" in names and not target:
        raise InputError("the filter 'off-target' needs texts of the wanted capability; give some with --target")
    return names


def rejections(
    rows: Sequence[PoolRow], scores: Scores, evidence: Evidence, names: Sequence[str], idle: Mapping[int, str]
) -> list[str | None]:
    """The first reason against each row; a row that trains nothing (`idle`: row -> why) can never be selected."""
    reasons = reject(rows, evidence, names)
    for row in np.flatnonzero(np.isnan(scores.dense_nll)).tolist():
        reasons[row] = reasons[row] or idle.get(row, "no response among the tokens that are read")
    return reasons


def said(found: Sequence[str | None], rows: Sequence[PoolRow]) -> list[str]:
    """How many rows are rejected and by what; examples of each reason where they are many."""
    counts = Counter(_kind(reason) for reason in found if reason)
    total = counts.total()
    if not total:
        return []
    each = ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())
    lines = [f"{total:,} of {len(rows):,} rows are rejected ({100 * total / len(rows):.1f} %): {each}"]
    if total <= LOUD * len(rows):
        return lines
    for kind, _ in counts.most_common():
        some = [(row, reason) for row, reason in zip(rows, found, strict=True) if reason and _kind(reason) == kind]
        for row, reason in some[:_EXAMPLES]:
            lines.append(f"  {row.place}: {' '.join(reason.split()):.{_WIDTH}}")
    return [*lines, "  if these are good rows: --filters chooses the filters, --languages the languages"]


def _kind(reason: str) -> str:
    """The filter that rejected a row; else why it trains nothing."""
    name = reason.partition(":")[0]
    return name if name in FILTERS else "nothing to train"
