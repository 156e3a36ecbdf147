"""Rows that have nothing to do with the wanted capability."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sentei.data.pools import PoolRow
from sentei.errors import InputError
from sentei.recover.select.filters.base import Evidence, Filter

# Cosine. Below it are at most 0.3 % of held-out texts of a capability, and 42 % (piqa) to 88 % (arithmetic) of alpaca.
NEAR = 0.25
_BLOCK = 1 << 22  # similarities that are held at once


def _find(rows: Sequence[PoolRow], evidence: Evidence) -> dict[int, str]:
    if evidence.target is None or evidence.embeddings is None:
        raise InputError(
            "the filter 'off-target' needs a target and the embeddings of the rows; give texts of the target"
        )
    step = max(1, _BLOCK // len(evidence.target))
    near = np.concatenate(
        [np.empty(0, dtype=np.float32)]
        + [
            (evidence.embeddings[i : i + step] @ evidence.target.T).max(axis=1)
            for i in range(0, len(evidence.embeddings), step)
        ]
    )
    return {
        int(i): f"far from the target (cosine {near[i]:.2f} to the nearest text, at least {NEAR} expected)"
        for i in np.flatnonzero(near < NEAR)
    }


OFF_TARGET = Filter("off-target", _find, f"cosine of the question to the nearest target text below {NEAR}")
