"""What to keep: `Plan`. No torch here; what was asked for is in `sentei.budget`, what sizes cost in `sentei.shape`.

A *unit* is an FFN channel, a KV group (one KV head with its own query heads), a query-head slot (the same number of
query heads out of every KV group of a block) or a component (rank) of a matrix. Prices follow from sizes alone, so a
plan is priced without building a model.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sentei.budget import ENGINES as ENGINES
from sentei.budget import Budget as Budget
from sentei.budget import Limits as Limits
from sentei.errors import nearest
from sentei.files import hash_json, write_json
from sentei.protect import Protect
from sentei.schema import Size, read
from sentei.shape import ATTENTION_MATRICES as ATTENTION_MATRICES
from sentei.shape import FFN_MATRICES as FFN_MATRICES
from sentei.shape import FROZEN
from sentei.shape import MATRICES as MATRICES
from sentei.shape import BlockShape as BlockShape
from sentei.shape import ModelShape as ModelShape
from sentei.shape import Storage as Storage
from sentei.shape import stored as stored

SCHEMA_VERSION = 1
Refine = Literal["none", "block"]
Weigh = Literal["none", "gradient", "energy", "share", "standardise"]  # see `sentei.prune.weighing`


class BlockPlan(BaseModel):
    """What one block keeps.

    Attributes:
        kv_groups: indices of the kept KV groups, ascending.
        query_heads: per kept group, the indices (within the group) of its kept query heads; equally many in each.
        ffn: indices of the kept FFN channels, ascending; those of experts are numbered through, and an expert that
            keeps none goes, with its row of the router.
        ranks: of the matrices that become a product, by name (`q_proj` … `down_proj`); all others stay dense.
        reason: why this much, in words.
    """

    model_config = FROZEN

    kv_groups: list[int]
    query_heads: list[list[int]]
    ffn: list[int]
    ranks: dict[str, Annotated[int, Field(ge=1)]] = {}
    reason: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> BlockPlan:
        if len(self.query_heads) != len(self.kv_groups):
            raise ValueError(f"{len(self.kv_groups)} KV groups but query heads for {len(self.query_heads)}")
        if len({len(heads) for heads in self.query_heads}) > 1 or any(not heads for heads in self.query_heads):
            raise ValueError(f"every KV group must keep equally many query heads, at least one; got {self.query_heads}")
        for name, kept in (
            ("kv_groups", self.kv_groups),
            ("ffn", self.ffn),
            *(("query_heads", h) for h in self.query_heads),
        ):
            if kept != sorted(set(kept)) or (kept and kept[0] < 0):
                raise ValueError(f"{name} must be ascending indices without repeats; got {kept[:8]}…")
        for name in self.ranks:
            if name not in MATRICES:
                raise ValueError(
                    f"ranks: unknown matrix {name!r}{nearest(name, MATRICES)}; known: {', '.join(MATRICES)}"
                )
            if not (self.kv_groups if name in ATTENTION_MATRICES else self.ffn):
                raise ValueError(f"ranks: {name} has a rank, but its part is removed")
        return self

    @property
    def heads_per_group(self) -> int:
        """Query heads kept in each KV group."""
        return len(self.query_heads[0]) if self.query_heads else 0


class Plan(BaseModel):
    """What to keep of a model, why, and what it is predicted to cost. Readable, diffable, editable by hand.

    Attributes:
        model: identity of the dense model that this plan is for; see `sentei.models.identity`.
        profile: hash of the profile that it was made from.
        own_text: tokens that the model wrote for it, beside the data.
        protect: what was not to be thinned.
        weigh: how the losses of different parts were compared.
        blocks: one entry per block, in order.
        predicted: figures of the pruned model, by name, in the unit the name says.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    model: str
    profile: str
    own_text: Size = 0
    method: str
    score: str
    allocation: str
    compensation: str
    protect: Protect = Protect()
    weigh: Weigh = "none"
    refine: Refine = "none"
    storage: Storage = "factors"
    budget: Budget
    dense: ModelShape
    blocks: list[BlockPlan]
    predicted: dict[str, float] = {}

    @model_validator(mode="after")
    def _fits(self) -> Plan:
        if len(self.blocks) != len(self.dense.blocks):
            raise ValueError(f"{len(self.blocks)} blocks planned, the model has {len(self.dense.blocks)}")
        for i, (kept, dense) in enumerate(zip(self.blocks, self.dense.blocks, strict=True)):
            worst = [(kept.kv_groups, dense.kv_groups, "KV group"), (kept.ffn, dense.ffn, "FFN channel")]
            worst += [(heads, dense.heads_per_group, "query head") for heads in kept.query_heads]
            for indices, size, what in worst:
                if indices and indices[-1] >= size:
                    raise ValueError(f"block {i} keeps {what} {indices[-1]}, the model has {size} (0 to {size - 1})")
            sizes = (len(kept.kv_groups), kept.heads_per_group)
            if self.dense.qk_norm_over_heads and kept.kv_groups and sizes != (dense.kv_groups, dense.heads_per_group):
                raise ValueError(f"block {i} thins its heads, which share a norm on q and k: keep all of them, or none")
        shape = self.shape()
        for i, (kept, small) in enumerate(zip(self.blocks, shape.blocks, strict=True)):
            for name, rank in kept.ranks.items():
                if small.experts and name in FFN_MATRICES:
                    raise ValueError(f"block {i}: rank {rank} of {name}: experts have no low-rank matrices")
                if name not in shape.matrices(small):
                    raise ValueError(f"block {i}: rank {rank} of {name}, which this architecture does not have")
                if rank > min(shape.matrices(small)[name]):
                    raise ValueError(f"block {i}: rank {rank} of {name} exceeds its size {shape.matrices(small)[name]}")
        if self.blocks and not self.blocks[0].kv_groups:
            raise ValueError("block 0 must keep its attention: engines read the cache length from it")
        return self

    @property
    def bias(self) -> bool:
        """Whether the compensation adds a bias to o_proj and down_proj."""
        return "bias" in self.compensation

    def shape(self) -> ModelShape:
        """Sizes of the pruned model. A part that loses nothing gets no bias of its own."""
        return planned_shape(self.dense, self.blocks, bias=self.bias, storage=self.storage)

    def save(self, path: Path) -> None:
        """Writes the plan as JSON."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Reads a plan.

        Raises:
            InputError: missing, not JSON, or not a plan (with the key and what is wrong).
        """
        return read(path, cls)

    def digest(self) -> str:
        """sha256 of the plan."""
        return hash_json(self.model_dump(mode="json"))


