"""SmolLM3: Llama with every fourth block without RoPE."""

from sentei.families.base import Family

FAMILY = Family(
    name="smollm3",
    prefix="SmolLM3",
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    mlp_bias="mlp_bias",
    uniform_as=("smollm3",),
    features=("no_rope_layers", "no_rope_layer_interval"),
)
