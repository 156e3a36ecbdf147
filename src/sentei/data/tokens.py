"""Texts as tokens: the one place where texts from outside become numbers that index a model's embedding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sentei.errors import InputError

_ROWS = "sentei_embedding_rows"  # on a tokenizer that knows more tokens than its model


def bind(tokenizer: Any, rows: int) -> None:
    """Tells a tokenizer how many tokens its model knows, where those are fewer than its own.

    That alone is no fault: many tokenizers have tokens that never occur. `check_ids` refuses those that do.
    """
    if tokenizer is not None:
        fewer = max(tokenizer.get_vocab().values(), default=-1) >= rows
        setattr(tokenizer, _ROWS, rows if fewer else None)


def tokenise(tokenizer: Any, texts: Sequence[str], **options: Any) -> Any:
    """What the tokenizer makes of texts: `input_ids` and what else `options` ask for, one list per text.

    Raises:
        InputError: a token that the model has no embedding for.
    """
    found = tokenizer(list(texts), return_attention_mask=False, verbose=False, **options)
    check_ids(tokenizer, found["input_ids"])
    return found


def check_ids(tokenizer: Any, ids: Iterable[Sequence[int]], rows: int | None = None) -> None:
    """Refuses tokens that the model has no embedding for.

    Args:
        tokenizer: that made them.
        ids: lists of tokens.
        rows: of the embedding; default: those that `bind` told.

    Raises:
        InputError: one occurs; its text, the size of tokenizer and embedding.
    """
    rows = getattr(tokenizer, _ROWS, None) if rows is None else rows
    if rows is None:
        return
    for row in ids:
        if beyond := [token for token in row if token >= rows]:
            name = tokenizer.convert_ids_to_tokens(int(beyond[0]))
            raise InputError(
                f"the text holds the token {name!r}, number {beyond[0]}, but the "
                f"model's embedding has {rows:,} rows and its tokenizer {len(tokenizer):,} tokens; take the tokenizer "
                "that belongs to the model, or text without that token"
            )
