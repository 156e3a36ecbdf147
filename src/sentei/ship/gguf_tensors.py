"""The tensors of a model under llama.cpp's names, made one at a time, and their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from sentei.errors import InputError
from sentei.families.base import Family
from sentei.plan import ModelShape
from sentei.ship.gguf_layout import BlockLayout, Layout

_CHUNK = 1 << 22  # values that are quantised at a time: the quantiser's own copies are several times as large


@dataclass(frozen=True)
class Entry:
    """A tensor to write.

    Attributes:
        name: llama.cpp's.
        shape: as written, padding included.
        make: computes it, of that shape; called when its turn comes.
        real: values that the model has; the others are padding.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    real: int

    def stored_as(self, kind: GGMLQuantizationType) -> GGMLQuantizationType:
        """`kind` for matrices; F32 for norms and biases, and F16 where rows do not fill the blocks of `kind`."""
        if len(self.shape) == 1:
            return GGMLQuantizationType.F32
        return kind if self.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else GGMLQuantizationType.F16

    def nbytes(self, kind: GGMLQuantizationType) -> int:
        """Bytes when stored as `kind`."""
        values, size = GGML_QUANT_SIZES[kind]
        return int(np.prod(self.shape)) // values * size


def entries(model: Any, family: Family, shape: ModelShape, layout: Layout) -> Iterator[Entry]:
    """All tensors of a model, in the order in which they are written."""
    yield _plain("token_embd.weight", model.get_input_embeddings().weight)
    yield _plain("output_norm.weight", family.final_norm(model).weight)
    if not shape.tied:
        yield _plain("output.weight", family.head(model).weight)
    rope = model.config.rope_parameters
    if rope["rope_type"] in ("llama3", "longrope"):
        inv_freq = model.model.rotary_emb.inv_freq.float()
        plain = rope["rope_theta"] ** -(torch.arange(0, shape.head_dim, 2).to(inv_freq) / shape.head_dim)
        yield _plain("rope_freqs.weight", plain / inv_freq)  # llama.cpp divides the plain frequencies by these
    for number, block in enumerate(layout.blocks):

        def of_block(source: Any, block: BlockLayout = block) -> list[Entry]:
            return [*_attention(family, source, shape, layout, block), *_ffn(family, source, shape, block)]

        def make(at: int, index: int = block.index, of_block: Callable[[Any], list[Entry]] = of_block) -> Tensor:
            return of_block(family.block(model, index))[at].make()

        # Names and sizes are those of a block that may not be in memory; it is asked for when it is written.
        for at, entry in enumerate(of_block(family.blocks(model)[block.index])):
            yield Entry(f"blk.{number}.{entry.name}", entry.shape, partial(make, at), entry.real)


