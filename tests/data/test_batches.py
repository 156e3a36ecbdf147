from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sentei.data.batches import by_length, fill, pad, shuffled
from sentei.data.chat import Sample

LENGTHS = st.lists(st.integers(1, 60), max_size=80)


def fits(batches: list[list[int]], lengths: list[int], tokens: int) -> None:
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch and (len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens)


@given(LENGTHS, st.integers(1, 200))
def test_by_length_holds_every_sample_once_and_keeps_the_bound(lengths: list[int], tokens: int) -> None:
    batches = by_length(lengths, tokens)
    fits(batches, lengths, tokens)
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(lengths, reverse=True), "the longest come first"
    assert batches == by_length(lengths, tokens)


@given(LENGTHS, st.integers(1, 200), st.integers(1, 9))
def test_batches_of_neighbours_keep_order_and_bounds(lengths: list[int], tokens: int, most: int) -> None:
    batches = fill(range(len(lengths)), lengths, tokens, most=most)
    fits(batches, lengths, tokens)
    assert [i for batch in batches for i in batch] == list(range(len(lengths)))
    assert all(len(batch) <= most for batch in batches)
    for batch, after in pairwise(batches):
        longest = max(lengths[i] for i in [*batch, after[0]])
        assert len(batch) == most or (len(batch) + 1) * longest > tokens, "no batch ends early"


def test_an_even_batch_ends_where_lengths_rise_and_a_processor_is_busy() -> None:
    assert fill(range(8), [200] * 6 + [251] * 2, even=True) == [[0, 1, 2, 3, 4, 5], [6, 7]]
    assert fill(range(8), [200] * 6 + [250] * 2, even=True) == [[*range(8)]], "a quarter more is alike"
    assert fill(range(4), [100] * 2 + [251] * 2, even=True) == [[*range(4)]], "two keep none busy"


@given(LENGTHS, st.integers(1, 200), st.integers(0, 5))
def test_an_epoch_holds_every_sample_once_and_keeps_the_bound(lengths: list[int], tokens: int, seed: int) -> None:
    batches = shuffled(lengths, tokens, seed)
    fits(batches, lengths, tokens)
    assert batches == shuffled(lengths, tokens, seed)


def test_epochs_differ_and_waste_little() -> None:
    lengths = np.random.default_rng(0).integers(10, 200, 1000).tolist()
    first, second = shuffled(lengths, 1024, 0), shuffled(lengths, 1024, 1)
    assert first != second and first != sorted(first, key=lambda batch: -lengths[batch[0]])
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in first)
    assert padded < 1.1 * sum(lengths)


def test_a_batch_knows_where_its_targets_are() -> None:
    long = Sample(np.array([5, 6, 7, 8], np.int32), np.array([False, False, True, True]), False)
    short = Sample(np.array([9, 10], np.int32), np.array([True, True]), False)  # a first token is never a target
    batch = pad([short, long, short], [1, 2])
    assert batch.rows == (1, 2) and batch.ids.tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert batch.sources.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert batch.targets.tolist() == [7, 8, 10] and batch.owners.tolist() == [0, 0, 1]
    assert batch.ids.roll(-1, 1)[batch.sources].equal(batch.targets)
    moved = batch.to(torch.device("cpu"))
    assert moved.rows == batch.rows and moved.targets.equal(batch.targets)
