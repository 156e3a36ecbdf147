"""Llama 2 and 3, SmolLM2, TinyLlama, and everything else that says `model_type: llama`."""

from sentei.families.base import Family

# Mistral without a window is the same function, and takes the head counts that LlamaConfig refuses.
FAMILY = Family(
    name="llama",
    like_llama=True,
    prefix="Llama",
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    mlp_bias="mlp_bias",
    uniform_as=("llama", "mistral"),
    heads="divide",
)
