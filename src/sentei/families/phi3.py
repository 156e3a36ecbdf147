"""Phi-3 and Phi-4-mini: q, k and v as one matrix, gate and up as another; RoPE on a part of each head."""

from sentei.families.base import Family
from sentei.families.parts import QKV, Fused, Part

FAMILY = Family(
    name="phi3",
    prefix="Phi3",
    attention_part=Part(
        "self_attn",
        "input_layernorm",
        matrices={name: f"qkv_proj.{name}" for name in QKV} | {"o_proj": "o_proj"},
        fused={"qkv_proj": Fused(QKV)},
        attributes={"num_key_value_groups": "heads_per_group", "num_key_value_heads": "groups"},
    ),
    ffn_part=Part(
        "mlp",
        "post_attention_layernorm",
        matrices={
            "gate_proj": "gate_up_proj.gate_proj",
            "up_proj": "gate_up_proj.up_proj",
            "down_proj": "down_proj",
        },
        fused={"gate_up_proj": Fused(("gate_proj", "up_proj"))},
    ),
    uniform_as=("phi3",),
    features=("resid_pdrop", "embd_pdrop", "original_max_position_embeddings", "partial_rotary_factor"),
)
