"""Calibration data as token windows: texts, and the rows of a task weighted by what is to be learnt of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sentei.data.batches import pad
from sentei.data.pairs import encode_rows
from sentei.data.splits import split
from sentei.data.task_file import TaskFile
from sentei.data.task_rows import TaskRow, read_rows
from sentei.data.windows import Windows
from sentei.errors import InputError

MOST = 16.0  # weight of a position that says an answer


class Calibration(NamedTuple):
    """Contexts with their right answers, shortest first, padded on the right.

    Attributes:
        ids: int64 [n, L]; padding is token 0, which no real token sees.
        weights: float32 [n, L]; what a position counts for: `answer_weight` where the next token is one of the answer,
            1 elsewhere, 0 on padding. A position is worth what it predicts: an answer of one token is said at the last
            token of the context, and nothing is ever said at the answer itself.
        answers: bool [n, L]; whether the token is part of the answer.
    """

    ids: Tensor
    weights: Tensor
    answers: Tensor


def read_calibration(source: str, field: str | None = None) -> Any:
    """What a command's `--data` names: a task file (.yaml), or texts."""
    from sentei.data.text import read_texts

    return TaskFile.load(source) if source.endswith((".yaml", ".yml")) else read_texts(source, field=field)


def as_windows(data: Any, tokenizer: Any, *, window: int, tokens: int) -> Windows:
    """Token windows from windows, from texts, from a source that `read_texts` reads, or from a task.

    Args:
        data: `Windows` and integer tensors are taken as they are (but for `tokens`); a list of strings or a source is
            tokenised; of a `TaskFile` the calibration rows are.
        tokenizer: of the model; not needed for windows.
        window: tokens per window.
        tokens: at most this many; at least one window.

    Raises:
        InputError: no tokenizer for texts, or unusable data.
    """
    if isinstance(data, Windows):
        return data.first(tokens)
    if isinstance(data, Tensor):
        if data.ndim != 2 or not data.numel():
            raise InputError(f"token windows must be a tensor [windows, length]; got shape {list(data.shape)}")
        return Windows(data).first(tokens)
    if data is None:
        raise InputError("calibration data are needed here; pass --data (text, JSONL, hf:dataset, or demo)")
    if tokenizer is None:
        raise InputError("texts need a tokenizer; pass tokenizer=, a Loaded model, or token windows")
    from sentei.data.text import read_texts, token_windows

    if isinstance(data, TaskFile):
        return task_windows(data, tokenizer, window).first(tokens)
    texts = data if isinstance(data, list) else read_texts(data)
    return Windows(token_windows(texts, tokenizer, window=window, tokens=tokens))


def task_windows(task: TaskFile, tokenizer: Any, length: int, rows: Sequence[TaskRow] | None = None) -> Windows:
    """The calibration rows of a task (or the given ones) as weighted windows."""
    return Windows(*calibration(rows or split(task, read_rows(task)).calibrate, tokenizer, length))


def calibration(
    rows: Sequence[TaskRow], tokenizer: Any, length: int, *, answer_weight: float | None = None
) -> Calibration:
    """Tokens, weights and answers of a task's rows.

    Contexts and answers are those of `encode_rows`.

    Args:
        rows: of one task.
        tokenizer: of transformers.
        length: at most so many tokens per row.
        answer_weight: by default, positions that say answers have half of the whole weight, but each at least 1 and at
            most `MOST`: with one-word answers half of all would rest on as few tokens as there are rows.

    Raises:
        InputError: no rows; a length below 2; an answer that leaves no room for its context; a weight of 0 or less.
    """
    if not rows or length < 2:
        raise InputError(
            f"{len(rows)} rows of at most {length} tokens; expected at least one row, of at least 2 tokens"
        )
    if answer_weight is not None and answer_weight <= 0:
        raise InputError(f"answer_weight is {answer_weight}, expected more than 0")
    samples = sorted(encode_rows(rows, tokenizer, length), key=lambda sample: len(sample.ids))
    batch = pad(samples, range(len(samples)))
    ids, answers = batch.ids, batch.response
    real = torch.arange(ids.shape[1]) < torch.tensor([len(sample.ids) for sample in samples])[:, None]
    before = answers.roll(-1, dims=1)  # nothing wraps around: the first token is never an answer's
    if answer_weight is None:
        answer_weight = min(MOST, max(1.0, float((real & ~before).sum() / before.sum())))
    return Calibration(ids, torch.where(before, answer_weight, 1.0) * real, answers)
