"""What to keep and what it costs: `ModelShape` and `Plan`. No torch here; what was asked for is in `sentei.budget`.

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
from sentei.schema import DEEPEST, Positive, Size, read

SCHEMA_VERSION = 1
Storage = Literal["factors", "pivoted"]
Refine = Literal["none", "block"]
Weigh = Literal["none", "gradient", "energy", "share", "standardise"]  # see `sentei.prune.weighing`
ATTENTION_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN_MATRICES = ("gate_proj", "up_proj", "down_proj")
MATRICES = ATTENTION_MATRICES + FFN_MATRICES


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def stored(out: int, into: int, rank: int | None, storage: Storage = "factors") -> int:
    """Parameters of a matrix `[out, into]`: dense, as two factors, or pivoted (`R (H+D−R)`: PIFA, arXiv 2501.19090)."""
    if rank is None:
        return out * into
    return rank * (out + into) if storage == "factors" else rank * (out + into - rank)


class BlockShape(_Frozen):
    """Sizes of one decoder block. `kv_groups == 0`: no attention part; `ffn == 0`: no FFN part.

    `ranks` holds the matrices that are stored as a product, by name; all others are dense. `window`: the
    tokens that its attention sees at most, where it slides. `experts`: channels of each expert, of a mixture; their
    sum is `ffn`, and the channels are numbered through, one expert after the other.
    """

    kv_groups: Size
    heads_per_group: Size
    ffn: Size
    o_bias: bool = False  # biases that a compensation added
    down_bias: bool = False
    ranks: dict[str, Size] = {}
    window: Positive | None = None
    experts: tuple[Positive, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> BlockShape:
        if self.experts and sum(self.experts) != self.ffn:
            raise ValueError(f"experts have {sum(self.experts)} channels together, but ffn is {self.ffn}")
        return self

    def sees(self, context: int) -> int:
        """Tokens that are kept and attended to, of `context` so far."""
        return context if self.window is None else min(context, self.window)


class ModelShape(_Frozen):
    """Everything that decides how much a model costs.

    Attributes:
        gated: whether the FFN has a gate beside its up matrix.
        attention_norms, ffn_norms: norms of the width of the stream that go with a part.
        norm_bias: whether these, and the final norm, have a bias.
        qk_norm: whether q and k are normalised; `qk_norm_over_heads`: over all heads, which then only go together.
        qkv_bias, o_bias, mlp_bias: biases of the dense architecture.
        positions: learnt positions.
        top_k: experts that compute a token, in blocks that have any.
        storage: of the low-rank matrices.
        itemsize: bytes of a number in the dtype that the model is stored in.
    """

    hidden: Size
    head_dim: Size
    vocab: Size
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    qk_norm_over_heads: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    attention_norms: Size = 1
    ffn_norms: Size = 1
    norm_bias: bool = False
    positions: Size = 0
    top_k: Size = 0
    storage: Storage = "factors"
    itemsize: Positive = 2
    blocks: Annotated[tuple[BlockShape, ...], Field(max_length=DEEPEST)]

    @property
    def present(self) -> list[int]:
        """Indices of the blocks that have any part."""
        return [i for i, block in enumerate(self.blocks) if block.kv_groups or block.ffn]

    def matrices(self, block: BlockShape) -> dict[str, tuple[int, int]]:
        """Rows and columns of the block's matrices, all experts' as one; those of a removed part left out."""
        sizes: dict[str, tuple[int, int]] = {}
        if block.kv_groups:
            queries, keys = block.kv_groups * block.heads_per_group * self.head_dim, block.kv_groups * self.head_dim
            sizes |= {"q_proj": (queries, self.hidden), "k_proj": (keys, self.hidden), "v_proj": (keys, self.hidden)}
            sizes["o_proj"] = (self.hidden, queries)
        if block.ffn:
            sizes |= dict.fromkeys(("gate_proj", "up_proj") if self.gated else ("up_proj",), (block.ffn, self.hidden))
            sizes["down_proj"] = (self.hidden, block.ffn)
        return sizes

    def _matrix_params(self, block: BlockShape, names: tuple[str, ...]) -> int:
        sizes = self.matrices(block)
        return sum(stored(*sizes[name], block.ranks.get(name), self.storage) for name in names if name in sizes)

    @property
    def _norm(self) -> int:
        return 2 * self.hidden if self.norm_bias else self.hidden

    def attention_params(self, block: BlockShape) -> int:
        """Parameters of one attention part, its norms included; 0 where the part is gone."""
        if not block.kv_groups:
            return 0
        own = self.attention_norms * self._norm
        if self.qk_norm:
            heads = block.kv_groups * (block.heads_per_group + 1) if self.qk_norm_over_heads else 2
            own += heads * self.head_dim
        if self.qkv_bias:
            own += block.kv_groups * self.head_dim * (block.heads_per_group + 2)
        if block.o_bias or self.o_bias:
            own += self.hidden
        return self._matrix_params(block, ATTENTION_MATRICES) + own

    def ffn_params(self, block: BlockShape) -> int:
        """Parameters of one FFN part, its norms and its router included; 0 where the part is gone."""
        if not block.ffn:
            return 0
        inner, outputs = (2 if self.gated else 1) * block.ffn, self.hidden * max(1, len(block.experts))
        bias = (inner if self.mlp_bias else 0) + (outputs if block.down_bias or self.mlp_bias else 0)
        router = self.hidden * len(block.experts)
        return self._matrix_params(block, FFN_MATRICES) + self.ffn_norms * self._norm + bias + router

    def block_params(self) -> int:
        """Parameters of all blocks: embeddings, head and final norm left out."""
        return sum(self.attention_params(b) + self.ffn_params(b) for b in self.blocks)

    def params(self) -> int:
        """All parameters; a tied head counts once."""
        rows = self.vocab * (1 if self.tied else 2) + self.positions
        return self.block_params() + rows * self.hidden + self._norm

    def flops(self, context: int) -> int:
        """FLOPs of the blocks for one token that attends to `context` tokens (a multiply-add counts as two).

        Of experts those that compute it, of mean width: tokens are taken to be spread evenly.
        """
        heads = ((b.kv_groups * b.heads_per_group, b.sees(context)) for b in self.blocks)
        attended = sum(4 * self.head_dim * count * seen for count, seen in heads)
        return 2 * self.block_params() + attended - sum(map(self._idle, self.blocks))

    def _idle(self, block: BlockShape) -> int:
        """FLOPs of the matrices of experts that do not compute a token."""
        idle = max(0, len(block.experts) - self.top_k)
        return 2 * self._matrix_params(block, FFN_MATRICES) * idle // len(block.experts) if idle else 0

    def cache_bytes(self, batch: int, context: int, itemsize: int | None = None) -> int:
        """Bytes of the KV cache, in the model's own dtype or another; a sliding window is never exceeded."""
        kept = sum(2 * b.kv_groups * self.head_dim * b.sees(context) for b in self.blocks)
        return kept * batch * (itemsize or self.itemsize)

    def bytes(self, batch: int, context: int, itemsize: int | None = None) -> int:
        """Bytes of all weights and of the KV cache, in the model's own dtype or another."""
        return self.params() * (itemsize or self.itemsize) + self.cache_bytes(batch, context, itemsize)


class BlockPlan(_Frozen):
    """What one block keeps.

    Attributes:
        kv_groups: indices of the kept KV groups, ascending.
        query_heads: per kept group, the indices (within the group) of its kept query heads; equally many in each.
        ffn: indices of the kept FFN channels, ascending; those of experts are numbered through, and an expert that
            keeps none goes, with its row of the router.
        ranks: of the matrices that become a product, by name (`q_proj` … `down_proj`); all others stay dense.
        reason: why this much, in words.
    """

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
        protect: what was not to be thinned.
        weigh: how the losses of different parts were compared.
        blocks: one entry per block, in order.
        predicted: figures of the pruned model, by name, in the unit the name says.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    model: str
    profile: str
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
