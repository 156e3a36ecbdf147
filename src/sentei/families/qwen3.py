"""Qwen3 (dense): q and k are normalised per head; blocks may differ in their sliding window."""

from sentei.families.base import Family

FAMILY = Family(
    name="qwen3",
    like_llama=True,
    prefix="Qwen3",
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    qk_norm=True,
    uniform_as=("qwen3",),
)
