"""Mixtral: every FFN is a mixture of experts; otherwise as Mistral."""

from sentei.families.base import Family
from sentei.families.parts import Experts, Part

FAMILY = Family(
    name="mixtral",
    prefix="Mixtral",
    ffn_part=Part(
        "mlp",
        "post_attention_layernorm",
        matrices={name: name for name in ("gate_proj", "up_proj", "down_proj")},
        experts=Experts(count="num_local_experts", width="intermediate_size"),
    ),
    uniform_as=("mixtral",),
    features=("num_local_experts", "num_experts_per_tok", "output_router_logits", "router_aux_loss_coef"),
    stored_as={
        ".mlp.": ".block_sparse_moe.",
        ".gate_proj.": ".w1.",
        ".down_proj.": ".w2.",
        ".up_proj.": ".w3.",
    },
)
