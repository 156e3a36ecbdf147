"""What a run will take, said when it begins: each stage's work in tokens of forward passes, at this machine's pace.

The factors are measured on SmolLM2-135M with two CPU threads (`benchmarks/cost.py`, `benchmarks/tune_speed.py`); on
other models and machines the sum is right to a factor of two or so, which tells minutes from hours.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from sentei.families.streamed import streamed_blocks
from sentei.progress import duration

if TYPE_CHECKING:
    from sentei.models.load import Loaded

# Forward passes per token; GRADIENT has one of its own. Of TUNE a STEP is 4, looks at held-out rows up to 1, choosing
# parameters up to 0.75.
MEASURE, GRADIENT, CUT, SCORE, TUNE, STEP = 1.5, 4.0, 2.8, 2.2, 5.5, 4.0
WRITE = 2.0  # a token that is written beside many others
LETTERS = 4  # per token, about
TEMPLATE = 30  # tokens that a chat template puts around a row
RANK, RANK_GRADED = 3, 5  # inversions of a part's Gram matrix that its curves take, without and with gradients
DECODE = 12  # a token that is decoded alone takes as long as so many of a prompt
_PROBE = 512
_INVERTED = 1024  # rows of the matrix whose inversion is timed


def tokens_of(texts: Iterable[str]) -> float:
    """Tokens of texts, about, without a tokenizer."""
    return sum(map(len, texts)) / LETTERS


def estimate(loaded: Loaded, tokens: Mapping[str, float], pace: float) -> str:
    """A sentence about time and memory.

    Args:
        loaded: the dense model.
        tokens: what the stages cost, in tokens of its forward passes.
        pace: of these, see `pace_of`.
    """
    seconds = {name: count / pace for name, count in tokens.items() if count}
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
    blocks = streamed_blocks(loaded.model)
    memory = f"at least {_memory(loaded) / 1e9:.1f} GB" if blocks is None else f"{(blocks.memory or 0) / 1e9:.1f} GB"
    return f"about {duration(sum(seconds.values()))} at {pace:,.0f} tokens/s ({parts}), and {memory} of memory"


def pace_of(loaded: Loaded) -> float:
    """Tokens per second of a forward pass of 512 tokens, logits included: the best of two after one not counted.

    Of a streamed model it is a single pass, most of which is reading: where many passes share that they are faster.
    """
    import torch

    from sentei.inference.forward import evaluating
    from sentei.models.load import context_length

    size = min(_PROBE, context_length(loaded.model))
    ids = torch.zeros(1, size, dtype=torch.long, device=loaded.model.device)
    with evaluating(loaded.model):
        times = []
        for _ in range(3 if streamed_blocks(loaded.model) is None else 1):
            started = time.perf_counter()
            loaded.model(ids).logits[0, -1, 0].item()  # waits for a GPU
            times.append(time.perf_counter() - started)
    return size / min(times[1:] or times)


def inversions(loaded: Loaded) -> float:
    """Seconds that inverting the Gram matrices of all parts takes, in fp64: what ranking is made of."""
    import torch

    from sentei.algebra.solve import inverse
    from sentei.families import family_of

    shape = family_of(loaded.model.config).shape(loaded.model.config)
    sides = [s for b in shape.blocks for s in (b.kv_groups * b.heads_per_group * shape.head_dim, b.ffn)]
    matrix = torch.eye(_INVERTED, dtype=torch.float64, device=loaded.model.device)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        inverse(matrix)[0, 0].item()  # waits for a GPU
        times.append(time.perf_counter() - started)
    return min(times[1:]) * sum((side / _INVERTED) ** 3 for side in sides)


def _memory(loaded: Loaded) -> float:
    """Bytes of the dense and a pruned model, of the largest block's Gram matrices and of what ranks its units."""
    from sentei.families import family_of

    shape = family_of(loaded.model.config).shape(loaded.model.config)
    widest = [max(block.kv_groups * block.heads_per_group * shape.head_dim, block.ffn) for block in shape.blocks]
    weights = sum(p.numel() * p.itemsize for p in loaded.model.parameters())
    return 2 * weights + 4 * 4 * shape.hidden**2 + (4 + 13) * max(widest) ** 2
