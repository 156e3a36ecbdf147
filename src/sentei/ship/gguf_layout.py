"""Which of llama.cpp's architectures holds a model, and with which sizes.

llama.cpp (src/models): `llama` and `qwen3` have one size for all blocks; `deci` has sizes per block, may miss parts,
and computes what Llama, Mistral and Qwen2 compute; `openelm` has sizes per block too and is Qwen3 with a tied head, in
all but the name.
"""

from __future__ import annotations

from dataclasses import dataclass

from sentei.families.base import Family
from sentei.plan import ModelShape

MAX_BLOCKS = 512  # LLAMA_MAX_LAYERS
_ZERO_FFN = 32  # channels of an FFN that stands where `deci` cannot leave it out


@dataclass(frozen=True)
class BlockLayout:
    """One block as it is written; parts that the model has not are zeros.

    Attributes:
        index: of the block in the model.
        heads: query heads; 0: no attention.
        groups: KV heads.
        ffn: channels; the model's, padded up.
    """

    index: int
    heads: int
    groups: int
    ffn: int


@dataclass(frozen=True)
class Layout:
    """A model as it is written.

    Attributes:
        arch: `general.architecture`.
        blocks: blocks that lost both parts are left out: they do nothing.
    """

    arch: str
    blocks: tuple[BlockLayout, ...]

    @property
    def interleaved(self) -> bool:
        """Whether RoPE turns neighbours (2i, 2i + 1) and not halves (i, i + d/2): rows of q and k are reordered."""
        return self.arch in ("llama", "deci")


def lay_out(family: Family, shape: ModelShape, multiple: int = 1) -> Layout:
    """Chooses an architecture and legal sizes.

    Args:
        family: of the model.
        shape: its sizes.
        multiple: FFN widths are padded up to multiples of this.
    """
    present = [(i, shape.blocks[i]) for i in shape.present]
    sizes = {(b.kv_groups, b.heads_per_group, b.ffn) for _, b in present}
    uniform = len(sizes) == 1 and all(b.kv_groups and b.ffn for _, b in present)
    qwen3 = family.qk_norm
    arch = ("qwen3" if qwen3 else "llama") if uniform else ("openelm" if qwen3 else "deci")
    blocks = []
    for i, block in present:
        groups = block.kv_groups or (1 if qwen3 else 0)  # openelm has attention in every block
        heads = block.kv_groups * block.heads_per_group or groups
        # `deci` ends a block without an FFN before the attention's output is added (src/models/deci.cpp).
        ffn = -(-(block.ffn or _ZERO_FFN) // multiple) * multiple
        blocks.append(BlockLayout(i, heads, groups, ffn))
    return Layout(arch, tuple(blocks))


def misfit(family: Family, shape: ModelShape) -> str | None:
    """Why no architecture of llama.cpp holds a model of this shape, and what can be done; None where one does."""
    low = next((i for i, block in enumerate(shape.blocks) if block.ranks), None)
    if low is not None:
        names = ", ".join(shape.blocks[low].ranks)
        return (
            f"block {low} has low-rank matrices ({names}), which llama.cpp has no place for: "
            "--to dense-fold multiplies them back, --to hf, onnx and openvino keep them"
        )
    layout = lay_out(family, shape)
    if len(layout.blocks) > MAX_BLOCKS:
        return f"{len(layout.blocks)} blocks are more than the {MAX_BLOCKS} that llama.cpp takes; use --to hf"
    if not shape.blocks[0].kv_groups and layout.arch == "deci":
        return "block 0 has no attention, from which llama.cpp takes the head size; use --to hf, onnx or openvino"
    if layout.arch in ("llama", "deci"):
        return None
    has_bias = shape.qkv_bias or shape.o_bias or shape.mlp_bias or any(b.o_bias or b.down_bias for b in shape.blocks)
    if has_bias:
        return (
            f"llama.cpp's {layout.arch} has no place for biases: cut with a compensation that adds none, "
            "or use --to hf, onnx or openvino"
        )
    if layout.arch == "openelm" and not shape.tied:
        return (
            "llama.cpp has no architecture for Qwen3 with blocks of different sizes and a head of its own: "
            "plan it with --target-engine uniform, or use --to dense-fold, hf, onnx or openvino"
        )
    return None
