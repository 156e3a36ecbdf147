from __future__ import annotations

from typing import Any

import pytest
import torch

from sentei.data.calibration import calibration
from sentei.data.pairs import encode_pairs, encode_rows
from sentei.data.task_rows import TaskRow
from sentei.errors import InputError


def row(context: str, target: str, choices: tuple[str, ...] = ()) -> TaskRow:
    return TaskRow("0", context, choices, -1, target, (), {}, "f:1")


WRITTEN = [row("w3 w4 w5 w6 w7 w8", " w9"), row("w10 w11", " w12 w13")]
CHOSEN = [row("w3 w4 w5", " w9", (" w9", " w8")), row("w10", " w12", (" w12", " w8"))]


def test_positions_that_say_the_answer_have_half_of_the_weight(tokenizer: Any) -> None:
    ids, weights, answers = calibration(WRITTEN, tokenizer, 32)
    assert ids.tolist() == [[10, 11, 12, 13, 2, 0, 0, 0], [3, 4, 5, 6, 7, 8, 9, 2]], "shortest first, ended"
    assert answers.int().tolist() == [[0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]]
    heavy = 8 / 5  # eight positions say nothing of an answer, five do
    expected = [[1, heavy, heavy, heavy, 1, 0, 0, 0], [1, 1, 1, 1, 1, heavy, heavy, 1]]
    assert torch.allclose(weights, torch.tensor(expected)) and weights.dtype == torch.float32
    before = answers.roll(-1, 1)
    assert float(weights[before].sum()) == pytest.approx(float(weights.sum()) / 2)
    assert torch.equal(weights > 0, torch.tensor([[True] * 5 + [False] * 3, [True] * 8]))


def test_a_choice_is_not_ended_and_the_weight_can_be_given(tokenizer: Any) -> None:
    ids, weights, answers = calibration(CHOSEN, tokenizer, 32, answer_weight=5)
    assert ids.tolist() == [[10, 12, 0, 0], [3, 4, 5, 9]] and answers.sum() == 2
    assert weights.tolist() == [[5, 1, 0, 0], [1, 1, 5, 1]]


def test_a_long_row_loses_the_beginning_of_its_context(tokenizer: Any) -> None:
    ids, _, answers = calibration(WRITTEN[:1], tokenizer, 4)
    assert ids.tolist() == [[7, 8, 9, 2]] and answers.tolist() == [[False, False, True, True]]
    with pytest.raises(InputError, match="f:1: the answer has 2 tokens, expected 1 to 1"):
        calibration(WRITTEN[:1], tokenizer, 2)
    with pytest.raises(InputError, match="expected at least one row, of at least 2 tokens"):
        calibration([], tokenizer, 8)
    with pytest.raises(InputError, match="answer_weight is 0, expected more than 0"):
        calibration(WRITTEN, tokenizer, 8, answer_weight=0)


def test_rows_keep_their_answers_whole(tokenizer: Any) -> None:
    long, short = encode_rows(WRITTEN, tokenizer, 5)
    assert long.ids.tolist() == [6, 7, 8, 9, 2] and long.response.tolist() == [False] * 3 + [True] * 2
    assert (long.truncated, long.row, short.truncated, short.row) == (True, 0, False, 1)
    with pytest.raises(InputError, match=r"f:1: the answer has 3 tokens, expected 1 to 2: something .* in 3 tokens"):
        encode_rows(WRITTEN[1:], tokenizer, 3)


def test_pairs_are_divided_where_the_context_ends(stories: Any) -> None:
    tokenizer = stories.tokenizer
    pairs = [("Once upon a time", " there"), ("Once upon a time ", "there"), ("", "there was"), (" \n", "there")]
    found = encode_pairs(pairs, tokenizer)
    assert found[0] == found[1], "white space at the end of a context belongs to the continuation"
    assert found[0][0] == tokenizer(pairs[0][0])["input_ids"]
    assert found[0][0] + found[0][1] == tokenizer("Once upon a time there")["input_ids"]
    assert found[2] == ([tokenizer.bos_token_id], tokenizer("there was")["input_ids"][1:])
    assert found[3][0] == [tokenizer.bos_token_id] and encode_pairs([], tokenizer) == []


def test_an_empty_context_needs_a_token_in_its_place(tokenizer: Any) -> None:
    assert encode_pairs([("", "w3")], tokenizer) == [([1], [3])]
    tokenizer.bos_token = None
    assert encode_pairs([("", "w3")], tokenizer) == [([2], [3])]
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="empty context, and the tokenizer has no BOS"):
        encode_pairs([("", "w3")], tokenizer)
