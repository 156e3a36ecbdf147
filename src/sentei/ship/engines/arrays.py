"""What sessions do with logits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sentei.ship.engines import LogProbs, Timing


def log_softmax(logits: Any) -> LogProbs:
    """Natural log-probabilities of logits [T, V], in fp32."""
    shifted = logits.astype(np.float32)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def greedy(step: Callable[[list[int]], Any], ids: list[int], n: int) -> Timing:
    """Times `n` tokens after `ids`; `step` takes new tokens and gives logits [T, V], the cache being empty at first."""
    start = time.perf_counter()
    token = int(step(ids)[-1].argmax())
    first = time.perf_counter() - start
    for _ in range(n - 1):
        token = int(step([token])[-1].argmax())
    return Timing(first, time.perf_counter() - start)


def threads() -> int:
    """How many to compute with: OMP_NUM_THREADS, else 0, by which the engines mean all."""
    return int(os.environ.get("OMP_NUM_THREADS") or 0)
