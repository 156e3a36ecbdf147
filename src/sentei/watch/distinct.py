"""Requests that say the same: they count once, so that one that is sent again and again looks like no new topic."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SAME = 0.97  # cosine from which two embeddings are of one request, worded otherwise
_NUMBER = re.compile(r"\b\d[\d.,:/-]*")  # not those within a word


def first_of_each(texts: Sequence[str]) -> list[int]:
    """Positions of texts that differ from those before in more than case, white space and numbers."""
    seen: set[str] = set()
    kept = []
    for at, text in enumerate(texts):
        form = _NUMBER.sub("0", " ".join(text.casefold().split()))
        if form not in seen:
            seen.add(form)
            kept.append(at)
    return kept


def apart(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """Positions of unit rows [n, d] that no earlier one is as near to as `SAME`; n is a few thousand at most."""
    near = np.tril(vectors @ vectors.T, -1).max(axis=1, initial=-1.0)
    return np.flatnonzero(near < SAME)
