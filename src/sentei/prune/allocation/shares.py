"""Uniform and Adapt-Pruner's layer-adaptive shares (arXiv 2502.03460), solved directly for the budget.

The paper adds `Δ − A·I_i` to each block's share, step by step, clipped to [0, 0.99], until the model is small enough:
`I_i` is minus the in/out cosine, centred, scaled to [−1, 1]. With the dense profile's importance the steps add up to
`s_i = clip(b·(1 − a·I_i))` with `a = A/Δ` (1 in the paper's scripts), so we solve for `b` and meet the budget to one
unit, where the steps overshoot. KV groups are few and dear. `uniform` rounds their fractional shares with the error
carried from block to block, so that attention gives up its share of the model even where no single block owes a whole
group. `adaptive` does as the public code: a block gives the whole groups that it owes, so that with few groups the FFNs
bear a mild cut alone, which is better (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sentei.errors import InfeasibleError
from sentei.prune.allocation.problem import MAX_SHARE, Allocation, Choice, Problem
from sentei.prune.menu import Menus

AMPLITUDE = 1.0  # A / Δ of the authors' scripts: `--layer_prune_distribution_amplitude 0.02`, Δ = 1.00 / 50


def importance(angles: Sequence[float]) -> NDArray[np.float64]:
    """`I_i` in [−1, 1], mean 0; all zero where every block turns its input equally. `angles`: cosines."""
    centred = -(np.asarray(angles, dtype=np.float64) - np.mean(angles))
    largest = np.abs(centred).max()
    return centred / largest if largest > 1e-12 else np.zeros_like(centred)


def _solve(problem: Problem, tilt: NDArray[np.float64], *, carry: bool) -> list[Choice]:
    """Shares `clip(b·tilt)` in every part of every block, with b as small as the budget allows.

    `carry`: what a block owes of a KV group the next one gives; else each gives the whole groups that it owes itself.
    """
    if problem.budget.limits.uniform:
        return same_everywhere(problem)
    menus = Menus(problem)
    menus.check_reachable()
    base = _bisect(lambda b: _fractional_cost(problem, np.clip(b * tilt, 0, MAX_SHARE)) <= problem.target)
    carried = _round_attention(problem, np.clip(base * tilt, 0, MAX_SHARE), carry=True)

    def choices(b: float) -> list[Choice]:
        shares = np.clip(b * tilt, 0, MAX_SHARE)
        attention = carried if carry else _round_attention(problem, shares, carry=False)
        return [Choice(a, _legal_removed(problem, i, shares[i])) for i, a in enumerate(attention)]

    found = _bisect(lambda b: problem.cost(choices(b)) <= problem.target)
    if problem.cost(choices(found)) > problem.target:
        raise InfeasibleError(
            f"{problem.budget.describe()} needs more than {MAX_SHARE:.0%} of some parts here; use --allocation global"
        )
    return menus.refilled(choices(found))


def _bisect(enough: Callable[[float], bool]) -> float:
    """The smallest b (to 1e-9) for which `enough(b)`; the upper end where none is."""
    low, high = 0.0, 1.0
    while not enough(high) and high < 1e6:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _fractional_cost(problem: Problem, shares: NDArray[np.float64]) -> float:
    """Cost when every part of block i loses exactly the share i, or a fraction of a unit, but for what is protected."""
    total = float(problem.fixed)
    for i, share in enumerate(shares):
        total += problem.attention_costs[i][0] * (1 - share if _thins_attention(problem, i) else 1)
        total += problem.ffn_costs[i][0] * (1 if problem.protects("ffn", i) else 1 - share)
    return total


def _thins_attention(problem: Problem, index: int) -> bool:
    """Whether a share of the block's attention may go; shares never remove whole parts."""
    return not (problem.budget.limits.fixed_query_heads or problem.protects("attention", index))


def _round_attention(problem: Problem, shares: NDArray[np.float64], *, carry: bool) -> list[int]:
    """Whole KV groups for fractional shares; with `carry`, what one block does not give, the next one owes."""
    chosen, owed = [], 0.0
    for i, share in enumerate(shares):
        full = problem.dense.blocks[i]
        if not _thins_attention(problem, i):
            chosen.append(0)
            continue
        owed = share * full.kv_groups + (owed if carry else 0.0)
        by_groups = {
            len(option.kv_groups): at
            for at, option in enumerate(problem.curves[i].attention)
            if problem.attention_legal[i][at] and option.kv_groups and option.heads_per_group == full.heads_per_group
        }
        whole = int(owed + 0.5) if carry else int(owed + 1e-9)
        removed = min(whole, full.kv_groups - min(by_groups)) if by_groups else 0
        while by_groups and full.kv_groups - removed not in by_groups:
            removed -= 1
        chosen.append(by_groups[full.kv_groups - removed] if by_groups else 0)
        owed -= removed
    return chosen


def _legal_removed(problem: Problem, index: int, share: float) -> int:
    """The smallest legal count of removed channels that is at least the share."""
    full = problem.dense.blocks[index].ffn
    wanted = int(np.ceil(share * full - 1e-9))
    legal = np.flatnonzero(problem.ffn_legal[index])
    legal = legal[legal < full] if full else legal
    more = legal[legal >= wanted]
    return int(more[0]) if len(more) else int(legal[-1])


def same_everywhere(problem: Problem) -> list[Choice]:
    """One size for all blocks (stock classes): the pair of attention and FFN size with the least predicted loss."""
    best: tuple[float, list[Choice]] | None = None
    kinds = {(len(o.kv_groups), o.heads_per_group) for o in problem.curves[0].attention if o.kv_groups}
    for kind in sorted(kinds, reverse=True):
        at = [
            next((j for j, o in enumerate(c.attention) if (len(o.kv_groups), o.heads_per_group) == kind), None)
            for c in problem.curves
        ]
        if any(j is None or not problem.attention_legal[i][j] for i, j in enumerate(at)):
            continue
        for removed in np.flatnonzero(np.logical_and.reduce(problem.ffn_legal)):
            choices = [Choice(j or 0, int(removed)) for j in at]
            if problem.cost(choices) <= problem.target:
                if best is None or problem.loss(choices) < best[0]:
                    best = (problem.loss(choices), choices)
                break
    if best is None:
        raise InfeasibleError(
            f"no uniform model meets the budget ({problem.budget.describe()}); drop --target-engine uniform"
        )
    return best[1]


UNIFORM = Allocation(
    "uniform", lambda p: _solve(p, np.ones(len(p.curves)), carry=True), "the same share of every part of every block"
)
ADAPTIVE = Allocation(
    "adaptive",
    lambda p: _solve(p, 1 - AMPLITUDE * importance(p.angles), carry=False),
    "more from blocks that turn the residual stream less (Adapt-Pruner, arXiv 2502.03460), solved for the exact budget",
)
