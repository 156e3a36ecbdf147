"""GGUF files for llama.cpp and Ollama: stock architectures, blocks of different sizes, no custom code.

Written tensor by tensor, so that no second copy of the model is in memory. What a stock architecture cannot leave out
is padded with zeros, which changes no output.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentei.errors import InputError
from sentei.families import family_of
from sentei.models.gguf_file import WINDOW_KEYS
from sentei.ship.base import FLOATS, Options, Route, elsewhere
from sentei.ship.gguf_layout import Layout, lay_out, misfit

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from sentei.models.load import Loaded
    from sentei.plan import ModelShape

BLOCKS = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")  # rows in blocks of 32
OWN = (*FLOATS, *BLOCKS)  # written by us
K_QUANTS = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K")
QUANTISER = "llama-quantize"  # llama.cpp's own tool writes those
_ROPE = ("default", "linear", "yarn", "llama3")


def refuse(loaded: Loaded) -> str | None:
    """Why no GGUF can be made of this model, and what can be done instead; None where one can."""
    from sentei.ship.gguf_tokenizer import read_vocabulary

    config = loaded.model.config
    family = family_of(config)
    shape = family.shape(config)
    if not family.like_llama:
        return f"sentei writes no GGUF of family {family.name} yet; {elsewhere(family)}"
    if config.hidden_act != "silu":
        return f"llama.cpp computes silu here, the model {config.hidden_act}; use --to hf, onnx or openvino"
    if (reason := misfit(family, shape)) or (reason := _rope_misfit(config, lay_out(family, shape))):
        return reason
    try:
        read_vocabulary(loaded.tokenizer, shape.vocab)
    except InputError as error:
        return str(error)
    return None


def write(loaded: Loaded, path: Path, options: Options) -> dict[str, Any]:
    """Writes the model to `path`.

    Args:
        loaded: dense or pruned, one that `refuse` does not refuse.
        path: the file.
        options: `dtype` is one of `OWN` or `K_QUANTS`.

    Returns:
        `dtype`, `arch`, `padding_bytes` and `notes` (sentences for the user).

    Raises:
        InputError: K-quants without llama.cpp's tool, or a value beyond the range of F16.
    """
    dtype = options.dtype_of(loaded.model)
    if dtype not in K_QUANTS:
        return _write(loaded, path, dtype, multiple=32 if dtype in BLOCKS else 1)
    tool = _quantiser(dtype)
    with tempfile.TemporaryDirectory(prefix="full-", dir=path.parent) as scratch:
        full = Path(scratch) / "full.gguf"
        facts = _write(loaded, full, Options().dtype_of(loaded.model), multiple=256)
        done = subprocess.run([tool, str(full), str(path), dtype], capture_output=True, text=True)
    if done.returncode or not path.exists():
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise InputError(f"{QUANTISER} failed with code {done.returncode}: {lines[-1] if lines else 'it says nothing'}")
    return facts | {"dtype": dtype, "notes": [*facts["notes"], f"quantised by {tool}; padding is counted before that"]}


def _quantiser(dtype: str) -> str:
    """Where llama.cpp's tool is."""
    tool = shutil.which(QUANTISER)
    if tool is None:
        raise InputError(
            f"{dtype} is written by llama.cpp's {QUANTISER}, which is not on PATH; "
            "install llama.cpp (brew install llama.cpp, or its release page), or use --dtype Q8_0"
        )
    return tool


def _ready(options: Options) -> None:
    if options.dtype in K_QUANTS:
        _quantiser(options.dtype)


