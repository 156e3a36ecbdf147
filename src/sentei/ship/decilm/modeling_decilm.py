"""The model of `configuration_decilm.py` for transformers (>= 4.51). Made by sentei, Apache-2.0.

A block is transformers' own Llama layer of its own size, `forward` included. Serving engines have their own version and
do not read this file.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from .configuration_decilm import DeciLMConfig, ffn_width


class NoOp(nn.Module):
    """Stands where an attention or FFN part was: has no weights, caches nothing, adds nothing to the residual."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if self.pair else nothing


def build_block(config: Any, index: int) -> nn.Module:
    """Block `index`: a stock layer of its own size, without the parts that are no-ops."""
    attention, ffn = config.block_configs[index].attention, config.block_configs[index].ffn
    own = copy.copy(config)
    own.num_key_value_heads = config.num_attention_heads // (1 if attention.no_op else attention.n_heads_in_group)
    own.intermediate_size = 1 if ffn.no_op else ffn_width(ffn.ffn_mult, config.hidden_size)
    block = LlamaDecoderLayer(own, index)
    # Its own config is a snapshot; a later change of the attention implementation is made in the model's config.
    block.self_attn.config = block.mlp.config = config
    if attention.no_op:
        block.input_layernorm, block.self_attn = nn.Identity(), NoOp(pair=True)
    if ffn.no_op:
        block.post_attention_layernorm, block.mlp = nn.Identity(), NoOp(pair=False)
    return block


class DeciLMModel(LlamaModel):
    config_class = DeciLMConfig

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(build_block(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class DeciLMForCausalLM(LlamaForCausalLM):
    config_class = DeciLMConfig

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = DeciLMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
