"""Qwen2 and Qwen2.5: biases on q, k and v; blocks may differ in their sliding window."""

from sentei.families.base import Family

# vLLM derives the head size of Qwen2 from the head count, so that only the full count is safe in the stock class.
FAMILY = Family(name="qwen2", like_llama=True, prefix="Qwen2", qkv_bias=True, uniform_as=("qwen2",), heads="exact")