def _write(loaded: Loaded, path: Path, dtype: str, multiple: int) -> dict[str, Any]:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    from sentei.ship.gguf_tensors import encode, entries
    from sentei.ship.gguf_tokenizer import add_tokenizer

    family = family_of(loaded.model.config)
    shape = family.shape(loaded.model.config)
    layout = lay_out(family, shape, multiple)
    wanted = GGMLQuantizationType[dtype]
    writer = GGUFWriter(str(path), layout.arch)
    try:
        notes = _add_config(writer, loaded, shape, layout, dtype)
        notes += add_tokenizer(writer, loaded.tokenizer, shape.vocab)
        padding, other = 0.0, set()
        listed = []
        for entry in entries(loaded.model, family, shape, layout):
            kind = entry.stored_as(wanted)
            size = entry.nbytes(kind)
            writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), size, raw_dtype=kind)
            padding += size * (1 - entry.real / np.prod(entry.shape))
            listed.append((entry, kind))
            if len(entry.shape) > 1 and kind != wanted:
                other.add(entry.name.split(".")[-2])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry, kind in listed:
            writer.write_tensor_data(encode(entry, kind))
    finally:
        writer.close()
    if other:
        notes.append(f"{', '.join(sorted(other))}: F16, for rows that are no multiple of {dtype}'s 32 values")
    return {"dtype": dtype, "arch": layout.arch, "padding_bytes": round(padding), "notes": notes}


def _add_config(writer: GGUFWriter, loaded: Loaded, shape: ModelShape, layout: Layout, dtype: str) -> list[str]:
    """Writes sizes and settings; gives notes for the user."""
    import gguf

    config: Any = loaded.model.config
    notes = []
    context = config.max_position_embeddings
    window = _window(config)
    if window is not None and window < context:
        context = window
        notes.append(f"llama.cpp has no sliding window here: the context is {window} tokens, within which it is exact")
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * len(shape.blocks)
        # For our own reader; llama.cpp looks at keys of its architectures alone.
        writer.add_uint32(WINDOW_KEYS["context"], config.max_position_embeddings)
        writer.add_uint32(WINDOW_KEYS["window"], window)
        writer.add_array(WINDOW_KEYS["blocks"], [kinds[block.index] == "sliding_attention" for block in layout.blocks])
    writer.add_type("model")
    writer.add_name(loaded.name)
    writer.add_file_type(gguf.LlamaFileType[{"F32": "ALL_F32"}.get(dtype, f"MOSTLY_{dtype}")])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(len(layout.blocks))
    writer.add_vocab_size(shape.vocab)
    each = [[getattr(block, name) for block in layout.blocks] for name in ("heads", "groups", "ffn")]
    one = layout.arch in ("llama", "qwen3")
    heads, groups, ffn = [column[0] for column in each] if one else each
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_feed_forward_length(ffn)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(_original_context(config))
        writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32.0))
        writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1.0))
    return notes


def _window(config: Any) -> int | None:
    """The narrowest sliding window of any block."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return window if kinds is None or "sliding_attention" in kinds else None


def _original_context(config: Any) -> int:
    return int(config.rope_parameters.get("original_max_position_embeddings") or config.max_position_embeddings)


def _rope_misfit(config: Any, layout: Layout) -> str | None:
    """Why llama.cpp cannot turn positions as this model does."""
    rope = config.rope_parameters
    kind = rope["rope_type"]
    if kind == "longrope" and rope["short_factor"] == rope["long_factor"] and rope.get("attention_factor") == 1.0:
        kind = "llama3"  # factors that do not depend on the length, as a GGUF file holds them
    if kind not in _ROPE or (kind == "llama3" and not layout.interleaved):
        return f"llama.cpp's {layout.arch} has no RoPE of type {kind!r}; use --to hf, onnx or openvino"
    odd = [key for key in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(key) is not None]
    if kind == "yarn" and (odd or rope.get("truncate") is False):
        return f"llama.cpp's YaRN has its own {', '.join(odd) or 'truncate'}; use --to hf, onnx or openvino"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "llama.cpp turns whole heads here, the model only a part of each; use --to hf, onnx or openvino"
    return None


ROUTE = Route(
    name="gguf",
    line="one .gguf file in a stock architecture (llama, qwen3; deci, openelm for blocks of different sizes)",
    engines=("llama.cpp", "ollama"),
    refuse=refuse,
    ready=_ready,
    write=write,
    suffix=".gguf",
    dtypes=(*OWN, *K_QUANTS),
    sizes=("gguf", "mlx", "vllm", "sglang", "trtllm", "uniform"),
    serve={"llama.cpp": "llama-server -m {path}"},
)
