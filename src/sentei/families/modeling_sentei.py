"""Llama-like models whose blocks differ in size. Made by sentei, Apache-2.0. Needs torch and transformers >= 4.50.

A block is transformers' own decoder layer, built from `config.per_layer_config[i]` (`num_attention_heads`,
`num_key_value_heads`, `intermediate_size`, `skip`: ["attention", "mlp"], and ours: `o_proj_bias`, `down_proj_bias`,
`ranks`: {"q_proj": 64} for matrices that are stored as a product). Everything else, `forward` included, is inherited,
so that serving engines recognise it.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralRMSNorm, MistralRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding

try:
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model
    from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding
except ImportError:  # transformers 4.50: it has no Qwen3, and the others load all the same
    Qwen3Config = None


def layer_config(config: Any, index: int) -> Any:
    """The config of one block: native from transformers 5.15 on, made here for older ones."""
    layers = getattr(config, "per_layer_config", None)
    if layers is not None and not isinstance(layers, dict):
        return layers[index]
    own = copy.copy(config)
    for key, values in (layers or {}).items():  # keys are "5" or "05"
        if int(key) == index:
            for name, value in values.items():
                setattr(own, name, value)
    return own


class Removed(nn.Module):
    """Stands where an attention or FFN part was: has no weights, caches nothing, adds nothing to the residual."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if self.pair else nothing


class LowRankLinear(nn.Module):
    """A linear map of rank R: `b(a(x))`, two plain linears, so that adapters and quantisers find them.

    Pivoted: R of the outputs are `a(x)` itself and the others are mixed from them, which saves R² parameters; `order`
    puts the outputs back into their places.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool, pivoted: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank, self.pivoted = in_features, out_features, rank, pivoted
        self.a = nn.Linear(in_features, rank, bias=False)
        self.b = nn.Linear(rank, out_features - rank if pivoted else out_features, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        if pivoted:
            self.order: torch.Tensor
            self.register_buffer("order", torch.arange(out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        y = torch.cat([y, self.b(y)], dim=-1)[..., self.order] if self.pivoted else self.b(y)
        return y if self.bias is None else y + self.bias


def _with_bias(linear: nn.Linear) -> nn.Linear:
    return nn.Linear(linear.in_features, linear.out_features, bias=True)


def build_block(layer_class: Any, config: Any, index: int) -> nn.Module:
    """Block `index`: a stock decoder layer of its own size, without the parts that it skips."""
    own = layer_config(config, index)
    skip = getattr(own, "skip", None) or ()
    heads, groups = own.num_attention_heads, own.num_key_value_heads
    if heads % groups:
        raise ValueError(f"layer {index}: num_attention_heads {heads} is no multiple of num_key_value_heads {groups}")
    block = layer_class(own, index)
    # Its own config is a snapshot; a later change of the attention implementation is made in the model's config.
    block.self_attn.config = block.mlp.config = config
    if own.o_proj_bias:
        block.self_attn.o_proj = _with_bias(block.self_attn.o_proj)
    if own.down_proj_bias:
        block.mlp.down_proj = _with_bias(block.mlp.down_proj)
    for name, rank in (getattr(own, "ranks", None) or {}).items():
        part = block.self_attn if hasattr(block.self_attn, name) else block.mlp
        full = getattr(part, name)
        pivoted = getattr(own, "rank_storage", "factors") == "pivoted"
        low = LowRankLinear(full.in_features, full.out_features, rank, full.bias is not None, pivoted)
        setattr(part, name, low)
    if "attention" in skip:
        block.input_layernorm, block.self_attn = nn.Identity(), Removed(pair=True)
    if "mlp" in skip:
        block.post_attention_layernorm, block.mlp = nn.Identity(), Removed(pair=False)
    return block


class _ModelMixin:
    """Builds the stock model with blocks of different sizes."""

    _parts: tuple[Any, Any, Any]
    post_init: Any

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        layer_class, norm_class, rotary_class = self._parts
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(build_block(layer_class, config, i) for i in range(config.num_hidden_layers))
        self.norm = norm_class(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = rotary_class(config=config)
        self.gradient_checkpointing = False
        self.has_sliding_layers = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        self.post_init()


class _CausalMixin:
    """Adds the language-model head."""

    _body: Any
    post_init: Any

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = self._body(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class SenteiLlamaConfig(LlamaConfig):
    model_type = "sentei_llama"
    o_proj_bias: bool = False
    down_proj_bias: bool = False
    ranks: dict | None = None
    rank_storage: str = "factors"


class SenteiLlamaModel(_ModelMixin, LlamaModel):
    config_class = SenteiLlamaConfig
    _parts = (LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding)


class SenteiLlamaForCausalLM(_CausalMixin, LlamaForCausalLM):
    config_class = SenteiLlamaConfig
    _body = SenteiLlamaModel


class SenteiMistralConfig(MistralConfig):
    model_type = "sentei_mistral"
    o_proj_bias: bool = False
    down_proj_bias: bool = False
    ranks: dict | None = None
    rank_storage: str = "factors"


class SenteiMistralModel(_ModelMixin, MistralModel):
    config_class = SenteiMistralConfig
    _parts = (MistralDecoderLayer, MistralRMSNorm, MistralRotaryEmbedding)


class SenteiMistralForCausalLM(_CausalMixin, MistralForCausalLM):
    config_class = SenteiMistralConfig
    _body = SenteiMistralModel


class SenteiQwen2Config(Qwen2Config):
    model_type = "sentei_qwen2"
    o_proj_bias: bool = False
    down_proj_bias: bool = False
    ranks: dict | None = None
    rank_storage: str = "factors"


class SenteiQwen2Model(_ModelMixin, Qwen2Model):
    config_class = SenteiQwen2Config
    _parts = (Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding)


class SenteiQwen2ForCausalLM(_CausalMixin, Qwen2ForCausalLM):
    config_class = SenteiQwen2Config
    _body = SenteiQwen2Model


if Qwen3Config is not None:

    class SenteiQwen3Config(Qwen3Config):
        model_type = "sentei_qwen3"
        o_proj_bias: bool = False
        down_proj_bias: bool = False
        ranks: dict | None = None
        rank_storage: str = "factors"

    class SenteiQwen3Model(_ModelMixin, Qwen3Model):
        config_class = SenteiQwen3Config
        _parts = (Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding)

    class SenteiQwen3ForCausalLM(_CausalMixin, Qwen3ForCausalLM):
        config_class = SenteiQwen3Config
        _body = SenteiQwen3Model
