"""Sizes and prices of a model: `ModelShape`. They follow from one another alone, so nothing is built to know them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sentei.schema import DEEPEST, Positive, Size

Storage = Literal["factors", "pivoted"]
ATTENTION_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN_MATRICES = ("gate_proj", "up_proj", "down_proj")
MATRICES = ATTENTION_MATRICES + FFN_MATRICES
FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def stored(out: int, into: int, rank: int | None, storage: Storage = "factors") -> int:
    """Parameters of a matrix `[out, into]`: dense, as two factors, or pivoted (`R (H+D−R)`: PIFA, arXiv 2501.19090)."""
    if rank is None:
        return out * into
    return rank * (out + into) if storage == "factors" else rank * (out + into - rank)


class BlockShape(BaseModel):
    """Sizes of one decoder block. `kv_groups == 0`: no attention part; `ffn == 0`: no FFN part.

    `ranks` holds the matrices that are stored as a product, by name; all others are dense. `window`: the
    tokens that its attention sees at most, where it slides. `experts`: channels of each expert, of a mixture; their
    sum is `ffn`, and the channels are numbered through, one expert after the other.
    """

    model_config = FROZEN

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


class ModelShape(BaseModel):
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

    model_config = FROZEN

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
