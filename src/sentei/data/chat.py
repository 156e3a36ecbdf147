"""Conversations as tokens, with a mark on those that the model is asked to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentei.data.pools import PoolRow, Turn
from sentei.errors import InputError, one_line
from sentei.files import hash_json

# Where a tokenizer has no chat template: the turns with a blank line between them, the end token after every answer.
PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if add_generation_prompt or not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
)
_BATCH = 1000  # rows that are tokenised at once: many to be quick, few enough that their offsets need little memory


@dataclass(frozen=True)
class Sample:
    """One row as tokens.

    Attributes:
        ids: token ids, int32 [T].
        response: bool [T]; `response[t]` says that token t is a target. `response[0]` never is: nothing predicts it.
        truncated: whether tokens were cut off the end.
    """

    ids: NDArray[np.int32]
    response: NDArray[np.bool_]
    truncated: bool


def encode(rows: Sequence[PoolRow], tokenizer: Any, *, length: int) -> list[Sample]:
    r"""The rows as tokens, cut to `length`.

    A conversation is what the tokenizer's chat template makes of it; special tokens are those that the template writes.
    Targets are the tokens of every answer, the end-of-turn token included, white space after it not. An assistant's
    turn before the first user turn answers nothing: it is context, as is a last question without an answer.

    Without a template: the turns joined by "\n\n", each answer followed by the end token (`PLAIN`), after the BOS token
    where the tokenizer adds one. Raw text: what the tokenizer makes of it; all tokens but the first are targets.

    Args:
        rows: of a pool.
        tokenizer: a fast one of transformers.
        length: at most so many tokens per row, at least 2.

    Returns:
        One sample per row, in order.

    Raises:
        InputError: a slow tokenizer; a length below 2; a row that the template refuses, or whose answers cannot be
            found because the template writes a turn differently when others follow.
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
        some = rows[start : start + _BATCH]
        chats = [i for i, row in enumerate(some) if row.turns]
        texts = [i for i, row in enumerate(some) if not row.turns]
        drawn = [_render(some[i], tokenizer, template) for i in chats]
        found = dict(zip(chats, _tokenise(tokenizer, drawn, length, special=False), strict=True))
        raw: list[_Drawn] = [(some[i].text, None) for i in texts]
        found |= zip(texts, _tokenise(tokenizer, raw, length, special=True), strict=True)
        samples += [found[i] for i in range(len(some))]
    return samples


def tokenizer_digest(tokenizer: Any) -> str:
    """What selections of sentei 0.1 name a tokenizer by: sha256 of its vocabulary and chat template."""
    return hash_json([tokenizer.get_vocab(), tokenizer.chat_template])


_Drawn = tuple[str, "list[tuple[int, int]] | None"]  # a text and the characters [start, end) of its answers; None: all


def _template(tokenizer: Any) -> str | None:
    """None for the tokenizer's own template, or the plain one, with the BOS token where the tokenizer adds it."""
    if tokenizer.chat_template:
        return None
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if adds_bos else "") + PLAIN


def _render(row: PoolRow, tokenizer: Any, template: str | None) -> _Drawn:
    """What the template makes of a row; an answer begins where the prompt for it ends.

    So the beginnings of the conversation are rendered too, and have to be beginnings of the rendering.
    """

    def draw(turns: Sequence[Turn], prompt: bool = False) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text: str = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # templates raise what they like: jinja's errors, but TypeError and others as well
            roles = ", ".join(turn.role for turn in row.turns)
            raise InputError(
                f"{row.place}: the tokenizer's chat template refuses the turns {roles}: {one_line(error)}; "
                "change or remove that row, or give the tokenizer another chat template"
            ) from error
        return text

    whole = draw(row.turns)
    spans = []
    asked = False
    for i, turn in enumerate(row.turns):
        asked = asked or turn.role == "user"
        if turn.role != "assistant" or not asked:
            continue
        before = draw(row.turns[:i], prompt=True)
        after = whole if i + 1 == len(row.turns) else draw(row.turns[: i + 1])
        if not after.startswith(before) or not whole.startswith(after):
            raise InputError(
                f"{row.place}: the tokenizer's chat template writes turn {i + 1} of {len(row.turns)} differently when "
                "it is asked for, answered or followed by others, so that the answer cannot be found in the text; "
                "give the tokenizer a chat template that writes every turn by itself, or split the conversation"
            )
        spans.append((len(before), len(after.rstrip())))
    return whole, spans


def _tokenise(tokenizer: Any, drawn: Sequence[_Drawn], length: int, *, special: bool) -> list[Sample]:
    if not drawn:
        return []
    tokens = tokenizer(
        [text for text, _ in drawn],
        add_special_tokens=special,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    samples = []
    for (_, spans), ids, offsets in zip(drawn, tokens["input_ids"], tokens["offset_mapping"], strict=True):
        count = min(len(ids), length)
        if spans is None:
            response = np.ones(count, dtype=bool)
        else:
            # A token belongs to where it begins: one that reaches over the start of an answer is read, not said.
            first = np.fromiter((offset[0] for offset in offsets[:count]), dtype=np.int64, count=count)
            response = np.zeros(count, dtype=bool)
            for start, end in spans:
                response |= (first >= start) & (first < end)
        response[:1] = False
        samples.append(Sample(np.array(ids[:count], dtype=np.int32), response, truncated=len(ids) > length))
    return samples
