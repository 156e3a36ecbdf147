"""Contexts and continuations as tokens, divided as lm-evaluation-harness divides them, and cut by one rule.

Whoever scores them, calibrates or trains on them: where they are too long the context loses its beginning, and a
continuation is whole or refused. A part of an answer is another answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sentei.data.chat import Sample
from sentei.data.task_rows import TaskRow
from sentei.data.tokens import tokenise
from sentei.errors import InputError

Tokens = list[int]


def encode_pairs(pairs: Sequence[tuple[str, str]], tokenizer: Any) -> list[tuple[Tokens, Tokens]]:
    """Tokens of each context and of the continuation that follows it.

    The whole string is tokenised, special tokens as the tokenizer adds them, and cut after as many tokens as the
    context alone has. White space at the end of a context belongs to the continuation, because most tokenizers put it
    there. An empty context is the BOS token, or the end token where there is none.

    Args:
        pairs: (context, continuation); a context is tokenised once, however many pairs it is in.
        tokenizer: of transformers.

    Raises:
        InputError: an empty context, and the tokenizer has neither of the two tokens.

    Source: `TemplateLM._encode_pair` and `loglikelihood` of lm-evaluation-harness.
    """
    bare = [context.rstrip() for context, _ in pairs]
    names = [context for context in dict.fromkeys(bare) if context]
    known = dict(zip(names, _tokenise(names, tokenizer), strict=True))
    wholes = _tokenise([context + continuation for context, continuation in pairs], tokenizer)
    return [
        (known[context], whole[len(known[context]) :]) if context else _alone(whole, tokenizer)
        for context, whole in zip(bare, wholes, strict=True)
    ]


def shorten(context: Sequence[int], answer: Sequence[int], length: int, what: str, why: str) -> Sequence[int]:
    """The end of a context that, with an answer after it, has at most `length` tokens.

    Raises:
        InputError: an answer without tokens, or one that leaves no room for a token before it, which predicts it;
            `what` names it and `why` follows the limit.
    """
    if not 0 < len(answer) < length:
        raise InputError(f"{what} has {len(answer)} tokens, expected 1 to {length - 1}{why}")
    return context[-(length - len(answer)) :]


def encode_rows(rows: Sequence[TaskRow], tokenizer: Any, length: int) -> list[Sample]:
    """Contexts and right answers of a task's rows as they are scored, without a chat template.

    A written answer is followed by the end token, where the tokenizer has one; a choice is not, because nothing is ever
    read after it.

    Args:
        rows: of a task.
        tokenizer: of transformers.
        length: at most so many tokens per row.

    Returns:
        One sample per row, in their order, numbered.

    Raises:
        InputError: see `shorten`; with the row.
    """
    samples = []
    pairs = encode_pairs([(row.context, row.target) for row in rows], tokenizer)
    for number, (row, (context, answer)) in enumerate(zip(rows, pairs, strict=True)):
        if not row.choices and tokenizer.eos_token_id is not None:
            answer = [*answer, tokenizer.eos_token_id]
        why = f": something has to come before it in {length} tokens; raise the length"
        fitting = shorten(context, answer, length, f"{row.place}: the answer", why)
        samples.append(Sample.of(fitting, answer, truncated=len(fitting) < len(context), row=number))
    return samples


def _tokenise(texts: Sequence[str], tokenizer: Any) -> list[Tokens]:
    if not texts:
        return []
    tokens: list[Tokens] = tokenise(tokenizer, texts)["input_ids"]
    return tokens


def _alone(tokens: Tokens, tokenizer: Any) -> tuple[Tokens, Tokens]:
    """A continuation without a context: something has to predict its first token."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise InputError(
            "a row has an empty context, and the tokenizer has no BOS and no end token that could stand in its place; "
            "give `input:` some text"
        )
    return (tokens[:1], tokens[1:]) if tokens[:1] == [first] else ([first], tokens)
