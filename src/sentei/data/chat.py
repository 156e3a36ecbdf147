"""Conversations as tokens, with a mark on those that the model is asked to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sentei.data.conversation import RefusedError, dated, drawing, fold, has_marks, messages, render
from sentei.data.pools import PoolRow
from sentei.data.skipped import Skipped
from sentei.data.tokens import check_ids, tokenise
from sentei.errors import InputError
from sentei.files import hash_json

# Where a tokenizer has no chat template: the turns with a blank line between them, the end token after every answer.
PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if add_generation_prompt or not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
)
Ids = Sequence[int] | NDArray[np.int32]
_BATCH = 1000  # rows that are tokenised at once: many to be quick, few enough that their offsets need little memory


@dataclass(frozen=True)
class Sample:
    """One row as tokens, or one answer of it.

    Attributes:
        ids: token ids, int32 [T]; none for a row that the template refuses.
        response: bool [T]; `response[t]` says that token t is a target. `response[0]` never is: nothing predicts it.
        truncated: whether tokens were cut off the end.
        row: number of the row.
        reason: why there is no target; empty where there is one.
        refused: whether the template refuses the row; `reason` says why.
        folded: whether the system turn stands before the first question, because the template knows none.
    """

    ids: NDArray[np.int32]
    response: NDArray[np.bool_]
    truncated: bool
    row: int = 0
    reason: str = ""
    refused: bool = False
    folded: bool = False

    @classmethod
    def of(cls, context: Ids, answer: Ids, *, truncated: bool = False, row: int = 0) -> Sample:
        """A context of one token at least, and an answer all of which is a target."""
        ids = np.array([*context, *answer], dtype=np.int32)
        return cls(ids, np.arange(len(ids)) >= len(context), truncated, row)


class _Text(NamedTuple):
    """What is to be tokenised: the characters [start, end) of answers, None: all; or tokens with marks on answers."""

    row: int
    text: str = ""
    spans: tuple[tuple[int, int], ...] | None = None
    marked: tuple[list[int], list[int]] | None = None
    answered: bool = True  # whether there is an answer with something in it
    folded: bool = False
    refused: str = ""


def encode(rows: Sequence[PoolRow], tokenizer: Any, *, length: int, strict: bool = False) -> list[Sample]:
    r"""The rows as tokens, cut to `length`.

    A conversation is what the tokenizer's chat template makes of it; special tokens are those that the template writes.
    Targets are the tokens of every answer, the end-of-turn token included, white space after it not, nor what the
    template writes before an answer, such as an empty thought. An assistant's turn before the first user turn answers
    nothing: it is context, as is a last question without an answer. A template that marks what the model says
    (`{% generation %}`) is believed.

    A template that writes a turn differently when others follow, gives one sample per answer; see `conversation.py`.
    Where it refuses system turns, they are put before the first question.

    Without a template: the turns joined by "\n\n", each answer followed by the end token (`PLAIN`), after the BOS token
    where the tokenizer adds one. Raw text: what the tokenizer makes of it; all tokens but the first are targets.

    Args:
        rows: of a pool.
        tokenizer: a fast one of transformers.
        length: at most so many tokens per row, at least 2.
        strict: refuse what the template refuses.

    Returns:
        At least one sample per row, in the order of the rows.

    Raises:
        InputError: a slow tokenizer; a length below 2; a broken template; a token that the model does not know; with
            `strict` a row that the template refuses.
    """
    if length < 2:
        raise InputError(f"length is {length}, expected at least 2: one token to read and one to say")
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{type(tokenizer).__name__} does not tell which characters its tokens stand for; a fast tokenizer is "
            "needed: save one beside the model (tokenizer.json)"
        )
    template = _template(tokenizer)
    samples: list[Sample] = []
    for start in range(0, len(rows), _BATCH):
        numbers = range(start, min(start + _BATCH, len(rows)))
        drawn = [text for i in numbers for text in _drawn(i, rows[i], tokenizer, template)]
        for one in drawn:
            if strict and one.refused:
                raise InputError(
                    f"{rows[one.row].place}: {one.refused}; change or remove that row, or give the tokenizer another "
                    "chat template"
                )
        samples += _samples(tokenizer, drawn, length)
    return samples


def owners(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """The row of each sample, int64 [samples]."""
    return np.array([sample.row for sample in samples], dtype=np.int64)


def idle(samples: Sequence[Sample]) -> dict[int, str]:
    """Rows that train nothing, and why: none of their samples has a target."""
    busy = {sample.row for sample in samples if not sample.reason}
    return {sample.row: sample.reason for sample in reversed(samples) if sample.row not in busy}


def remarks(
    samples: Sequence[Sample], rows: Sequence[PoolRow], length: int, why: str = "--length sets it"
) -> list[str]:
    """What a person should know of how rows became tokens, a line each."""
    lines = []
    if folded := len({sample.row for sample in samples if sample.folded}):
        lines.append(
            f"the chat template knows no system turns: those of {folded:,} rows stand before the first question"
        )
    if split := sum(count > 1 for count in Counter(sample.row for sample in samples).values()):
        lines.append(f"the chat template rewrites earlier turns: {split:,} rows are read answer by answer")
    if cut := len({sample.row for sample in samples if sample.truncated}):
        lines.append(f"{cut:,} rows are longer than {length} tokens and were cut there; {why}")
    nothing = Skipped()
    for row, reason in sorted(idle(samples).items()):
        nothing(rows[row].place, reason)
    return lines + nothing.lines("train nothing")


def tokenizer_digest(tokenizer: Any) -> str:
    """What selections of sentei 0.1 name a tokenizer by: sha256 of its vocabulary and chat template."""
    return hash_json([tokenizer.get_vocab(), tokenizer.chat_template])


def _template(tokenizer: Any) -> str:
    """The tokenizer's own template, or the plain one, with the BOS token where the tokenizer adds it.

    Raises:
        InputError: several templates, and none of them is the default.
    """
    if tokenizer.chat_template:
        try:
            return dated(str(tokenizer.get_chat_template()))
        except ValueError as error:
            raise InputError(
                f"the tokenizer's chat templates cannot be used: {error}; name one of them default"
            ) from None
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if adds_bos else "") + PLAIN


def _drawn(number: int, row: PoolRow, tokenizer: Any, template: str) -> list[_Text]:
    """What is to be tokenised of a row: one text, or one per answer."""
    if not row.turns:
        return [_Text(number, row.text)]
    first = next((i for i, turn in enumerate(row.turns) if turn.role == "user"), len(row.turns))
    answered = any(turn.role == "assistant" and turn.content.strip() for turn in row.turns[first:])
    draw, marks = drawing(tokenizer, template), has_marks(template)
    refused = ""
    for turns in dict.fromkeys((row.turns, tuple(fold(row.turns)))):
        folded = turns != row.turns
        try:
            if marks:
                draw(turns, False)
                found = tokenizer.apply_chat_template(
                    messages(turns),
                    chat_template=template,
                    return_dict=True,
                    return_assistant_tokens_mask=True,
                )
                tokens = found["input_ids"], found["assistant_masks"]
                return [_Text(number, marked=tokens, answered=answered, folded=folded)]
            return [_Text(number, one.text, one.spans, answered=answered, folded=folded) for one in render(turns, draw)]
        except RefusedError as error:
            roles = ", ".join(turn.role for turn in row.turns)
            refused = refused or f"the tokenizer's chat template refuses the turns {roles}: {error}"
    return [_Text(number, refused=refused)]


def _samples(tokenizer: Any, drawn: Sequence[_Text], length: int) -> list[Sample]:
    found: dict[int, tuple[list[int], NDArray[np.bool_]]] = {}
    for special in (False, True):  # raw text gets the tokens that the tokenizer adds; a template writes its own
        some = [
            i for i, one in enumerate(drawn) if not one.refused and not one.marked and (one.spans is None) == special
        ]
        if not some:
            continue
        tokens = tokenise(
            tokenizer, [drawn[i].text for i in some], add_special_tokens=special, return_offsets_mapping=True
        )
        for i, ids, offsets in zip(some, tokens["input_ids"], tokens["offset_mapping"], strict=True):
            found[i] = ids, _targets(drawn[i], offsets[:length])
    samples = []
    for i, one in enumerate(drawn):
        if one.refused:
            nothing = np.empty(0, np.int32)
            samples.append(Sample(nothing, nothing.astype(bool), False, one.row, one.refused, refused=True))
            continue
        if one.marked:
            check_ids(tokenizer, [one.marked[0]])
            ids, response = one.marked[0], np.array(one.marked[1][:length], dtype=bool) & one.answered
        else:
            ids, response = found[i]
        response[:1] = False
        reason = "" if response.any() else _reason(one, len(ids), length)
        kept = np.array(ids[:length], dtype=np.int32)
        samples.append(Sample(kept, response, len(ids) > length, one.row, reason, folded=one.folded))
    return samples


def _targets(one: _Text, offsets: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    if one.spans is None:
        return np.ones(len(offsets), dtype=bool)
    # A token belongs to where it begins: one that reaches over the start of an answer is read, not said.
    first = np.fromiter((offset[0] for offset in offsets), dtype=np.int64, count=len(offsets))
    response = np.zeros(len(offsets), dtype=bool)
    for start, end in one.spans:
        response |= (first >= start) & (first < end)
    return response


def _reason(one: _Text, tokens: int, length: int) -> str:
    """Why there is no target in a text."""
    if one.spans is None and one.marked is None:
        return "the text has fewer than two tokens"
    if not one.answered:
        return "there is no answer with something in it"
    if tokens > length:
        return f"the question fills the {length} tokens that are read"
    return "no token begins inside the answer"
