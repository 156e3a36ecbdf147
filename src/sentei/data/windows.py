"""What `measure` and `cut` accept as calibration data, as token windows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sentei.errors import InputError


def as_windows(data: Any, tokenizer: Any, *, window: int, tokens: int) -> Tensor:
    """Token windows `[windows, length]` from windows, from texts, or from a source that `read_texts` reads.

    Args:
        data: an integer tensor is taken as it is (but for `tokens`); a list of strings or a source is tokenised.
        tokenizer: of the model; not needed for a tensor.
        window: tokens per window.
        tokens: at most this many; at least one window.

    Raises:
        InputError: no tokenizer for texts, or unusable data.
    """
    if isinstance(data, Tensor):
        if data.ndim != 2 or not data.numel():
            raise InputError(f"token windows must be a tensor [windows, length]; got shape {list(data.shape)}")
        return data[: max(1, tokens // data.shape[1])]
    if data is None:
        raise InputError("calibration data are needed here; pass --data (text, JSONL, hf:dataset, or demo)")
    if tokenizer is None:
        raise InputError("texts need a tokenizer; pass tokenizer=, a Loaded model, or token windows")
    from sentei.data.text import read_texts, token_windows

    texts = data if isinstance(data, list) else read_texts(data)
    return token_windows(texts, tokenizer, window=window, tokens=tokens)
