"""Granite 3: Llama with factors on the embedding, the attention scores, what each part adds, and the logits."""

from sentei.families.base import Family

FAMILY = Family(
    name="granite",
    prefix="Granite",
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    mlp_bias="mlp_bias",
    multiplier="residual_multiplier",
    uniform_as=("granite",),
    features=("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
)
