"""What to keep, what it costs, and what was asked for: `ModelShape`, `Budget`, `Plan`. No torch here.

A *unit* is an FFN channel, a KV group (one KV head with its own query heads), a query-head slot (the same number of
query heads out of every KV group of a block) or a component (rank) of a matrix. Prices follow from sizes alone, so a
plan is priced without building a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sentei.errors import InfeasibleError, nearest
from sentei.files import hash_json, write_json
from sentei.schema import DEEPEST, Positive, Size, read

SCHEMA_VERSION = 1
Metric = Literal["params", "flops", "bytes"]
Storage = Literal["factors", "pivoted"]
Refine = Literal["none", "block"]
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

    `ranks` holds the matrices that are stored as a product, by name; all others are dense.
    """

    kv_groups: Size
    heads_per_group: Size
    ffn: Size
    o_bias: bool = False  # biases that a compensation added
    down_bias: bool = False
    ranks: dict[str, Size] = {}


class ModelShape(_Frozen):
    """Everything that decides how much a model costs."""

    hidden: Size
    head_dim: Size
    vocab: Size
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    o_bias: bool = False  # biases of the dense architecture
    mlp_bias: bool = False
    storage: Storage = "factors"  # of the low-rank matrices
    blocks: Annotated[tuple[BlockShape, ...], Field(max_length=DEEPEST)]

    def matrices(self, block: BlockShape) -> dict[str, tuple[int, int]]:
        """Rows and columns of the block's matrices; those of a removed part are left out."""
        sizes: dict[str, tuple[int, int]] = {}
        if block.kv_groups:
            queries, keys = block.kv_groups * block.heads_per_group * self.head_dim, block.kv_groups * self.head_dim
            sizes |= {"q_proj": (queries, self.hidden), "k_proj": (keys, self.hidden), "v_proj": (keys, self.hidden)}
            sizes["o_proj"] = (self.hidden, queries)
        if block.ffn:
            sizes |= dict.fromkeys(("gate_proj", "up_proj"), (block.ffn, self.hidden))
            sizes["down_proj"] = (self.hidden, block.ffn)
        return sizes

    def _matrix_params(self, block: BlockShape, names: tuple[str, ...]) -> int:
        sizes = self.matrices(block)
        return sum(stored(*sizes[name], block.ranks.get(name), self.storage) for name in names)

    def attention_params(self, block: BlockShape) -> int:
        """Parameters of one attention part, its input norm included; 0 where the part is gone."""
        if not block.kv_groups:
            return 0
        own = self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        if self.qkv_bias:
            own += block.kv_groups * self.head_dim * (block.heads_per_group + 2)
        if block.o_bias or self.o_bias:
            own += self.hidden
        return self._matrix_params(block, ATTENTION_MATRICES) + own

    def ffn_params(self, block: BlockShape) -> int:
        """Parameters of one FFN part, its input norm included; 0 where the part is gone."""
        if not block.ffn:
            return 0
        bias = (2 * block.ffn if self.mlp_bias else 0) + (self.hidden if block.down_bias or self.mlp_bias else 0)
        return self._matrix_params(block, FFN_MATRICES) + self.hidden + bias

    def block_params(self) -> int:
        """Parameters of all blocks: embeddings, head and final norm left out."""
        return sum(self.attention_params(b) + self.ffn_params(b) for b in self.blocks)

    def params(self) -> int:
        """All parameters; a tied head counts once."""
        return self.block_params() + self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    def flops(self, context: int) -> int:
        """FLOPs of the blocks for one token that attends to `context` tokens (a multiply-add counts as two)."""
        attention = sum(4 * b.kv_groups * b.heads_per_group * self.head_dim * context for b in self.blocks)
        return 2 * self.block_params() + attention

    def cache_bytes(self, batch: int, context: int, itemsize: int = 2) -> int:
        """Bytes of the KV cache."""
        return sum(2 * b.kv_groups * self.head_dim for b in self.blocks) * batch * context * itemsize

    def bytes(self, batch: int, context: int, itemsize: int = 2) -> int:
        """Bytes of all weights and of the KV cache."""
        return self.params() * itemsize + self.cache_bytes(batch, context, itemsize)


class Limits(_Frozen):
    """Legal sizes: what the target engine can hold.

    Attributes:
        ffn_multiple: FFN widths are multiples of this; the dense width is legal as it is.
        fixed_query_heads: one query-head count for the whole model: the attention of a block is whole or gone.
        uniform: the same sizes in every block.
        skip_parts: a whole attention or FFN part may go (but never the attention of block 0).
        qk_norm: norms on q and k (Qwen3) have a place in the engine's format.
        low_rank: a matrix may be stored as a product.
    """

    ffn_multiple: int = Field(default=1, ge=1)
    fixed_query_heads: bool = False
    uniform: bool = False
    skip_parts: bool = True
    qk_norm: bool = True
    low_rank: bool = False


