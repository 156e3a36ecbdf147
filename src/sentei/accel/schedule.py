"""How small after each stage, how much data for it, and the learning rate over all of them.

Source: Adapt-Accel (arXiv 2502.03460 and its code): linear targets `P_k = P_0 − (P_0 − P_T) k / T`, slices that grow as
`2k / (T (T + 1))`, and one warm-up, stable, decay schedule over all stages. What comes after is smaller, and cheaper to
train, and has more to mend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from sentei.accel.settings import Slices, Targets
from sentei.errors import InputError

WARMUP, DECAY = 0.05, 0.1  # shares of the tokens of all stages


def targets(dense: int, final: int, stages: int, kind: Targets) -> list[int]:
    """Sizes after stages 1 … T, in the unit of the budget; the last is `final`.

    "linear": equal steps. "cosine": small steps at both ends, `(1 − cos(πk/T)) / 2` of the way after stage k. "ratio":
    each stage keeps the same share of what the one before it left.
    """

    def way(k: int) -> float:
        if kind == "ratio":
            return (dense - dense * (final / dense) ** (k / stages)) / (dense - final) if final < dense else 1.0
        return k / stages if kind == "linear" else (1 - math.cos(math.pi * k / stages)) / 2

    return [*(round(dense - (dense - final) * way(k)) for k in range(1, stages)), final]


def shares(stages: int, kind: Slices) -> list[float]:
    """Shares of the data of stages 1 … T, which sum to 1.

    "linear": `2k / (T (T + 1))`. "constant": the same for all. "cosine": growing as a quarter of a cosine wave,
    `cos(π(k−1)/2T) − cos(πk/2T)`.
    """
    if kind == "constant":
        return [1 / stages] * stages
    if kind == "linear":
        return [2 * k / (stages * (stages + 1)) for k in range(1, stages + 1)]
    quarter = [math.cos(math.pi * k / (2 * stages)) for k in range(stages + 1)]
    return [a - b for a, b in pairwise(quarter)]


def divide(sizes: Sequence[int], parts: Sequence[float]) -> list[range]:
    """Steps of each stage: consecutive ones, whose tokens are nearest to the stages' shares.

    Args:
        sizes: tokens of each step.
        parts: share of each stage.

    Raises:
        InputError: a stage gets no step.
    """
    total, edges = sum(sizes), [0.0, *accumulate(parts)]
    middles = [end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True)]
    found = []
    for stage, (low, high) in enumerate(pairwise(edges), 1):
        high = high if stage < len(parts) else math.inf
        inside = [at for at, middle in enumerate(middles) if low * total <= middle < high * total]
        if not inside:
            raise InputError(
                f"stage {stage} of {len(parts)} would train on {parts[stage - 1] * total:,.0f} tokens, less than a step"
                f" (about {total / len(sizes):,.0f}): raise tokens, or lower stages or batch_tokens"
            )
        found.append(range(inside[0], inside[-1] + 1))
    return found


def rate(position: float) -> float:
    """Share of the highest learning rate: warm-up, stable, linear decay to nothing.

    Args:
        position: share of the tokens of all stages that are read, 0 to 1; of a step, its middle.
    """
    return max(0.0, min(1.0, position / WARMUP, (1 - position) / DECAY))


def check_steps(dense: int, sizes: Sequence[int], unit: int) -> None:
    """Refuses stages that remove nothing.

    Args:
        dense: size before the first, in the unit of the budget.
        sizes: after each stage.
        unit: size of the smallest thing that can go.

    Raises:
        InputError: a stage whose step is smaller than that.
    """
    for stage, (before, after) in enumerate(zip([dense, *sizes[:-1]], sizes, strict=True), 1):
        if before - after < unit:
            most = (dense - sizes[-1]) // unit
            mend = f"at most {most:,} stages of equal steps do" if most else "remove more, with a smaller --to"
            raise InputError(
                f"stage {stage} of {len(sizes)} goes from {before:,} to {after:,} and removes nothing: the smallest "
                f"unit has {unit:,}; {mend}"
            )
