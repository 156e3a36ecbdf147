"""Allocations: who gives up how much. One file per rule, registered here."""

from __future__ import annotations

from sentei.prune.allocation.problem import Allocation, Choice, Problem
from sentei.registry import Registry

ALLOCATIONS: Registry[Allocation] = Registry(
    "allocation",
    {
        "uniform": "sentei.prune.allocation.shares:UNIFORM",
        "adaptive": "sentei.prune.allocation.shares:ADAPTIVE",
        "global": "sentei.prune.allocation.knapsack:GLOBAL",
        "blocks": "sentei.prune.allocation.depth:BLOCKS",
    },
)

__all__ = ["ALLOCATIONS", "Allocation", "Choice", "Problem"]