# GGUF: K-quants want rows of 256; 32 (`ffn_multiple`) is enough for F16, BF16 and Q8_0. The others read nemotron-nas,
# which says an FFN width as a factor of the hidden size that engines round up to 256.
ENGINES: dict[str, Limits] = {
    "transformers": Limits(low_rank=True),
    "onnx": Limits(low_rank=True),
    "openvino": Limits(low_rank=True),
    "gguf": Limits(ffn_multiple=256),
    "uniform": Limits(uniform=True, skip_parts=False),
    **{
        name: Limits(ffn_multiple=256, fixed_query_heads=True, qk_norm=False)
        for name in ("vllm", "sglang", "trtllm", "mlx")
    },
}


class Budget(_Frozen):
    """How small the model shall be: exactly one of `sparsity`, `params`, `flops`, `bytes`.

    Attributes:
        sparsity: share of block params to remove.
        params: block params to keep at most.
        flops: share of the dense FLOPs per token (at `context`) to keep at most, or an absolute number.
        bytes: bytes of weights and KV cache (at `batch` and `context`) to keep at most.
        target_engine: whose legal sizes hold.
        ffn_multiple: FFN widths are multiples of this; overrides the engine's.
    """

    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None
    params: Positive | None = None
    flops: Annotated[float, Field(gt=0)] | None = None
    bytes: Positive | None = None
    batch: Positive = 1
    context: Positive = 1024
    target_engine: Literal["transformers", "gguf", "vllm", "sglang", "trtllm", "mlx", "onnx", "openvino", "uniform"] = (
        "transformers"
    )
    ffn_multiple: Positive | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Budget:
        given = [name for name in ("sparsity", "params", "flops", "bytes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of sparsity, params, flops, bytes; got {given or 'none'}")
        return self

    @property
    def limits(self) -> Limits:
        """The legal sizes of this budget."""
        limits = ENGINES[self.target_engine]
        return limits if self.ffn_multiple is None else limits.model_copy(update={"ffn_multiple": self.ffn_multiple})

    @property
    def metric(self) -> Metric:
        """What is counted."""
        return "flops" if self.flops is not None else "bytes" if self.bytes is not None else "params"

    def cost(self, shape: ModelShape) -> int:
        """What a model of this shape costs, in the unit of `metric`."""
        if self.metric == "flops":
            return shape.flops(self.context)
        if self.metric == "bytes":
            return shape.bytes(self.batch, self.context)
        return shape.block_params()

    def target(self, dense: ModelShape) -> int:
        """The most that may be kept, in the unit of `metric`.

        Raises:
            InfeasibleError: the dense model is smaller already.
        """
        cost = self.cost(dense)
        if self.sparsity is not None:
            return round(cost * (1 - self.sparsity))
        if self.flops is not None:
            wanted = round(cost * self.flops) if self.flops <= 1 else round(self.flops)
        else:
            wanted = self.params if self.params is not None else self.bytes or 0
        if wanted > cost:
            raise InfeasibleError(
                f"the dense model has {cost:,} {self.metric}, fewer than the {wanted:,} asked for; ask for less"
            )
        return wanted

    def describe(self) -> str:
        """The budget in words."""
        if self.sparsity is not None:
            return f"remove {self.sparsity:.0%} of block params"
        if self.params is not None:
            return f"at most {self.params:,} block params"
        if self.flops is not None:
            size = f"{self.flops:.0%} of the dense FLOPs" if self.flops <= 1 else f"{self.flops:,.0f} FLOPs"
            return f"at most {size} per token at context {self.context}"
        return f"at most {self.bytes:,} bytes with the KV cache of batch {self.batch} at context {self.context}"


class BlockPlan(_Frozen):
    """What one block keeps.

    Attributes:
        kv_groups: indices of the kept KV groups, ascending.
        query_heads: per kept group, the indices (within the group) of its kept query heads; equally many in each.
        ffn: indices of the kept FFN channels, ascending.
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
        model: hash of the dense weights that this plan is for.
        profile: hash of the profile that it was made from.
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
        shape = self.shape()
        for i, (kept, small) in enumerate(zip(self.blocks, shape.blocks, strict=True)):
            for name, rank in kept.ranks.items():
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
                o_bias=full.o_bias or (bias and attention_cut and bool(plan.kv_groups)),
                down_bias=full.down_bias or (bias and 0 < len(plan.ffn) < full.ffn),
                ranks=plan.ranks,
            )
        )
    return dense.model_copy(update={"blocks": tuple(kept), "storage": storage})
