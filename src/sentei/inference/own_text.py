"""Text that a model writes itself, from nothing: what it knows, in about the shares in which it knows it.

A model that was cut for one kind of text forgets the others: from C4 alone, a fifth cut away, perplexity of code is
multiplied by four. Sampled at temperature 1, a pretrained model gives back the mixture that it was trained on, code,
formulas and languages included, and needs no data for it (docs/calibration.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sentei.errors import InputError
from sentei.families import family_of
from sentei.inference.forward import evaluating, final_hidden, logits
from sentei.progress import Progress, shown

LENGTH = 256  # tokens of a sample: each token of a batch is a forward pass of its own
ROWS = 64  # samples that are written side by side
CACHE = 1 << 29  # bytes of their keys and values, at most
SEED = 0
# Between documents in training. An instruct model's own beginning is that of a dialogue, and writes nothing else.
_SEPARATOR = "<|endoftext|>"


def write_own_text(
    model: Any, tokenizer: Any, *, tokens: int, window: int, seed: int = SEED, progress: Progress | None = None
) -> Tensor:
    """Windows of text that the model writes, sampled at temperature 1 from all of its vocabulary.

    Args:
        model: a transformers causal language model.
        tokenizer: of the model: it knows what a document begins with.
        tokens: about so many, in whole windows, at least one.
        window: tokens in a window; longer ones than `LENGTH` hold several samples.
        seed: of the sampling.
        progress: told about every token of every sample.

    Returns:
        Token ids, int64 [tokens / window, window], on the CPU.

    Raises:
        InputError: the model's predictions are not finite, or the tokenizer has no token to begin with.
    """
    count, length = max(1, tokens // window), min(LENGTH, window)
    needed = -(-count * window // length)
    rows = min(needed, ROWS, max(1, CACHE // (length * _cached_bytes(model))))
    start = _begins(tokenizer)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws whatever the device
    written: list[Tensor] = []
    with shown(progress).stage("own text", needed * length, "tokens") as bar, evaluating(model):
        for done in range(0, needed, rows):
            size = min(rows, needed - done)
            ids = torch.full((size, 1), start, device=model.device)
            cache: Any = None
            sample: list[Tensor] = []
            for _ in range(length):
                hidden, cache = final_hidden(model, ids, cache, use_cache=True)
                chances = logits(model, hidden[:, -1]).softmax(-1).cpu()
                if not torch.isfinite(chances).all():
                    raise InputError(
                        "the model's predictions are not finite; use --dtype float32, or check its weights"
                    )
                ids = torch.multinomial(chances, 1, generator=generator).to(model.device)
                sample.append(ids)
                bar.advance(size)
            written.append(torch.cat(sample, 1).cpu())
    return torch.cat(written).flatten()[: count * window].view(count, window)


def _begins(tokenizer: Any) -> int:
    """The token that stands before a document."""
    added = tokenizer("", return_attention_mask=False)["input_ids"]  # what it puts before every text
    candidates = [*added[:1], tokenizer.get_vocab().get(_SEPARATOR), tokenizer.bos_token_id, tokenizer.eos_token_id]
    for token in candidates:
        if token is not None:
            return int(token)
    raise InputError("the tokenizer has no token that begins or ends a document; give --own-text 0")


def _cached_bytes(model: Any) -> int:
    """Bytes of the keys and values of one token."""
    shape = family_of(model.config).shape(model.config)
    return sum(2 * block.kv_groups * shape.head_dim for block in shape.blocks) * int(model.dtype.itemsize) or 1
