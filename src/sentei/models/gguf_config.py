"""GGUF metadata as the config of a family: sizes and biases of every block, and how positions are turned.

llama.cpp's `llama` and `deci` compute what Llama, Mistral and Qwen2 compute, `qwen2` Qwen2, `qwen3` and `openelm` Qwen3
(src/models); blocks that no stock class has a place for become the class of a pruned model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sentei.errors import InputError
from sentei.families import FAMILIES
from sentei.models.gguf_file import WINDOW_KEYS, GgufFile
from sentei.models.gguf_rope import read_rope

# Keys that change nothing as long as they have one of these values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.sliding_window": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "logit_scale": (0, 1),
    "pooling_type": (0,),
    "residual_scale": (0, 1),
    "use_parallel_residual": (False,),
}


@dataclass(frozen=True)
class BlockSizes:
    """One block of the file.

    Attributes:
        heads: query heads; 0: no attention.
        groups: KV heads.
        ffn: channels; 0: no FFN.
        biases: of the matrices that have one: "attn_q", "attn_output", "ffn_down" and so on.
    """

    heads: int
    groups: int
    ffn: int
    biases: frozenset[str]

    def has(self, *names: str) -> bool:
        """Whether any of these matrices has a bias."""
        return not self.biases.isdisjoint(names)


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file says of a model.

    Attributes:
        config: values for config.json.
        blocks: as they are stored.
        biases: by block, of the matrices that have one in the class; those that the file has not are zero.
        hidden, head_dim, vocab: sizes.
        tied: the head is the embedding.
    """

    config: dict[str, Any]
    blocks: list[BlockSizes]
    biases: list[frozenset[str]]
    hidden: int
    head_dim: int
    vocab: int
    tied: bool


QKV, GATE_UP = ("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up")
_BIASED = (*QKV, "attn_output", *GATE_UP, "ffn_down")


