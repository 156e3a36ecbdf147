"""`Family`: where the parts of an architecture are, and what its config says about sizes.

The four families so far share one layout (attention with q/k/v/o, gated FFN, a norm before each), so that a family is a
handful of facts. One with another layout overrides the methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from sentei.errors import InputError
from sentei.families.modeling_sentei import layer_config
from sentei.families.streamed import streamed_blocks
from sentei.plan import BlockShape, ModelShape

Fact = bool | str  # a constant, or the name of the config key that says it


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: `model_type` of the stock config; "sentei_<name>" is that of a pruned model.
        prefix: what the class names start with: "Llama" for LlamaConfig, LlamaModel, LlamaForCausalLM.
        qkv_bias: whether q, k and v have biases; a string names the config key that says so.
        o_bias: the same for o.
        mlp_bias: the same for gate, up and down.
        qk_norm: whether q and k are normalised per head.
        uniform_as: families whose stock class computes the same, tried in order for a model of equal blocks.
        features: config keys beyond the usual ones whose effect is inside of a part, or in a method that the family
            overrides; any other setting that changes what the model computes is refused by name.
        heads: what stock code wants of hidden size / query heads: nothing, no remainder, or exactly the head size.
    """

    name: str
    prefix: str
    qkv_bias: Fact = False
    o_bias: Fact = False
    mlp_bias: Fact = False
    qk_norm: bool = False
    uniform_as: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    heads: Literal["free", "divide", "exact"] = "free"

    @property
    def pruned_type(self) -> str:
        """`model_type` of a model with blocks of different sizes."""
        return f"sentei_{self.name}"

    def shape(self, config: Any) -> ModelShape:
        """Sizes of a model with this config, dense or pruned.

        Raises:
            InputError: query heads that do not divide into KV groups.
        """
        first = layer_config(config, 0)
        return ModelShape(
            hidden=first.hidden_size,
            head_dim=getattr(first, "head_dim", None) or first.hidden_size // first.num_attention_heads,
            vocab=first.vocab_size,
            tied=bool(first.tie_word_embeddings),
            qkv_bias=_fact(self.qkv_bias, first),
            qk_norm=self.qk_norm,
            o_bias=_fact(self.o_bias, first),
            mlp_bias=_fact(self.mlp_bias, first),
            storage=getattr(first, "rank_storage", "factors"),
            itemsize=_itemsize(stored_dtype(config)),
            blocks=tuple(self._block_shape(layer_config(config, i), i) for i in range(first.num_hidden_layers)),
        )

    def _block_shape(self, config: Any, index: int) -> BlockShape:
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        if heads % groups:
            where = f"layer {index}: num_attention_heads {heads}"
            raise InputError(f"{where} is no multiple of num_key_value_heads {groups}; mend config.json")
        skip = getattr(config, "skip", None) or ()
        window = _window(config, index)
        attention, ffn = "attention" not in skip, "mlp" not in skip
        return BlockShape(
            kv_groups=groups if attention else 0,
            heads_per_group=heads // groups if attention else 0,
            ffn=config.intermediate_size if ffn else 0,
            o_bias=attention and getattr(config, "o_proj_bias", False),
            down_bias=ffn and getattr(config, "down_proj_bias", False),
            ranks=getattr(config, "ranks", None) or {},
            window=window if attention else None,
        )

    def blocks(self, model: nn.Module) -> nn.ModuleList:
        """The decoder layers, in order; see `block` for one whose weights are wanted."""
        return cast(nn.ModuleList, cast(Any, model).model.layers)

    def block(self, model: nn.Module, index: int) -> nn.Module:
        """One decoder layer, in memory: of a streamed model it is read, and the one before it put away."""
        streamed = streamed_blocks(model)
        if streamed is not None:
            streamed.enter(index)
        return self.blocks(model)[index]

    def embed(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Token ids [B, T] to what block 0 reads, [B, T, hidden]."""
        return cast(Tensor, cast(Any, model).model.embed_tokens(ids))

    def attention(self, block: nn.Module) -> nn.Module | None:
        """The attention part, with q_proj, k_proj, v_proj, o_proj; None where it was removed."""
        return _part(block, "self_attn")

    def ffn(self, block: nn.Module) -> nn.Module | None:
        """The FFN part, with gate_proj, up_proj, down_proj; None where it was removed."""
        return _part(block, "mlp")

    def part(self, block: nn.Module, name: str) -> nn.Module | None:
        """The "attention" or the "ffn" part."""
        return self.attention(block) if name == "attention" else self.ffn(block)

    def part_norm(self, block: nn.Module, name: str) -> nn.Module:
        """The norm before the "attention" or the "ffn" part."""
        return self.attention_norm(block) if name == "attention" else self.ffn_norm(block)

    def attention_norm(self, block: nn.Module) -> nn.Module:
        """The norm before the attention part (an Identity where that was removed)."""
        return cast(nn.Module, block.input_layernorm)

    def ffn_norm(self, block: nn.Module) -> nn.Module:
        """The norm before the FFN part (an Identity where that was removed)."""
        return cast(nn.Module, block.post_attention_layernorm)

    def final_norm(self, model: nn.Module) -> nn.Module:
        """The norm after the last block."""
        return cast(nn.Module, cast(Any, model).model.norm)

    def head(self, model: nn.Module) -> nn.Module:
        """The language-model head; its weight may be that of the embedding."""
        return cast(nn.Module, cast(Any, model).lm_head)

    def block_inputs(self, model: nn.Module, hidden: Tensor, index: int | None = None) -> dict[str, Any]:
        """Keyword arguments for `block(hidden, **inputs)`; no padding, positions from 0.

        Args:
            model: the model whose block it is.
            hidden: [B, T, hidden].
            index: of the block. May be left out where all blocks see equally far (always, but for models that mix
                sliding windows with full attention, on windows longer than the sliding one).

        Raises:
            ValueError: `index` is needed and was left out.
        """
        from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

        config = cast(Any, model).config
        window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None) or ()
        if index is None and len(set(kinds)) > 1 and hidden.shape[1] > cast(int, window):
            raise ValueError(f"blocks see differently far and {hidden.shape[1]} tokens exceed {window}: pass `index`")
        make_mask = create_sliding_window_causal_mask if _window(config, index or 0) else create_causal_mask
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        return {
            "position_ids": positions,
            "position_embeddings": cast(Any, model).model.rotary_emb(hidden, positions),
            "attention_mask": make_mask(config=config, inputs_embeds=hidden, attention_mask=None, past_key_values=None),
            "use_cache": False,
        }


def stored_dtype(config: Any) -> str:
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


def _fact(fact: Fact, config: Any) -> bool:
    return bool(getattr(config, fact)) if isinstance(fact, str) else fact


def _part(block: nn.Module, name: str) -> nn.Module | None:
    part = cast(nn.Module, getattr(block, name))
    return None if next(part.parameters(), None) is None else part  # what stands for a removed part has no weights
