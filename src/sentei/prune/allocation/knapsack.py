"""Global allocation: the least loss for the budget, over units of different price.

The knapsack (`sentei.prune.space`) over the menus of all parts. This is the parameter-aware form of Numerical Pruning's
global threshold (arXiv 2412.12441, section 3.3), which counts units and multiplies head scores where it should divide
by their cost.

Our methods protect the attention of block 0 (`attention:1`): later blocks find the first position through it and build
their attention sinks there, which no second-order estimate sees (with one KV group less in block 0, perplexity 43.7
instead of 32.0 at 20 %).
"""

from __future__ import annotations

from sentei.prune.allocation.problem import Allocation, Choice, Problem
from sentei.prune.allocation.shares import same_everywhere
from sentei.prune.menu import Menus


def _solve(problem: Problem) -> list[Choice]:
    if problem.budget.limits.uniform:
        return same_everywhere(problem)
    menus = Menus(problem)
    return menus.choices(menus.solve())[0]


GLOBAL = Allocation(
    "global",
    _solve,
    "the least predicted loss for the budget: a knapsack over heads, channels and parts by loss per cost",
)
