"""Rows that are in the pool already, but for a few characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sentei.data.pools import PoolRow
from sentei.recover.select.filters.base import Evidence, Filter
from sentei.recover.select.filters.similar import candidates, grams, jaccard, normalise, numbers

SIMILAR = 0.85  # Jaccard similarity of 6-grams, of the questions and of the answers
WORDS = 4  # that may differ between the questions: under one long text, another question is a small difference


def _find(rows: Sequence[PoolRow], _: Evidence) -> dict[int, str]:
    prompts = [normalise(row.prompt) for row in rows]
    responses = [normalise(row.response) if row.turns else "" for row in rows]

    @lru_cache(maxsize=10_000)
    def sets(i: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        return grams(prompts[i]), grams(responses[i])

    def similarity(i: int, j: int) -> float:
        """The lower one of the questions' and the answers'; 0 where they are not the same row all the same."""
        if numbers(prompts[i]) != numbers(prompts[j]) or numbers(responses[i]) != numbers(responses[j]):
            return 0.0
        if prompts[i] == prompts[j] and responses[i] != responses[j]:
            return 0.0  # which of two answers is better is not for this filter: a "not" is a small difference too
        a, b = Counter(prompts[i].split()), Counter(prompts[j].split())
        if (a - b).total() + (b - a).total() > WORDS:
            return 0.0
        return min(jaccard(x, y) for x, y in zip(sets(i), sets(j), strict=True))

    found: dict[int, str] = {}
    kept_by: dict[int, int] = {}
    pairs = candidates([f"{prompt}\n{response}" for prompt, response in zip(prompts, responses, strict=True)])
    for i, j in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
        first = kept_by.get(i, i)  # a copy of a copy is compared with what is kept
        if j not in found and (value := similarity(first, j)) >= SIMILAR:
            kept_by[j] = first
            same = "the same as" if value == 1 else "nearly the same as"
            found[j] = f"{same} row {rows[first].id} (similarity {value:.2f})"
    return found


DUPLICATE = Filter("duplicate", _find, f"question and answer as in an earlier row (6-gram similarity from {SIMILAR})")
