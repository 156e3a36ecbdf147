"""What accel takes of memory: the dense model, the one that is trained with its optimiser, and a cut of all of it."""

from __future__ import annotations

from sentei.plan import ModelShape
from sentei.recover.tune.memory import activation_bytes

FULL = 2.0  # times what an adapter keeps for the backward pass: the gradients of all weights need the inputs of all


def accel_bytes(shape: ModelShape, batch_tokens: int, itemsize: int) -> int:
    """Bytes that full training in stages takes beside the process, about.

    In training: both models, fp32 masters where they are computed in less, gradients, both moments, activations.
    In a cut: both models twice, and the fp32 state before and after.

    Args:
        shape: of the dense model.
        batch_tokens: tokens of a step.
        itemsize: of the dtype that it is computed in.
    """
    blocks, outside = shape.block_params(), shape.params() - shape.block_params()
    narrow = itemsize < 4
    training = 2 * itemsize + itemsize + (8 if narrow else 0) + 8
    cutting = 4 * itemsize + 2 * 12
    kept = FULL * activation_bytes(shape, batch_tokens, itemsize)
    of_blocks = max(training * blocks + kept, cutting * blocks)
    return int(of_blocks) + 4 * outside * itemsize
