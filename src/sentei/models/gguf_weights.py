"""The tensors of a GGUF file under transformers' names, one block at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sentei.models.gguf_config import GATE_UP, QKV, BlockSizes, GgufModel
from sentei.models.gguf_file import GgufFile

_ATTENTION = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
_FFN = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}


def read_tensors(file: GgufFile, model: GgufModel) -> Iterator[tuple[str, Tensor]]:
    """Takes all tensors of the model: fp32, in transformers' order of rows.

    Raises:
        InputError: one is missing or has another shape.
    """
    yield "model.embed_tokens.weight", file.tensor("token_embd.weight", model.vocab, model.hidden)
    yield "model.norm.weight", file.tensor("output_norm.weight", model.hidden)
    if not model.tied:
        yield "lm_head.weight", file.tensor("output.weight", model.vocab, model.hidden)
    for index, block in enumerate(model.blocks):
        for name, value in (*_attention(file, model, index, block), *_ffn(file, model, index, block)):
            yield f"model.layers.{index}.{name}", value


def _attention(file: GgufFile, model: GgufModel, index: int, block: BlockSizes) -> Iterator[tuple[str, Tensor]]:
    if not block.heads:
        return
    here, width, hidden = f"blk.{index}", model.head_dim, model.hidden
    queries, keys = block.heads * width, block.groups * width
    yield "input_layernorm.weight", file.tensor(f"{here}.attn_norm.weight", hidden)
    if file.arch in ("qwen3", "openelm"):
        for name in ("q", "k"):
            yield f"self_attn.{name}_norm.weight", file.tensor(f"{here}.attn_{name}_norm.weight", width)
    rows = {"attn_q": queries, "attn_k": keys, "attn_v": keys}
    if file.arch == "openelm":
        fused = file.tensor(f"{here}.attn_qkv.weight", queries + 2 * keys, hidden)
        for name, part in zip(rows, fused.split(list(rows.values())), strict=True):
            yield f"self_attn.{_ATTENTION[name]}.weight", part.contiguous()
        yield "self_attn.o_proj.weight", file.tensor(f"{here}.attn_output.weight", hidden, queries)
        return
    turned = file.arch in ("llama", "deci")  # RoPE turns neighbours there, and halves in transformers
    for name, ours in _ATTENTION.items():
        shape = (hidden, queries) if name == "attn_output" else (rows[name], hidden)
        for kind, value in _linear(file, model, index, name, shape):
            back = turned and name in ("attn_q", "attn_k")
            yield f"self_attn.{ours}.{kind}", _halves(value, width) if back else value


def _ffn(file: GgufFile, model: GgufModel, index: int, block: BlockSizes) -> Iterator[tuple[str, Tensor]]:
    if not block.ffn:
        return
    yield "post_attention_layernorm.weight", file.tensor(f"blk.{index}.ffn_norm.weight", model.hidden)
    for name, ours in _FFN.items():
        shape = (model.hidden, block.ffn) if name == "ffn_down" else (block.ffn, model.hidden)
        for kind, value in _linear(file, model, index, name, shape):
            yield f"mlp.{ours}.{kind}", value


def _linear(
    file: GgufFile, model: GgufModel, index: int, name: str, shape: tuple[int, int]
) -> Iterator[tuple[str, Tensor]]:
    """A matrix `[out, in]` and, where the class has one, its bias: zero where a block has none of its kind."""
    yield "weight", file.tensor(f"blk.{index}.{name}.weight", *shape)
    if name in model.biases[index]:
        kind = next((names for names in (QKV, GATE_UP) if name in names), (name,))
        stored = model.blocks[index].has(*kind)
        yield "bias", file.tensor(f"blk.{index}.{name}.bias", shape[0]) if stored else torch.zeros(shape[0])


def _halves(rows: Tensor, width: int) -> Tensor:
    """Rows of each head from (2i, 2i + 1) order to (i, i + d/2) order."""
    return rows.reshape(-1, width // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape).contiguous()
