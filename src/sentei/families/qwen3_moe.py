"""Qwen3-MoE: as Qwen3, with mixtures of experts in all blocks or in some."""

from sentei.families.base import Family
from sentei.families.parts import Experts, Part

FAMILY = Family(
    name="qwen3_moe",
    prefix="Qwen3Moe",
    ffn_part=Part(
        "mlp",
        "post_attention_layernorm",
        matrices={name: name for name in ("gate_proj", "up_proj", "down_proj")},
        experts=Experts(count="num_local_experts", width="moe_intermediate_size"),
    ),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    qk_norm=True,
    uniform_as=("qwen3_moe",),
    features=(
        *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
        *("decoder_sparse_step", "mlp_only_layers", "output_router_logits", "router_aux_loss_coef"),
    ),
)
