"""Rows that answer the same question differently: one is kept.

Two questions are the same where they differ in case, white space, punctuation and words without meaning only.
Similarity is no test for that: questions of one template with another number, name or input are the most similar ones
of a pool.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from sentei.data.pools import PoolRow
from sentei.recover.select.filters.base import Evidence, Filter
from sentei.recover.select.filters.similar import grams, jaccard, normalise

# Signs that change what is asked stay: operators, brackets, currency, points and commas inside numbers.
_PUNCTUATION = re.compile(r"(?<!\d)[.,:]|[.,:](?!\d)|(?<![\d)])!(?!=)|[;?…\"'`´‘’“”„«»_]|(?<!\S)[-–—](?!\S)")
_POLITE = frozenset(("a", "an", "the", "please", "kindly", "s"))
_MANY = 50  # answers to one question that are compared with each other


def _question(row: PoolRow) -> str:
    """What is asked, without what makes no difference."""
    if not row.turns:
        return ""
    words = _PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", row.prompt).lower()).split()
    return " ".join(word for word in words if word not in _POLITE) or normalise(row.prompt)


def _best(group: Sequence[int], rows: Sequence[PoolRow], evidence: Evidence) -> tuple[int, str]:
    """The row to keep, and why."""
    if evidence.nll is not None:
        values = np.nan_to_num(evidence.nll[list(group)], nan=np.inf)
        if np.isfinite(values).any():
            return group[int(values.argmin())], "whose answer the dense model finds likeliest"
    if len(group) == 2:
        return group[0], "which comes first"
    sets = [grams(normalise(rows[i].response)) for i in group[:_MANY]]
    agreement = [sum(jaccard(a, b) for b in sets) for a in sets]
    return group[int(np.argmax(agreement))], "whose answer agrees most with the others"


def rivals(rows: Sequence[PoolRow]) -> list[list[int]]:
    """Rows that answer the same question, group by group; those that nobody else answers are left out."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if question := _question(row):
            groups[question].append(i)
    return [group for group in groups.values() if len(group) > 1]


def _find(rows: Sequence[PoolRow], evidence: Evidence) -> dict[int, str]:
    found = {}
    for group in rivals(rows):
        best, why = _best(group, rows, evidence)
        kept = grams(normalise(rows[best].response))
        for i in group:
            if i != best:
                similarity = jaccard(kept, grams(normalise(rows[i].response)))
                how = "alike" if similarity == 1 else f"differently (similarity {similarity:.2f})"
                found[i] = f"answers the question of row {rows[best].id}, {why}, {how}"
    return found


CONTRADICTION = Filter("contradiction", _find, "another answer to the same question; the likeliest one is kept")
