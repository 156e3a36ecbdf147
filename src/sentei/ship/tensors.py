"""Weights on their way out: grown with exact zeros, low-rank pairs multiplied, and written one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sentei.families import family_of
from sentei.families.modeling_sentei import LowRankLinear
from sentei.models.writing import Lazy
from sentei.plan import BlockShape, ModelShape

_QUERIES, _KEYS, _CHANNELS = "queries", "keys", "channels"
# What the rows (0) or columns (1) of a matrix stand for.
_AXES = {
    "q_proj": (0, _QUERIES),
    "k_proj": (0, _KEYS),
    "v_proj": (0, _KEYS),
    "o_proj": (1, _QUERIES),
    "gate_proj": (0, _CHANNELS),
    "up_proj": (0, _CHANNELS),
    "down_proj": (1, _CHANNELS),
}


def grown_tensors(model: Any, target: Any, blocks: Sequence[BlockShape], kept: Sequence[int]) -> dict[str, Lazy]:
    """The weights of `model` for a class that wants larger parts, by that class's names.

    All that is added is zero, so the function stays exactly the same: an added FFN channel, query head or KV group
    meets zero columns of down_proj or o_proj, an added part ends in a zero matrix. Low-rank pairs are multiplied.

    Args:
        model: of a known family, dense or pruned.
        target: a model on meta, whose names and shapes are wanted; Llama-like names.
        blocks: sizes of the target's blocks; at least those of the model's.
        kept: the model's block for each of the target's.
    """
    shape = family_of(model.config).shape(model.config)
    tied = target.config.tie_word_embeddings
    return {
        name: _grown(model, name, tuple(value.shape), shape, blocks, kept)
        for name, value in target.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def _grown(
    model: Any, name: str, size: tuple[int, ...], shape: ModelShape, blocks: Sequence[BlockShape], kept: Sequence[int]
) -> Lazy:
    parts = name.split(".")
    number = int(parts[2]) if parts[1] == "layers" else None
    if number is not None:
        parts[2] = str(kept[number])
    axis, kind = _AXES.get(parts[-2], (0, ""))

    def make() -> Tensor:
        if number is not None:
            family_of(model.config).block(model, kept[number])  # in memory, where the model is streamed
        source = _find(model, ".".join(parts[:-1]), parts[-1])
        if source is None:  # a norm without its part may be anything, a bias or matrix must be nothing
            new = torch.ones if parts[-2].endswith("norm") else torch.zeros
            return new(size, dtype=model.dtype)
        if tuple(source.shape) == size:
            return source
        assert number is not None  # only blocks differ in size
        old = _axis_sizes(shape.blocks[kept[number]], shape.head_dim)[kind]
        return _embed(source, axis, old, _axis_sizes(blocks[number], shape.head_dim)[kind])

    return Lazy(size, make)


def _find(model: Any, path: str, kind: str) -> Tensor | None:
    """A weight or bias of the model; None where it has none there."""
    try:
        module = model.get_submodule(path)
    except AttributeError:  # of a removed part
        return None
    if kind == "weight" and isinstance(module, LowRankLinear):
        return dense_weight(module)
    found = getattr(module, kind, None)
    return None if found is None else found.detach()


def dense_weight(linear: LowRankLinear) -> Tensor:
    """The matrix `[out, in]` that a low-rank pair stands for, multiplied in fp32, in the pair's own dtype."""
    a, b = linear.a.weight.detach(), linear.b.weight.detach()
    product = b.float() @ a.float()
    full = torch.cat([a.float(), product])[linear.order] if linear.pivoted else product
    return full.to(a.dtype)


def _axis_sizes(block: BlockShape, head_dim: int) -> dict[str, tuple[int, ...]]:
    """How rows or columns are ordered: KV groups, in each its query heads, in each its head dimensions."""
    return {
        _QUERIES: (block.kv_groups, block.heads_per_group, head_dim),
        _KEYS: (block.kv_groups, head_dim),
        _CHANNELS: (block.ffn,),
    }


def _embed(tensor: Tensor, axis: int, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """The tensor in a corner of zeros, along one axis that stands for several."""
    before, after = tensor.shape[:axis], tensor.shape[axis + 1 :]
    grown = tensor.new_zeros(*before, *new, *after)
    corner = (*(slice(n) for n in before), *(slice(n) for n in old))
    grown[corner] = tensor.view(*before, *old, *after)
    return grown.view(*before, -1, *after)
