"""`nemotron-nas`: DeciLM's schema, which vLLM, SGLang, TensorRT-LLM and MLX-LM read; KV heads, FFN and parts per block.

The schema has one query-head count for all blocks, and an FFN width that is a factor of the hidden size, rounded up
to a multiple of 256. Smaller parts are filled up with zeros.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sentei.families import family_of
from sentei.families.surgery import OURS, on_meta
from sentei.plan import BlockShape, ModelShape
from sentei.ship.base import FLOATS, Options, Route, elsewhere
from sentei.ship.decilm import configuration_decilm, modeling_decilm
from sentei.ship.directory import padding_bytes, write_directory
from sentei.ship.tensors import grown_tensors
from sentei.ship.uniform import window_of

if TYPE_CHECKING:
    from sentei.models.load import Loaded

WIDTH = 256
_DROP = (
    *OURS,
    *("layer_types", "sliding_window", "use_sliding_window", "max_window_layers", "attention_bias", "mlp_bias"),
    *("intermediate_size", "num_key_value_heads", "num_attention_heads"),
)


def legal_blocks(blocks: list[BlockShape]) -> list[BlockShape]:
    """The smallest sizes that the schema holds and that are nowhere smaller than those given.

    All attention parts get the same number of query heads, the fewest with which each part's KV groups divide them and
    have room for its query heads; FFN widths go up to a multiple of 256.
    """
    most = max(b.kv_groups * b.heads_per_group for b in blocks)
    for heads in itertools.count(most):
        groups = [_grouping(b, heads) for b in blocks]
        if all(g is not None for g in groups):
            break
    return [
        BlockShape(kv_groups=g or 0, heads_per_group=heads // g if g else 0, ffn=-(-b.ffn // WIDTH) * WIDTH)
        for b, g in zip(blocks, groups, strict=True)
    ]


def _grouping(block: BlockShape, heads: int) -> int | None:
    """KV groups for a block among `heads` query heads: the fewest that hold it; 0 without attention, None if none."""
    if not block.kv_groups:
        return 0
    fitting = (g for g in range(block.kv_groups, heads + 1) if heads % g == 0 and heads // g >= block.heads_per_group)
    return next(fitting, None)


def refuse(loaded: Loaded) -> str | None:
    """What the schema cannot say."""
    config = loaded.model.config
    shape = family_of(config).shape(config)
    instead = "use --to gguf, hf, onnx or openvino"
    if not family_of(config).like_llama:
        own = family_of(config)
        return f"the format holds Llama's parts only, not those of family {own.name}; {elsewhere(own)}"
    if shape.qk_norm:
        return f"the format has no norms on q and k; {instead}"
    if config.hidden_act != "silu":
        return f"engines take the activation silu only, this model has {config.hidden_act}; {instead}"
    if any(block.ranks for block in shape.blocks):
        return "the format has no low-rank matrices; use --to hf, onnx or openvino, or dense-fold (no savings)"
    if window := window_of(config):
        return f"the format has no sliding window, this model sees {window} tokens back; use --to hf, onnx or openvino"
    if not shape.present or not shape.blocks[shape.present[0]].kv_groups:
        return f"engines need attention in the first block; plan with --target-engine mlx, or {instead}"
    return None


def reach(loaded: Loaded) -> dict[str, str]:
    """Engines that cannot read this export, and why."""
    config = loaded.model.config
    shape = family_of(config).shape(config)
    blocks = legal_blocks([shape.blocks[i] for i in shape.present])
    heads = blocks[0].kv_groups * blocks[0].heads_per_group
    found = {}
    if heads * shape.head_dim != shape.hidden:
        size = f"{heads} query heads of {shape.head_dim}"
        found["mlx"] = f"wants hidden size = query heads × head size, this is {shape.hidden} and {size}"
    if any(_biases(shape)):
        found["trtllm"] = "takes no biases; plan with a compensation without bias"
    return found


def _biases(shape: ModelShape) -> tuple[bool, bool]:
    """Whether attention and FFN need biases; the schema has them for all matrices of a kind, so the rest are zero."""
    attention = shape.qkv_bias or shape.o_bias or any(b.o_bias for b in shape.blocks)
    return attention, shape.mlp_bias or any(b.down_bias for b in shape.blocks)


def block_config(block: BlockShape, hidden: int) -> dict[str, Any]:
    """One entry of `block_configs`. `ffn_mult = 1.5 · width / hidden` is what engines turn back into the width."""
    attention, ffn = bool(block.kv_groups), bool(block.ffn)
    shared = {"replace_with_linear": False, "sparsify": None}
    return {
        "attention": {"no_op": not attention, "n_heads_in_group": block.heads_per_group or None, **shared},
        "ffn": {"no_op": not ffn, "ffn_mult": 1.5 * block.ffn / hidden if ffn else None, **shared},
    }


def write(loaded: Loaded, path: Path, options: Options) -> dict[str, Any]:
    """Writes DeciLM's config, the weights but for those of missing parts, and the two code files."""
    model, dtype = loaded.model, options.dtype_of(loaded.model)
    shape = family_of(model.config).shape(model.config)
    present = shape.present  # the other blocks are left out of the file
    blocks = legal_blocks([shape.blocks[i] for i in present])
    attention_bias, mlp_bias = _biases(shape)
    values = {key: value for key, value in model.config.to_dict().items() if key not in _DROP} | {
        "num_hidden_layers": len(present),
        "num_attention_heads": blocks[0].kv_groups * blocks[0].heads_per_group,
        "head_dim": shape.head_dim,
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
        "block_configs": [block_config(block, shape.hidden) for block in blocks],
    }
    config = configuration_decilm.DeciLMConfig(**values)
    target = on_meta(modeling_decilm.DeciLMForCausalLM, config, getattr(torch, FLOATS[dtype]))
    tensors = grown_tensors(model, target, blocks, present)
    names = {
        "AutoConfig": "configuration_decilm.DeciLMConfig",
        "AutoModel": "modeling_decilm.DeciLMModel",
        "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
    }
    values |= {"architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas", "auto_map": names}
    values |= {"intermediate_size": None, "num_key_value_heads": None}  # each block has its own
    files = [str(module.__file__) for module in (configuration_decilm, modeling_decilm)]
    written = write_directory(loaded, path, values, tensors, dtype, files)
    return {"dtype": dtype, "padding_bytes": padding_bytes(model, written, dtype), "arch": "DeciLMForCausalLM"}


ROUTE = Route(
    name="nemotron-nas",
    line="a directory in DeciLM's schema: KV heads, FFN width and missing parts per block",
    engines=("mlx", "transformers", "vllm", "sglang", "trtllm"),
    refuse=refuse,
    write=write,
    reach=reach,
    sizes=("mlx", "vllm", "sglang", "trtllm"),
    serve={
        "mlx": "mlx_lm.server --model {path}",
        "vllm": "vllm serve {path} --trust-remote-code",
        "sglang": "python -m sglang.launch_server --model-path {path} --trust-remote-code",
        "trtllm": "trtllm-serve {path} --trust_remote_code",
    },
)