def encode(entry: Entry, kind: GGMLQuantizationType) -> NDArray[Any]:
    """The bytes of a tensor; rounding is llama.cpp's own.

    Raises:
        InputError: a value is beyond the range of F16.
    """
    tensor = entry.make().detach().to("cpu")
    if kind == GGMLQuantizationType.F32:
        return tensor.float().contiguous().numpy()
    if kind == GGMLQuantizationType.BF16:
        return tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
    if kind == GGMLQuantizationType.F16:
        low, high = tensor.aminmax()
        if max(-float(low), float(high)) > torch.finfo(torch.float16).max:
            raise InputError(f"{entry.name} has values beyond ±65504, the range of F16; use --dtype BF16 or F32")
        return tensor.to(torch.float16).contiguous().numpy()
    values, size = GGML_QUANT_SIZES[kind]
    out = np.empty((tensor.shape[0], tensor.shape[1] // values * size), dtype=np.uint8)
    rows = max(1, _CHUNK // tensor.shape[1])
    for start in range(0, tensor.shape[0], rows):
        out[start : start + rows] = quantize(tensor[start : start + rows].float().numpy(), kind)
    return out


def _plain(name: str, tensor: Any) -> Entry:
    return Entry(name, tuple(tensor.shape), lambda: tensor, tensor.numel())


def _padded(name: str, tensor: Tensor, rows: int, columns: int | None = None) -> Entry:
    """`tensor` with zeros below and, for a matrix, to the right."""
    more = (0, rows - tensor.shape[0])
    if columns is None:
        return Entry(name, (rows,), lambda: pad(tensor, more), tensor.numel())
    return Entry(name, (rows, columns), lambda: pad(tensor, (0, columns - tensor.shape[1], *more)), tensor.numel())


def _filled(name: str, value: float, *shape: int) -> Entry:
    """Stands where the model has nothing."""
    return Entry(name, shape, lambda: torch.full(shape, value), 0)


def _attention(family: Family, source: Any, shape: ModelShape, layout: Layout, block: BlockLayout) -> Iterator[Entry]:
    part: Any = family.attention(source)
    width, hidden = shape.head_dim, shape.hidden
    if not block.heads:
        return
    fused = layout.arch == "openelm"
    if part is None:  # openelm only: a head whose output is zero
        yield _filled("attn_norm.weight", 1.0, hidden)
        yield _filled("attn_qkv.weight", 0.0, (block.heads + 2 * block.groups) * width, hidden)
        yield _filled("attn_q_norm.weight", 1.0, width)
        yield _filled("attn_k_norm.weight", 1.0, width)
        yield _filled("attn_output.weight", 0.0, hidden, block.heads * width)
        return
    yield _plain("attn_norm.weight", family.norms(source, "attention")[0].weight)
    if fused:
        three = (part.q_proj.weight, part.k_proj.weight, part.v_proj.weight)
        rows = sum(len(weight) for weight in three)
        yield Entry("attn_qkv.weight", (rows, hidden), lambda: torch.cat(three), rows * hidden)
    for name in () if fused else ("q", "k", "v"):
        linear = getattr(part, f"{name}_proj")
        turned = layout.interleaved and name != "v"
        for kind in ("weight", "bias"):
            tensor = getattr(linear, kind)
            if tensor is not None:
                yield _turned(f"attn_{name}.{kind}", tensor, width) if turned else _plain(f"attn_{name}.{kind}", tensor)
    if shape.qk_norm:
        yield _plain("attn_q_norm.weight", part.q_norm.weight)
        yield _plain("attn_k_norm.weight", part.k_norm.weight)
    yield _plain("attn_output.weight", part.o_proj.weight)
    if part.o_proj.bias is not None:
        yield _plain("attn_output.bias", part.o_proj.bias)


def _ffn(family: Family, source: Any, shape: ModelShape, block: BlockLayout) -> Iterator[Entry]:
    part: Any = family.ffn(source)
    hidden = shape.hidden
    if part is None:
        yield _filled("ffn_norm.weight", 1.0, hidden)
        yield _filled("ffn_gate.weight", 0.0, block.ffn, hidden)
        yield _filled("ffn_up.weight", 0.0, block.ffn, hidden)
        yield _filled("ffn_down.weight", 0.0, hidden, block.ffn)
        return
    yield _plain("ffn_norm.weight", family.norms(source, "ffn")[0].weight)
    for name in ("gate", "up"):
        linear = getattr(part, f"{name}_proj")
        yield _padded(f"ffn_{name}.weight", linear.weight, block.ffn, hidden)
        if linear.bias is not None:
            yield _padded(f"ffn_{name}.bias", linear.bias, block.ffn)
    yield _padded("ffn_down.weight", part.down_proj.weight, hidden, block.ffn)
    if part.down_proj.bias is not None:
        yield _plain("ffn_down.bias", part.down_proj.bias)


def _turned(name: str, tensor: Tensor, width: int) -> Entry:
    """Rows of each head from (i, i + d/2) order to (2i, 2i + 1) order."""

    def turn() -> Tensor:
        heads = tensor.reshape(-1, 2, width // 2, *tensor.shape[1:])
        return heads.transpose(1, 2).reshape(tensor.shape)

    return Entry(name, tuple(tensor.shape), turn, tensor.numel())
