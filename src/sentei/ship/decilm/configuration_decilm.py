"""Config of Llama-like models whose blocks differ in KV heads, FFN width and missing parts. Made by sentei, Apache-2.0.

vLLM, SGLang and TensorRT-LLM bring the model; they read `config.block_configs[i].attention.no_op`,
`.attention.n_heads_in_group`, `.ffn.no_op` and `.ffn.ffn_mult`.
"""

from typing import Any

from transformers import LlamaConfig


class Values(dict):
    """A JSON object whose keys are attributes too; it serialises as what it is."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def ffn_width(ffn_mult: float, hidden: int) -> int:
    """The FFN width that engines derive: two thirds of the multiple, rounded up to a multiple of 256."""
    return -(-int(2 * ffn_mult * hidden / 3) // 256) * 256


class DeciLMConfig(LlamaConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs: Any = None, num_attention_heads: int = 32, **kwargs: Any) -> None:
        kwargs["head_dim"] = kwargs.get("head_dim") or kwargs.get("hidden_size", 4096) // num_attention_heads
        for name in ("intermediate_size", "num_key_value_heads"):  # each block has its own
            kwargs.pop(name, None)
        # Llama's own check refuses head counts that do not divide the hidden size, though `head_dim` is given.
        super().__init__(num_attention_heads=1, **kwargs)
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = None
        object.__setattr__(self, "intermediate_size", None)  # past the type check of transformers 5
        self.block_configs = [
            Values({part: Values(values) for part, values in block.items()}) for block in block_configs or []
        ]
