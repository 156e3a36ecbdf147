"""Gemma 2: norms before and after each part, soft caps, every other block with a sliding window, scaled embeddings."""

from dataclasses import replace

from sentei.families.base import Family
from sentei.families.parts import ATTENTION, FFN

FAMILY = Family(
    name="gemma2",
    prefix="Gemma2",
    attention_part=replace(ATTENTION, after="post_attention_layernorm"),
    ffn_part=replace(FFN, before="pre_feedforward_layernorm", after="post_feedforward_layernorm"),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    uniform_as=("gemma2",),
    features=("hidden_activation", "query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping"),
    heads="divide",
)
