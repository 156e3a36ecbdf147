"""What a model's config says about its sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sentei.errors import InputError
from sentei.families.modeling_sentei import layer_config
from sentei.shape import BlockShape, ModelShape

if TYPE_CHECKING:
    from sentei.families.base import Family

Fact = bool | str  # a constant, or the name of the config key that says it


def shape_of(family: Family, config: Any) -> ModelShape:
    """See `Family.shape`."""
    first = layer_config(config, 0)
    return ModelShape(
        hidden=first.hidden_size,
        gated="gate_proj" in family.ffn_part.matrices,
        attention_norms=len(family.attention_part.norms),
        ffn_norms=len(family.ffn_part.norms),
        norm_bias=family.layer_norm,
        positions=getattr(first, family.positions) if family.positions else 0,
        top_k=first.num_experts_per_tok if family.ffn_part.experts else 0,
        head_dim=getattr(first, "head_dim", None) or first.hidden_size // first.num_attention_heads,
        vocab=first.vocab_size,
        tied=bool(first.tie_word_embeddings),
        qkv_bias=fact(family.qkv_bias, first),
        qk_norm=bool(family.qk_norm),
        qk_norm_over_heads=family.qk_norm == "all heads",
        o_bias=fact(family.o_bias, first),
        mlp_bias=fact(family.mlp_bias, first),
        storage=getattr(first, "rank_storage", "factors"),
        itemsize=_itemsize(_stored_dtype(config)),
        blocks=tuple(_block_shape(family, layer_config(config, i), i) for i in range(first.num_hidden_layers)),
    )


def _block_shape(family: Family, config: Any, index: int) -> BlockShape:
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    if heads % groups:
        where = f"layer {index}: num_attention_heads {heads}"
        raise InputError(f"{where} is no multiple of num_key_value_heads {groups}; mend config.json")
    skip = getattr(config, "skip", None) or ()
    window = _window(config, index)
    attention, ffn = "attention" not in skip, "mlp" not in skip
    width = getattr(config, "intermediate_size", None) or getattr(config, family.ffn_size) or 4 * config.hidden_size
    experts = _experts(family, config, index) if ffn else ()
    return BlockShape(
        kv_groups=groups if attention else 0,
        heads_per_group=heads // groups if attention else 0,
        ffn=sum(experts) or (width if ffn else 0),
        experts=experts,
        o_bias=attention and getattr(config, "o_proj_bias", False),
        down_bias=ffn and getattr(config, "down_proj_bias", False),
        ranks=getattr(config, "ranks", None) or {},
        window=window if attention else None,
    )


def _experts(family: Family, config: Any, index: int) -> tuple[int, ...]:
    """Channels of each expert of a block; none where its FFN is a plain one."""
    experts = family.ffn_part.experts
    if sizes := getattr(config, "expert_sizes", None):
        return tuple(sizes)
    every = getattr(config, "decoder_sparse_step", 1)
    plain = index in (getattr(config, "mlp_only_layers", None) or ()) or every < 1 or (index + 1) % every
    if experts is None or plain or hasattr(config, "sentei_parts"):
        return ()
    count, picked = getattr(config, experts.count), config.num_experts_per_tok
    if not 0 < picked <= max(count, 1):
        where = f"layer {index}: num_experts_per_tok {picked}"
        raise InputError(f"{where} is none of 1 to {count}, as many as there are experts; mend config.json")
    return (getattr(config, experts.width),) * count


def _stored_dtype(config: Any) -> str:
    """The dtype that a saved model declares: that of the checkpoint, whatever dtype it was loaded in."""
    found = getattr(config, "sentei_dtype", None) or getattr(config, "dtype", None) or "float32"
    return str(found).removeprefix("torch.")


def _itemsize(dtype: str) -> int:
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise InputError(f"dtype {dtype!r} is none that torch knows, such as bfloat16 or float32; mend config.json")
    return int(found.itemsize)


def _window(config: Any, index: int) -> int | None:
    """How many tokens block `index` sees at most; None where its attention does not slide."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    return window if kinds[index % len(kinds)] == "sliding_attention" else None


def fact(known: Fact, config: Any) -> bool:
    """What a family says, or the config for it."""
    return bool(getattr(config, known)) if isinstance(known, str) else known
