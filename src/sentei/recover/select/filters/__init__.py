"""Filters: which rows of a pool are no good, whatever they would teach. One file per filter, registered here.

A filter sees all rows that are left and gives a reason for each one that it rejects. The order matters: a row that a
cheap and certain filter took away is no witness for the next one.
"""

from __future__ import annotations

from collections.abc import Sequence

from sentei.data.pools import PoolRow
from sentei.recover.select.filters.base import Evidence, Filter
from sentei.registry import Registry

FILTERS: Registry[Filter] = Registry(
    "filter",
    {
        "empty": "sentei.recover.select.filters.empty:EMPTY",
        "leaked": "sentei.recover.select.filters.leaked:LEAKED",
        "language": "sentei.recover.select.filters.language:LANGUAGE",
        "duplicate": "sentei.recover.select.filters.duplicate:DUPLICATE",
        "contradiction": "sentei.recover.select.filters.contradiction:CONTRADICTION",
        "off-target": "sentei.recover.select.filters.off_target:OFF_TARGET",
    },
)

# `off-target` needs to be told the target; the others reject next to no clean row.
DEFAULTS = ("empty", "leaked", "language", "duplicate", "contradiction")


def reject(rows: Sequence[PoolRow], evidence: Evidence, names: Sequence[str] = DEFAULTS) -> list[str | None]:
    """Why each row is rejected, as `"filter: reason"`; None for rows that are kept.

    The filters run one after the other in the order of `names`, each on what the ones before it left.

    Raises:
        InputError: an unknown name; evidence that a filter needs and that is missing or of another length.
    """
    evidence.check(len(rows))
    filters = [FILTERS[name] for name in names]
    reasons: list[str | None] = [None] * len(rows)
    for filter in filters:
        left = [i for i, reason in enumerate(reasons) if reason is None]
        for i, reason in filter.find([rows[i] for i in left], evidence.take(left)).items():
            reasons[left[i]] = f"{filter.name}: {reason}"
    return reasons


__all__ = ["DEFAULTS", "FILTERS", "Evidence", "Filter", "reject"]
