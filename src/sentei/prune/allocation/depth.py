"""Whole blocks by block influence (ShortGPT, arXiv 2403.03853): those that turn their input least go first."""

from __future__ import annotations

import numpy as np

from sentei.errors import InfeasibleError
from sentei.prune.allocation.problem import Allocation, Choice, Problem


def _solve(problem: Problem) -> list[Choice]:
    choices = [Choice(0, 0) for _ in problem.curves]
    for i in np.argsort(-np.asarray(problem.angles), kind="stable"):
        if problem.cost(choices) <= problem.target:
            return choices
        if i == 0 or problem.protects("attention", int(i)) or problem.protects("ffn", int(i)):
            continue  # engines read the cache length from block 0
        gone = next(j for j, option in enumerate(problem.curves[i].attention) if not option.kv_groups)
        choices[i] = Choice(gone, problem.dense.blocks[i].ffn)
    if problem.cost(choices) > problem.target:
        raise InfeasibleError(
            f"{problem.budget.describe()} cannot be met by removing blocks 1 to {len(choices) - 1} "
            f"(protected: {problem.protect}); ask for less"
        )
    return choices


BLOCKS = Allocation(
    "blocks", _solve, "whole blocks, the least influential first; met to within one block", needs_score=False
)
