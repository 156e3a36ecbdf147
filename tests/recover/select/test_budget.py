from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentei.errors import InputError
from sentei.recover.select.budget import split, take_tokens

WEIGHT = st.one_of(st.just(0.0), st.floats(0, 1e6), st.floats(0, 1e-300))
CLUSTERS = st.lists(st.tuples(WEIGHT, st.integers(0, 500)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=300)
@given(CLUSTERS, st.integers(0, 4000), st.integers(0, 20))
def test_exactly_the_budget_within_the_bounds_and_in_proportion(
    clusters: list[tuple[float, int]], total: int, minimum: int
) -> None:
    weights, capacity = (np.array(column) for column in zip(*clusters, strict=True))
    least = np.minimum(minimum, capacity)
    if least.sum() > min(total, capacity.sum()):
        with pytest.raises(InputError, match="lower the minimum"):
            split(total, weights, capacity, minimum)
        return
    shares = split(total, weights, capacity, minimum)
    assert shares.dtype == np.int64 and shares.sum() == min(total, capacity.sum())
    assert (shares <= capacity).all() and (shares >= least).all()
    assert (shares == split(total, weights, capacity, minimum)).all()
    # those between their bounds are in proportion, to one unit each
    free = (shares > least) & (shares < capacity) & (weights > 1e-12 * weights.max())
    for i in np.flatnonzero(free):
        for j in np.flatnonzero(free):
            if weights[i] >= weights[j]:
                assert shares[j] <= (shares[i] + 1) * weights[j] / weights[i] + 1 + 1e-6
    # one that has less than its proportion is full; one that has more is at its minimum
    if free.any():
        i = int(np.flatnonzero(free)[0])
        for j in np.flatnonzero(weights > weights[i]):
            assert shares[j] >= min(shares[i] - 1, capacity[j])


def test_the_largest_remainders_get_what_rounding_leaves() -> None:
    assert split(10, [1, 1, 1], [9, 9, 9]).tolist() == [4, 3, 3]
    assert split(10, [0.55, 0.27, 0.18], [9, 9, 9]).tolist() == [5, 3, 2]  # 5.5, 2.7, 1.8
    assert split(7, [3, 2, 2], [100, 100, 100]).tolist() == [3, 2, 2]


def test_what_a_full_cluster_cannot_take_goes_to_the_others_in_proportion() -> None:
    assert split(100, [8, 1, 1], [20, 1000, 1000]).tolist() == [20, 40, 40]
    assert split(100, [6, 3, 1], [10, 1000, 1000]).tolist() == [10, 68, 22]  # 67.5 and 22.5: a tie, the first wins
    assert split(100, [6, 3, 1], [10, 30, 1000]).tolist() == [10, 30, 60]  # the second overflows in turn


def test_a_cluster_without_weight_comes_last_and_by_capacity() -> None:
    assert split(10, [1, 0], [20, 20]).tolist() == [10, 0]
    assert split(10, [1, 0], [20, 20], minimum=3).tolist() == [7, 3]
    assert split(25, [1, 0, 0], [10, 20, 10]).tolist() == [10, 10, 5]
    assert split(30, [0, 0], [20, 40]).tolist() == [10, 20]


def test_a_minimum_takes_from_those_above_it_only() -> None:
    assert split(100, [90, 9, 1], [1000, 1000, 1000], minimum=5).tolist() == [86, 9, 5]
    assert split(100, [90, 9, 1], [1000, 1000, 2], minimum=5).tolist() == [89, 9, 2]


def test_nothing_to_share() -> None:
    assert split(0, [1, 2], [5, 5]).tolist() == [0, 0]
    assert split(9, [1, 2], [0, 0]).tolist() == [0, 0]
    assert split(9, [], []).tolist() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((5, [1, float("nan")], [5, 5]), "weight of cluster 1 is nan"),
        ((5, [-1, 1], [5, 5]), "weight of cluster 0 is -1"),
        ((5, [float("inf"), 1], [5, 5]), "weight of cluster 0 is inf"),
        ((-1, [1, 1], [5, 5]), "total of a budget is -1"),
        ((5, [1, 1], [5, -5]), "smallest capacity of a budget is -5"),
        ((5, [1, 1], [5, 5], -2), "minimum of a budget is -2"),
        ((5, [1, 1, 1], [5, 5]), r"\[3\] weights do not match \[2\]"),
        ((5, [1, 1], [5, 5], 3), "at least 3 for each of 2 clusters is 6 in all, the budget is 5"),
    ],
)
def test_what_cannot_be_shared_is_named(arguments: tuple, words: str) -> None:
    with pytest.raises(InputError, match=words):
        split(*arguments)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.lists(st.integers(0, 60), max_size=30), min_size=1, max_size=5),
    st.data(),
)
def test_tokens_fill_the_budget_to_less_than_the_shortest_row_left(
    lengths: list[list[int]], data: st.DataObject
) -> None:
    tokens = np.array([n for cluster in lengths for n in cluster], dtype=np.int64)
    ends = np.cumsum([0, *map(len, lengths)])
    order = [np.arange(a, b) for a, b in pairwise(ends)]
    shares = np.array([data.draw(st.integers(0, 500)) for _ in lengths])
    taken = take_tokens(order, tokens, shares)
    for rows, cluster in zip(taken, order, strict=True):
        assert np.isin(rows, cluster).all() and (np.diff(rows) > 0).all()  # each once, in order of preference
    chosen = np.concatenate(taken)
    used = int(tokens[chosen].sum())
    behind = np.setdiff1d(np.arange(len(tokens)), chosen)
    assert used <= shares.sum()
    if len(behind):
        assert shares.sum() - used < tokens[behind].min()


def test_every_cluster_ends_within_a_row_of_its_share() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 100, size=3000)
    order = [np.arange(0, 1000), np.arange(1000, 2000), np.arange(2000, 3000)]
    shares = np.array([20_000, 5_000, 1_000])
    taken = take_tokens(order, tokens, shares)
    used = np.array([tokens[rows].sum() for rows in taken])
    assert (np.abs(used - shares) <= 100).all()
    for rows, cluster in zip(taken, order, strict=True):  # the preferred ones, but for the last row or two
        assert (rows[:-2] == cluster[: len(rows) - 2]).all()


def test_what_a_poor_cluster_leaves_goes_to_the_others() -> None:
    tokens = np.full(100, 10)
    taken = take_tokens([np.arange(2), np.arange(2, 100)], tokens, np.array([100, 100]))
    assert [len(rows) for rows in taken] == [2, 18]