def by_expert(channels: Sequence[int], experts: Sequence[int]) -> list[list[int]]:
    """Channels that are numbered through as those of each expert, from 0; in the order given.

    Args:
        channels: of a block.
        experts: how many channels each has; none: there are no experts.
    """
    ends = [*accumulate(experts)]
    found: list[list[int]] = [[] for _ in experts]
    for channel in channels if experts else ():
        expert = bisect_right(ends, channel)
        found[expert].append(channel - ends[expert] + experts[expert])
    return found


def planned_shape(
    dense: ModelShape, blocks: list[BlockPlan], *, bias: bool, storage: Storage = "factors"
) -> ModelShape:
    """Sizes of a model that keeps `blocks` of `dense`."""
    kept = []
    for plan, full in zip(blocks, dense.blocks, strict=True):
        attention_cut = (len(plan.kv_groups), plan.heads_per_group) != (full.kv_groups, full.heads_per_group)
        kept.append(
            BlockShape(
                kv_groups=len(plan.kv_groups),
                heads_per_group=plan.heads_per_group,
                ffn=len(plan.ffn),
                experts=tuple(n for n in map(len, by_expert(plan.ffn, full.experts)) if n),
                o_bias=full.o_bias or (bias and attention_cut and bool(plan.kv_groups)),
                down_bias=full.down_bias or (bias and 0 < len(plan.ffn) < full.ffn),
                ranks=plan.ranks,
                window=full.window if plan.kv_groups else None,
            )
        )
    return dense.model_copy(update={"blocks": tuple(kept), "storage": storage})