def read_model(file: GgufFile) -> GgufModel:
    """Takes all metadata but the tokenizer's.

    Raises:
        InputError: an architecture that is not read, a missing key, one of another type, or sizes that do not fit.
    """
    arch = file.arch
    if arch not in ("llama", "deci", "qwen2", "qwen3", "openelm"):
        raise InputError(
            f"{file.path}: unknown architecture {arch!r} in a GGUF file; known: deci, llama, openelm, qwen2, qwen3"
        )
    for key, neutral in _NEUTRAL.items():
        file.drop_if(f"{arch}.{key}", neutral)
    hidden = file.need(f"{arch}.embedding_length", int)
    blocks = _read_blocks(file)
    heads = next((block.heads for block in blocks if block.heads), 0)
    if not heads:
        raise InputError(f"{file.path}: no block has attention")
    head_dim = file.get(f"{arch}.attention.key_length", int, hidden // heads)
    both = {f"{arch}.attention.value_length": head_dim, f"{arch}.rope.dimension_count": head_dim}
    for key, wanted in both.items():
        if (found := file.get(key, int, wanted)) != wanted:
            raise InputError(
                f"{file.path}: {key} is {found}, the families that sentei knows need the head size {wanted}"
            )
    if "token_embd.weight" not in file.shapes:
        raise InputError(f"{file.path}: tensor token_embd.weight is missing; fetch or convert the file again")
    vocab = file.shapes["token_embd.weight"][0]
    file.drop(rf"{arch}\.(vocab_size|tensor_data_layout)")  # the embedding's rows; llama's old note on its rows' order
    context = file.need(f"{arch}.context_length", int)
    context = file.get(WINDOW_KEYS["context"], int, context)
    window = _read_window(file, len(blocks))
    values = {
        "hidden_size": hidden,
        "head_dim": head_dim,
        "num_hidden_layers": len(blocks),
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": file.need(f"{arch}.attention.layer_norm_rms_epsilon", float),
        "rope_parameters": read_rope(file, head_dim, context),
        "tie_word_embeddings": "output.weight" not in file.shapes,
        "hidden_act": "silu",
        "dtype": "float32",
    }
    classes, biases = _classes(blocks, hidden, window, qk_norm=arch in ("qwen3", "openelm"))
    return GgufModel(values | classes, blocks, biases, hidden, head_dim, vocab, values["tie_word_embeddings"])


def _read_blocks(file: GgufFile) -> list[BlockSizes]:
    arch = file.arch
    count = file.need(f"{arch}.block_count", int)
    names = [name.split(".") for name in file.shapes if name.startswith("blk.")]
    held = max((int(parts[1]) for parts in names if parts[1].isdecimal() and len(parts[1]) < 10), default=-1) + 1
    # Only `deci` has blocks of nothing, which have no tensors.
    if not held <= count <= (held + 1000 if arch == "deci" else held) or not count:
        raise InputError(f"{file.path}: {arch}.block_count is {count}, the tensors have {held} blocks; fetch it again")
    heads = file.each(f"{arch}.attention.head_count", count)
    groups = (
        file.each(f"{arch}.attention.head_count_kv", count) if file.has(f"{arch}.attention.head_count_kv") else heads
    )
    ffn = file.each(f"{arch}.feed_forward_length", count)
    blocks = []
    for i, (h, g, f) in enumerate(zip(heads, groups, ffn, strict=True)):
        # llama.cpp's deci has other things for heads without KV heads, and for attention without an FFN.
        if bool(h) != bool(g) or (g and h % g) or (h and not f) or (arch != "deci" and not h):
            sizes = f"{h} query heads, {g} KV heads and {f} FFN channels"
            raise InputError(f"{file.path}: block {i} has {sizes}, which no family that sentei knows computes")
        blocks.append(BlockSizes(h, g, f, frozenset(n for n in _BIASED if f"blk.{i}.{n}.bias" in file.shapes)))
    return blocks


def _read_window(file: GgufFile, count: int) -> tuple[int, list[bool]] | None:
    """How many tokens back some blocks see, and which; None where all see everything."""
    window = file.get(WINDOW_KEYS["window"], int)
    if window is None:
        return None
    which = file.need(WINDOW_KEYS["blocks"], list)
    if len(which) != count or not all(isinstance(slides, bool) for slides in which):
        raise InputError(
            f"{file.path}: {WINDOW_KEYS['blocks']} has {len(which)} values, expected {count}, one per block"
        )
    return window, which


def _classes(
    blocks: list[BlockSizes], hidden: int, window: tuple[int, list[bool]] | None, *, qk_norm: bool
) -> tuple[dict[str, Any], list[frozenset[str]]]:
    """The class that holds these blocks, with its sizes, and the biases that it has by block."""
    qkv, gate_up = (any(b.has(*names) for b in blocks) for names in (QKV, GATE_UP))
    attention_bias = qkv and (gate_up or all(b.has("attn_output") for b in blocks if b.heads)) and not window
    added = [  # biases that only a pruned class has
        (b.has("attn_output") and not attention_bias, b.has("ffn_down") and not gate_up) for b in blocks
    ]
    first = next(block for block in blocks if block.heads)
    uniform = not any(any(flags) for flags in added)
    uniform &= len({(b.heads, b.groups, b.ffn) for b in blocks}) == 1
    divides = hidden % first.heads == 0
    if qk_norm:
        name = "qwen3"
    elif qkv and not attention_bias:
        name = "qwen2"
    else:  # Mistral is Llama that takes any number of heads, has no biases, and maybe a window
        plain = uniform and not divides and not (attention_bias or gate_up)
        name = "mistral" if plain or window else "llama"
        uniform &= divides or name == "mistral"
    values: dict[str, Any] = {"intermediate_size": max(b.ffn for b in blocks)}
    values |= {"num_attention_heads": first.heads, "num_key_value_heads": first.groups}
    if name == "llama":
        values |= {"attention_bias": attention_bias, "mlp_bias": gate_up}
        if not divides:  # each block says its own, and the class checks this one
            values |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    if name == "mistral":
        values["sliding_window"] = window[0] if window else None
    elif window:
        kinds = ["sliding_attention" if slides else "full_attention" for slides in window[1]]
        values |= {"use_sliding_window": True, "sliding_window": window[0], "layer_types": kinds}
    stem = f"{'' if uniform else 'Sentei'}{FAMILIES[name].prefix}"
    values |= {"model_type": name if uniform else f"sentei_{name}", "architectures": [f"{stem}ForCausalLM"]}
    if not uniform:
        values["allow_global_per_layer_attribute_access"] = True
        values["per_layer_config"] = {
            str(i): _overrides(block, *flags) for i, (block, flags) in enumerate(zip(blocks, added, strict=True))
        }
    everywhere = (*QKV, *(("attn_output",) if attention_bias else ())) if qkv else ()
    everywhere = (*everywhere, *((*GATE_UP, "ffn_down") if gate_up else ()))
    own = [[n for n, flag in zip(("attn_output", "ffn_down"), flags, strict=True) if flag] for flags in added]
    return values, [frozenset((*everywhere, *names)) for names in own]


def _overrides(block: BlockSizes, o_bias: bool, down_bias: bool) -> dict[str, Any]:
    values: dict[str, Any] = {"o_proj_bias": o_bias, "down_proj_bias": down_bias}
    if block.heads:
        values |= {"num_attention_heads": block.heads, "num_key_value_heads": block.groups}
    if block.ffn:
        values["intermediate_size"] = block.ffn
    return values | {"skip": [n for n, size in (("attention", block.heads), ("mlp", block.ffn)) if not size]}
