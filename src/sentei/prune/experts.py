"""In which order the channels of a mixture of experts may go, and how many.

As they are ranked, channels of all experts compete, and an expert that lost its last one goes whole, with its row of
the router. Two wishes restrict that. Sizes that an engine fixes (one width for all experts of fused kernels, multiples)
take equally many channels from every expert, each giving its own cheapest. A budget of FLOPs keeps every expert: where
one goes, its tokens are sent to others, which costs what it cost.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sentei.budget import EXPERT_MULTIPLE
from sentei.errors import InputError
from sentei.measure.curves import BlockCurves
from sentei.plan import BlockShape, Budget, by_expert


def _evenly(budget: Budget) -> bool:
    return budget.limits.uniform or budget.limits.ffn_multiple > 1


def arranged(curves: BlockCurves, block: BlockShape, budget: Budget) -> BlockCurves:
    """Curves of a block in the order of removal that the budget wants; as they are without experts.

    Args:
        curves: each expert's channels in its own order, which stays.
        block: sizes before the cut.
        budget: whose engine and unit decide.

    Raises:
        InputError: all experts shall be alike, and are not to begin with.
    """
    if not block.experts or not (_evenly(budget) or budget.metric == "flops"):
        return curves
    if _evenly(budget) and len(set(block.experts)) > 1:
        raise InputError(
            f"the experts of a block have {min(block.experts)} to {max(block.experts)} channels, and engine "
            f"{budget.target_engine!r} wants all alike; use --target-engine transformers"
        )
    order, losses = np.array(curves.ffn_order), np.diff(curves.ffn_loss)
    starts = np.cumsum((0, *block.experts))
    turn = np.empty(block.ffn, dtype=np.int64)  # when a channel goes
    for start, own in zip(starts, by_expert(curves.ffn_order, block.experts), strict=False):
        turn[start + np.array(own)] = np.arange(len(own)) if _evenly(budget) else np.arange(len(own)) == len(own) - 1
    new = np.argsort(turn[order], kind="stable")
    totals = (0.0, *np.cumsum(losses[new]).tolist())
    return BlockCurves(curves.attention, tuple(order[new].tolist()), totals)


def legal_widths(block: BlockShape, budget: Budget) -> NDArray[np.bool_]:
    """Which counts of removed channels leave a width that the engine holds and the budget counts: `[ffn + 1]`.

    None and all are not judged here.
    """
    kept = block.ffn - np.arange(block.ffn + 1)
    multiple = budget.limits.ffn_multiple
    if not block.experts:
        return kept % multiple == 0
    if not _evenly(budget):
        return kept >= (len(block.experts) if budget.metric == "flops" else 1)
    if budget.limits.uniform:
        multiple = math.lcm(multiple, EXPERT_MULTIPLE)
    return kept % (multiple * len(block.experts)) == 0
