"""`uniform`: a stock class, for models whose blocks have the same sizes. Runs wherever the architecture does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentei.budget import EXPERT_MULTIPLE
from sentei.families import family_of
from sentei.families.stock import as_stock
from sentei.models.save import save
from sentei.ship.base import Options, Route
from sentei.ship.directory import declaring, plan_of

if TYPE_CHECKING:
    from sentei.models.load import Loaded

EVERYWHERE = ("transformers", "mlx", "vllm", "sglang", "trtllm")
SERVE = {
    "transformers": "transformers serve {path}",
    "mlx": "mlx_lm.server --model {path}",
    "vllm": "vllm serve {path}",
    "sglang": "python -m sglang.launch_server --model-path {path}",
    "trtllm": "trtllm-serve {path}",
}


def stock_reach(config: Any) -> dict[str, str]:
    """Engines whose version of a stock class knows less than transformers', for a model with this stock config."""
    found = {}
    if window_of(config):
        found["mlx"] = f"lets every block see everything, this model sees {window_of(config)} tokens back"
    heads = config.num_attention_heads
    if config.model_type == "qwen2" and heads * config.head_dim != config.hidden_size:
        size = f"{config.hidden_size} / {heads}, and its heads have {config.head_dim}"
        found |= dict.fromkeys(("mlx", "vllm"), f"takes the head size of Qwen2 as hidden size / heads; here {size}")
    if config.model_type == "qwen3" and config.attention_bias:
        found["mlx"] = "has no biases in Qwen3"
    return found


def window_of(config: Any) -> int | None:
    """How many tokens back some block sees; None where all see as far as the model was made for."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    if window is None or "sliding_attention" not in kinds or window >= config.max_position_embeddings:
        return None
    return int(window)


def refuse(loaded: Loaded) -> str | None:
    """Blocks of different sizes, low-rank matrices, biases and head counts that the stock class cannot have."""
    if as_stock(loaded.model) is not None:
        return None
    shape = family_of(loaded.model.config).shape(loaded.model.config)
    blocks = [shape.blocks[i] for i in shape.present]
    mend = "plan with --target-engine uniform"
    if not any(block.experts for block in blocks):
        mend = f"use --to dense-fold (zero padding, no savings), or {mend}"
    for name in ("kv_groups", "heads_per_group", "ffn"):
        sizes = sorted({getattr(block, name) for block in blocks})
        if len(sizes) > 1:
            word = {"kv_groups": "KV groups", "heads_per_group": "query heads per group", "ffn": "FFN channels"}[name]
            return f"blocks have {sizes[0]} to {sizes[-1]} {word}, a stock class wants the same in all; {mend}"
    if any(block.ranks for block in blocks):
        return "a stock class has no low-rank matrices; use --to dense-fold (multiplied back, no savings), hf or onnx"
    widths = {n for block in blocks for n in block.experts}
    if len({block.experts for block in blocks}) > 1 or len(widths) > 1 or any(n % EXPERT_MULTIPLE for n in widths):
        own = f"experts have {min(widths)} to {max(widths)} channels"
        return f"{own}, a stock class wants the same multiple of {EXPERT_MULTIPLE} and as many in all blocks; {mend}"
    return f"its biases or its {blocks[0].kv_groups * blocks[0].heads_per_group} query heads fit no stock class; {mend}"


def write(loaded: Loaded, path: Path, options: Options) -> dict[str, Any]:
    """Saves the stock class; head-pruned Llama as Mistral."""
    dtype = options.dtype_of(loaded.model)
    stock = _stock(loaded)
    save(declaring(stock, dtype), path, tokenizer=loaded.tokenizer, plan=plan_of(loaded.model))
    return {"dtype": dtype, "padding_bytes": 0, "arch": type(stock).__name__}


def _stock(loaded: Loaded) -> Any:
    stock = as_stock(loaded.model)
    assert stock is not None  # `refuse` comes first
    return stock


ROUTE = Route(
    name="uniform",
    line="a stock class without custom code, for blocks of one size",
    engines=EVERYWHERE,
    refuse=refuse,
    write=write,
    reach=lambda loaded: stock_reach(_stock(loaded).config),
    sizes=("uniform",),
    serve=SERVE,
)
