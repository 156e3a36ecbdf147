"""The allocation problem: what may be chosen in each block, what it costs in the budget's unit, what it loses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sentei.errors import InfeasibleError, InputError
from sentei.measure.curves import BlockCurves
from sentei.plan import BlockShape, Budget, ModelShape, Weigh
from sentei.protect import Protect
from sentei.prune.compensation import COMPENSATIONS
from sentei.prune.experts import legal_widths

MAX_SHARE = 0.99  # Adapt-Pruner's cap on what one part may lose; only `global` and `blocks` remove whole parts


@dataclass(frozen=True)
class Choice:
    """One block's decision: an attention option's index, and how many channels go."""

    attention: int
    removed: int


@dataclass(frozen=True)
class Problem:
    """A budget over the curves of a model.

    Attributes:
        dense: sizes of the dense model.
        curves: per block.
        angles: per block, mean cosine between its input and output.
        budget: what is asked for.
        score: whose losses the curves hold.
        compensation: of the cut; one that adds a bias to every part that is cut makes it dearer.
        protect: what is not thinned.
        weigh: how the curves' losses were made comparable.
    """

    dense: ModelShape
    curves: Sequence[BlockCurves]
    angles: Sequence[float]
    budget: Budget
    score: str
    compensation: str
    protect: Protect
    weigh: Weigh

    @property
    def bias(self) -> bool:
        """Whether the compensation adds biases, which are paid for."""
        return COMPENSATIONS[self.compensation].bias

    def __post_init__(self) -> None:
        """Raises InputError where the target engine cannot hold the architecture, or not what is protected."""
        if self.dense.qk_norm and not self.budget.limits.qk_norm:
            raise InputError(
                f"engine {self.budget.target_engine!r} reads pruned models as nemotron-nas, which has no norms on q "
                "and k; use --target-engine transformers, gguf, onnx, openvino or uniform"
            )
        if any(block.experts for block in self.dense.blocks) and not self.budget.limits.experts:
            raise InputError(
                f"the model has experts, and sentei writes no mixture of experts for engine "
                f"{self.budget.target_engine!r}; use --target-engine transformers or uniform"
            )
        if self.budget.limits.uniform and self.protect != Protect():
            raise InputError(
                f"--protect {self.protect} keeps some blocks whole, but engine 'uniform' wants all blocks alike; "
                "use --protect none or another --target-engine"
            )

        first = self.dense.blocks[0]
        if self.budget.limits.uniform and (odd := next((b for b in self.dense.blocks if not _alike(b, first)), None)):
            raise InputError(
                f"engine 'uniform' wants all blocks alike, and block {self.dense.blocks.index(odd)} of this model is "
                "not like block 0; use another --target-engine"
            )

    def protects(self, part: str, index: int) -> bool:
        """Whether the "attention" or the "ffn" part of a block is not to be thinned."""
        heads = self.dense.blocks[index].heads_per_group
        return self.protect.holds(part, index, len(self.dense.blocks), heads)

    @cached_property
    def target(self) -> int:
        """The most that may be kept, in the budget's unit."""
        return self.budget.target(self.dense)

    @cached_property
    def fixed(self) -> int:
        """Cost of what no choice changes: embeddings and head where they count."""
        return self.budget.cost(self.dense.model_copy(update={"blocks": ()}))

    def _cost(self, block: BlockShape) -> int:
        return self.budget.cost(self.dense.model_copy(update={"blocks": (block,)})) - self.fixed

    @cached_property
    def attention_costs(self) -> list[NDArray[np.int64]]:
        """Per block, the cost of each attention option."""
        found = []
        for full, curves in zip(self.dense.blocks, self.curves, strict=True):
            row = []
            for option in curves.attention:
                groups, heads = len(option.kv_groups), option.heads_per_group
                cut = self.bias and (groups, heads) != (full.kv_groups, full.heads_per_group)
                size = {"kv_groups": groups, "heads_per_group": heads, "ffn": 0, "o_bias": full.o_bias or cut}
                row.append(self._cost(full.model_copy(update=size)))
            found.append(np.array(row, dtype=np.int64))
        return found

    @cached_property
    def ffn_costs(self) -> list[NDArray[np.int64]]:
        """Per block, the cost of the FFN after k channels went, k = 0 … all; linear but for norm, bias and router."""
        found = []
        for full in self.dense.blocks:
            alone = full.model_copy(update={"kv_groups": 0, "heads_per_group": 0})
            cut = {"down_bias": full.down_bias or self.bias}
            step = max(1, len(full.experts))  # so many channels cost a whole number of FLOPs
            one, two = (self._cost(alone.model_copy(update=cut | {"ffn": n})) for n in (step, 2 * step))
            kept = full.ffn - np.arange(full.ffn + 1, dtype=np.int64)
            costs = one - -(two - one) * (kept - step) // step
            costs[0] = self._cost(alone)
            costs[-1] = 0
            found.append(costs)
        return found

    @cached_property
    def attention_legal(self) -> list[NDArray[np.bool_]]:
        """Per block, which attention options the engine can hold and are not protected. Block 0 keeps one."""
        limits = self.budget.limits
        whole = limits.fixed_query_heads or self.dense.qk_norm_over_heads
        found = []
        for index, curves in enumerate(self.curves):
            legal = np.ones(len(curves.attention), dtype=bool)
            for i, option in enumerate(curves.attention):
                gone = not option.kv_groups
                legal[i] = (index > 0 and limits.skip_parts) if gone else not whole
            if self.protects("attention", index):
                legal[:] = False
            legal[0] = True
            found.append(legal)
        return found

    @cached_property
    def ffn_legal(self) -> list[NDArray[np.bool_]]:
        """Per block, which counts of removed channels are legal: to a multiple, none, or (where allowed) all."""
        limits = self.budget.limits
        found = []
        for index, full in enumerate(self.dense.blocks):
            legal = legal_widths(full, self.budget)
            legal[-1] = limits.skip_parts
            if self.protects("ffn", index):
                legal[:] = False
            legal[0] = True
            found.append(legal)
        return found

    def cost(self, choices: Sequence[Choice]) -> int:
        """Cost of a set of choices, one per block."""
        blocks = enumerate(choices)
        return self.fixed + sum(
            int(self.attention_costs[i][c.attention] + self.ffn_costs[i][c.removed]) for i, c in blocks
        )

    def loss(self, choices: Sequence[Choice]) -> float:
        """Predicted loss increase of a set of choices, in the score's unit."""
        pairs = zip(self.curves, choices, strict=True)
        return sum(curves.attention[c.attention].loss + curves.ffn_loss[c.removed] for curves, c in pairs)

    def refuse_above(self, smallest: int) -> None:
        """Raises InfeasibleError where the smallest legal model is too large, and says what is reachable."""
        if smallest > self.target:
            dense = self.budget.cost(self.dense)
            kept = f", with {self.protect} protected" if self.protect != Protect() else ""
            raise InfeasibleError(
                f"budget not reachable: {self.budget.describe()} means {self.target:,} {self.budget.metric}, the "
                f"smallest legal model for engine {self.budget.target_engine!r} has {smallest:,} "
                f"{kept} ({1 - smallest / dense:.1%} removed); ask for at least that"
            )


def _alike(one: BlockShape, other: BlockShape) -> bool:
    keys = ("kv_groups", "heads_per_group", "ffn", "experts")
    return all(getattr(one, key) == getattr(other, key) for key in keys)


@dataclass(frozen=True)
class Allocation:
    """A named rule. `needs_score`: it reads the curves' losses and orders; `solve` returns one choice per block."""

    name: str
    solve: Callable[[Problem], list[Choice]]
    line: str
    needs_score: bool = True
