"""Greedy answers of one line, many contexts at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sentei.data.batches import by_length
from sentei.inference.forward import final_hidden, logits


class Lines:
    """Where an answer ends: at the first special token or line break."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._pieces: dict[int, str] = {}

    def piece(self, token: int) -> str:
        """The text of a token; a line break for a special one."""
        if token not in self._pieces:
            self._pieces[token] = "\n" if token in self._special else self._tokenizer.decode([token])
        return self._pieces[token]

    def ends(self, token: int) -> bool:
        """Whether an answer ends in this token."""
        return "\n" in self.piece(token)

    def only_ends(self, token: int) -> bool:
        """Whether an answer ends in this token, which adds nothing to it."""
        return self.ends(token) and not self.piece(token).partition("\n")[0].strip()

    def text(self, tokens: Sequence[int]) -> str:
        """The answer in some tokens: what is before its end, without white space around it."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text.partition("\n")[0].strip()


def write(
    model: Any,
    contexts: Sequence[Sequence[int]],
    *,
    limit: int,
    ends: Callable[[int], bool],
    advance: Callable[[int], None] = lambda n: None,
) -> list[list[int]]:
    """The likeliest token after each context, again and again, until one ends the answer or there are `limit`.

    The ending token is kept. The caller is in inference mode, the model in eval mode. Nothing of the model's generation
    config is used.

    Args:
        model: a transformers causal language model.
        contexts: token ids, each with room for `limit` more in the model's context.
        limit: tokens of an answer, at most.
        ends: whether an answer ends in a token.
        advance: is told how many contexts are done.
    """
    answers: list[list[int]] = [[] for _ in contexts]
    for batch in by_length([len(context) + limit for context in contexts]):
        _write([contexts[at] for at in batch], model, limit, ends, [answers[at] for at in batch])
        advance(len(batch))
    return answers


def _write(
    contexts: Sequence[Sequence[int]], model: Any, limit: int, ends: Callable[[int], bool], answers: list[list[int]]
) -> None:
    width = max(map(len, contexts))
    # on the left, so that every row goes on at the same place
    ids = torch.tensor([[0] * (width - len(context)) + list(context) for context in contexts], device=model.device)
    seen = torch.tensor(
        [[0] * (width - len(context)) + [1] * len(context) for context in contexts], device=model.device
    )
    places = (seen.cumsum(1) - 1).clamp(min=0)
    cache: Any = None
    alive = set(range(len(contexts)))
    for _ in range(limit):
        hidden, cache = final_hidden(model, ids, cache, use_cache=True, attention_mask=seen, position_ids=places)
        ids = logits(model, hidden[:, -1]).argmax(1, keepdim=True)
        for row, token in enumerate(ids[:, 0].tolist()):
            if row in alive:
                answers[row].append(token)
                if ends(token):
                    alive.remove(row)
        if not alive:
            return
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
        places = places[:, -1:] + 1
