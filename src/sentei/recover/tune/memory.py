"""What training takes of memory: the whole model is in it, with gradients and activations of all blocks."""

from __future__ import annotations

from sentei.plan import ModelShape

# Bytes per parameter of the blocks: weights and the file that they are read from, gradients in fp32 that choose what is
# trained, and the best state so far. Measured: 15, with bf16 and with fp32 weights.
_PER_PARAMETER = 16
_ACTIVATIONS = 1.5  # of what the linears put out, that a backward pass keeps; measured: 1.1 to 1.4


def tune_bytes(shape: ModelShape, batch_tokens: int, itemsize: int, share: float = 1.0) -> int:
    """Bytes that `tune` takes beside the process, about.

    Args:
        shape: of the model that is trained.
        batch_tokens: tokens of a step.
        itemsize: of the dtype that it is computed in.
        share: of the blocks' parameters that are left, where the shape is that of the dense model.
    """
    blocks = _PER_PARAMETER * shape.block_params() + activation_bytes(shape, batch_tokens, itemsize)
    return int(share * blocks) + 2 * (shape.params() - shape.block_params()) * itemsize


def activation_bytes(shape: ModelShape, batch_tokens: int, itemsize: int) -> float:
    """Bytes that a step keeps from forward to backward."""
    outputs = sum(
        (block.kv_groups * (2 * block.heads_per_group + 2)) * shape.head_dim + 2 * shape.hidden + 2 * block.ffn
        for block in shape.blocks
    )
    return _ACTIVATIONS * batch_tokens * outputs * itemsize
