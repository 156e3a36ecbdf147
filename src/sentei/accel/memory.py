"""What accel takes of memory: the dense model, the one that is trained with its optimiser, and a cut of all of it."""

from __future__ import annotations

from sentei.plan import ModelShape
from sentei.recover.tune.memory import activation_bytes

FULL = 2.0  # times what an adapter keeps for the backward pass: the gradients of all weights need the inputs of all


def accel_bytes(shape: ModelShape, batch_tokens: int, itemsize: int) -> int:
    """Bytes that full training in stages takes beside the process, which holds the dense model, about.

    In training: the model, fp32 masters where it is computed in less, gradients, both moments, activations, and the
    bytes of a checkpoint while it is written. In a cut: three models, and the fp32 state before and after. Of
    SmolLM2-135M (bf16, 2,048 tokens a step) 5.3 GB were seen where 5.9 are said.

    Args:
        shape: of the dense model.
        batch_tokens: tokens of a step.
        itemsize: of the dtype that it is computed in.
    """
    blocks, outside = shape.block_params(), shape.params() - shape.block_params()
    narrow = itemsize < 4
    training = 2 * itemsize + (8 if narrow else 0) + 8 + 12
    cutting = 3 * itemsize + 2 * 12
    kept = FULL * activation_bytes(shape, batch_tokens, itemsize)
    of_blocks = max(training * blocks + kept, cutting * blocks)
    return int(of_blocks) + 4 * outside * itemsize
