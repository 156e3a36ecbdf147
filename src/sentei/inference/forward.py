"""Forward passes that make logits only where they are needed, in chunks, for any causal language model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sentei.families.logits import scaled_logits

CHUNK = 1 << 24  # elements of one fp32 chunk of logits: 64 MB, whatever the vocabulary


def final_hidden(
    model: Any, ids: Tensor, cache: Any = None, *, use_cache: bool = False, **inputs: Any
) -> tuple[Tensor, Any]:
    """Last hidden states [B, T, D] (normalised, as the head gets them) of token ids [B, T], and the KV cache.

    Args:
        model: a transformers causal language model.
        ids: token ids.
        cache: the KV cache of the tokens before `ids`; it is extended in place.
        use_cache: make or extend a KV cache.
        inputs: `attention_mask`, `position_ids`, where they are not the usual ones.
    """
    out = model.base_model(input_ids=ids, past_key_values=cache, use_cache=use_cache or cache is not None, **inputs)
    return out.last_hidden_state, out.past_key_values


def logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits [N, V], fp32, of hidden states [N, D], with the scale or cap that the architecture puts on them."""
    return scaled_logits(model, hidden).float()


def chunk_rows(model: Any, elements: int) -> int:
    """Hidden states whose logits have at most so many elements; one at least."""
    return max(1, elements // int(model.get_output_embeddings().weight.shape[0]))


def score_targets(model: Any, hidden: Tensor, targets: Tensor, owners: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Log-probability (fp32) of each target [N], and the likeliest token in its place.

    Args:
        model: a transformers causal language model.
        hidden: hidden states, [P, D].
        targets: tokens, [N].
        owners: after which of the hidden states each is, [N]; default: one after each.
    """
    size = chunk_rows(model, CHUNK)
    owners = torch.arange(len(hidden), device=hidden.device) if owners is None else owners
    scores = torch.empty(len(targets), device=hidden.device)
    best = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    for start in range(0, len(hidden), size):
        table = logits(model, hidden[start : start + size])
        best[start : start + size] = table.argmax(1)
        mine = torch.nonzero((owners >= start) & (owners < start + size))[:, 0]
        at = owners[mine] - start
        scores[mine] = table[at, targets[mine]] - table.logsumexp(1)[at]
    return scores, best[owners]


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Inference mode without dropout; a model that was training goes on training afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


@contextlib.contextmanager
def stage(progress: Any, name: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """A stage of `progress` (or none, where it is None) as a function that advances it."""
    if progress is None:
        yield lambda _: None
        return
    with progress.stage(name, total=total, unit=unit) as bar:
        yield lambda n: bar.advance(n)
