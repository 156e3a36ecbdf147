"""Global allocation: the least loss for the budget, over units of different price.

For a price λ of one unit of budget every part picks on its own the option that minimises `loss + λ·cost`; bisection on
λ finds the cheapest total that still meets the budget (Lagrangian relaxation; exact on the curves' convex hulls), and
what is left over is filled channel by channel. This is the parameter-aware form of Numerical Pruning's global
threshold (arXiv 2412.12441, section 3.3), which counts units and multiplies head scores where it should divide by
their cost.

Our methods protect the attention of block 0 (`attention:1`): later blocks find the first position through it and build
their attention sinks there, which no second-order estimate sees (with one KV group less in block 0, perplexity 43.7
instead of 32.0 at 20 %).
"""

from __future__ import annotations

import numpy as np

from sentei.errors import InfeasibleError
from sentei.prune.allocation.problem import Allocation, Choice, Problem
from sentei.prune.allocation.shares import same_everywhere


def _solve(problem: Problem) -> list[Choice]:
    problem.check_reachable()
    if problem.budget.limits.uniform:
        return same_everywhere(problem)
    attention = [np.array([option.loss for option in curves.attention]) for curves in problem.curves]
    ffn = [np.array(curves.ffn_loss) for curves in problem.curves]
    legal = problem.attention_legal

    def choices(price: float) -> list[Choice]:
        picked = []
        for i in range(len(ffn)):
            a = np.where(legal[i], attention[i] + price * problem.attention_costs[i], np.inf)
            f = np.where(problem.ffn_legal[i], ffn[i] + price * problem.ffn_costs[i], np.inf)
            picked.append(Choice(int(a.argmin()), int(f.argmin())))
        return picked

    # the price that makes every part go is an upper end; prices span many orders of magnitude: bisect their logarithm
    low, high = 1e-30, 1e30
    for _ in range(200):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if problem.cost(choices(middle)) <= problem.target else (middle, high)
    if problem.cost(choices(high)) > problem.target:
        raise InfeasibleError(f"{problem.budget.describe()} cannot be met; ask for less")
    return _use_slack(problem, problem.fill(choices(high)))


def _use_slack(problem: Problem, choices: list[Choice]) -> list[Choice]:
    """Where every FFN is whole and room is left: a thinned attention comes back and channels pay for it."""
    legal = problem.attention_legal
    while any(c.attention for c in choices) and not any(c.removed for c in choices):
        candidates = []
        for i, choice in enumerate(choices):
            costs = problem.attention_costs[i]
            for option in np.flatnonzero(legal[i] & (costs > costs[choice.attention])):
                swapped = [Choice(int(option), 0) if j == i else c for j, c in enumerate(choices)]
                swapped = problem.fill(problem.shrink(swapped))
                if problem.cost(swapped) <= problem.target:
                    candidates.append((problem.loss(swapped), swapped))
        if not candidates:
            break
        choices = min(candidates, key=lambda pair: pair[0])[1]
    return choices


GLOBAL = Allocation(
    "global",
    _solve,
    "the least predicted loss for the budget: a knapsack over heads, channels and parts by loss per cost",
)
