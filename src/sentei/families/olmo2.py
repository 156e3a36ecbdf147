"""OLMo 2: norms after each part instead of before it; q and k normalised over all heads, which stay together."""

from dataclasses import replace

from sentei.families.base import Family
from sentei.families.parts import ATTENTION, FFN

FAMILY = Family(
    name="olmo2",
    prefix="Olmo2",
    attention_part=replace(ATTENTION, before=None, after="post_attention_layernorm"),
    ffn_part=replace(FFN, before=None, after="post_feedforward_layernorm"),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    qk_norm="all heads",
    uniform_as=("olmo2",),
    since="5.6",  # before, its config takes no tied embeddings
)
