"""Perplexity over windows of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sentei.data.batches import BATCH_TOKENS
from sentei.errors import InputError
from sentei.inference.forward import evaluating, score_targets, stage
from sentei.inference.walk import Reading, hidden_states
from sentei.metrics.intervals import Interval, bootstrap, paired_bootstrap


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a model on a text.

    Attributes:
        value: exp of the mean negative log-likelihood; inf or nan where the model diverged.
        tokens: predicted tokens: window - 1 of each window.
        window: tokens in a window.
        nll: negative log-likelihood of each window, summed, in nats.
        vocabulary: tokens that the model chooses from.
    """

    value: float
    tokens: int
    window: int
    nll: list[float]
    vocabulary: int

    @property
    def diverged(self) -> str:
        """What is wrong with a useless model, or an empty string."""
        if broken := sum(not math.isfinite(x) for x in self.nll):
            return f"the loss of {broken} of {len(self.nll)} windows is not finite"
        if self.value > self.vocabulary:
            return f"worse than guessing among the {self.vocabulary} tokens of the vocabulary"
        return ""

    @property
    def interval(self) -> Interval:
        """95 % bootstrap interval over windows."""
        return _exp(bootstrap(self._means()))

    def ratio(self, other: Perplexity) -> tuple[float, Interval]:
        """This perplexity over another's on the same windows, with the paired 95 % interval."""
        return self.value / other.value, _exp(paired_bootstrap(self._means(), other._means()))

    def _means(self) -> list[float]:
        return [x / (self.window - 1) for x in self.nll]


def _exp(interval: Interval) -> Interval:
    # exp is monotone and all windows are equally long, so the interval of the mean loss carries over
    with np.errstate(over="ignore"):
        return float(np.exp(interval[0])), float(np.exp(interval[1]))


def perplexity(
    model: Any, windows: Tensor, *, batch: int | None = None, progress: Any = None, name: str = "perplexity"
) -> Perplexity:
    """Perplexity of tokens 2 to w of each window, given those before them in the window.

    Logits are made in chunks, log-softmax is in fp32.

    Args:
        model: a transformers causal language model.
        windows: token ids, int64 [n, w].
        batch: windows in one forward pass; by default as many as `BATCH_TOKENS` hold.
        progress: shows a stage, counted in windows.
        name: of that stage.

    Raises:
        InputError: windows shorter than two tokens or longer than the model's context, or ids outside its vocabulary.
    """
    count, window = windows.shape
    vocabulary = model.get_output_embeddings().weight.shape[0]
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or window
    if count == 0 or not 2 <= window <= longest:
        raise InputError(
            f"{count} windows of {window} tokens; expected at least one, of 2 to {longest} tokens (the model's context)"
        )
    if int(windows.max()) >= vocabulary:
        raise InputError(
            f"token {int(windows.max())} is outside the model's vocabulary of {vocabulary}; use its own tokenizer"
        )
    batch = batch or max(1, BATCH_TOKENS // window)
    nll: list[float] = []
    with evaluating(model), stage(progress, name, count, "windows") as advance:
        parts = windows.split(batch)
        for part, hidden in zip(parts, hidden_states(model, list(map(Reading, parts)), progress), strict=True):
            targets = part[:, 1:].reshape(-1).to(model.device)
            scores, _ = score_targets(model, hidden[:, :-1].reshape(-1, hidden.shape[-1]), targets)
            nll += (-scores.double().view(len(part), -1).sum(1)).tolist()
            advance(len(part))
    tokens = count * (window - 1)
    with np.errstate(over="ignore"):
        value = float(np.exp(np.sum(nll) / tokens))
    return Perplexity(value, tokens, window, nll, vocabulary)
