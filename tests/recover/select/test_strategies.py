from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sentei.data.pools import read_pool
from sentei.errors import InputError
from sentei.recover.select.choices import parse_weights, read_ids
from sentei.recover.select.picking import Amount, pick
from sentei.recover.select.scores import Scores
from sentei.recover.select.strategies import STRATEGIES, Candidates


def candidates(**changes: Any) -> Candidates:
    """Six rows in three clusters; the last row is rejected."""
    values = np.arange(1, 7, dtype=np.float32) / 10
    pool = read_pool([{"prompt": f"p{i}", "completion": "c", "id": f"r{i}"} for i in range(6)])
    usual = Candidates(
        pool.rows,
        np.array([8, 64, 8, 1, 100, 9]),
        np.array([0, 0, 1, 1, 1, 2]),
        np.array([True] * 5 + [False]),
        Scores(
            values,
            values + 1,
            values[::-1].copy(),
            values + np.float32(1.35),
            values,
            np.arange(1, 7, dtype=np.float32),
        ),
    )
    return replace(usual, **changes)


def test_efficiency_is_damage_by_the_logarithm_of_the_cost() -> None:
    found = STRATEGIES["paser"].prefer(candidates())
    tokens = np.array([8, 64, 8, 2, 100, 9])  # a row of one token would cost nothing
    np.testing.assert_allclose(found.scores, np.arange(1, 7) / 10 / (2 * np.log(tokens)), rtol=1e-6)
    np.testing.assert_allclose(found.weights, [0.15, 0.4, 0], rtol=1e-6)
    filtered = STRATEGIES["efficiency"].prefer(candidates())
    assert np.array_equal(filtered.scores, found.scores)
    assert STRATEGIES["efficiency"].filters and STRATEGIES["paser"].concepts


def test_auto_counts_the_damage_that_training_meets_per_token() -> None:
    found = STRATEGIES["auto"].prefer(candidates())
    responses = np.arange(1, 7)  # of [8, 64, 8, 1, 100, 9] tokens
    np.testing.assert_allclose(found.scores, responses / 10 * responses / [8, 64, 8, 1, 100, 9], rtol=1e-6)
    np.testing.assert_allclose(found.weights, [0.15, 0.4, 0], rtol=1e-6)
    assert STRATEGIES["auto"].filters


def test_auto_meets_more_damage_in_a_budget_of_tokens_than_a_mean_or_chance() -> None:
    chance = np.random.default_rng(0)
    n = 400
    jsd, tokens = chance.uniform(0.1, 0.6, n).astype(np.float32), chance.integers(20, 200, n)
    counts = np.maximum(1, tokens * chance.uniform(0.1, 0.9, n)).astype(np.float32)
    pool = read_pool([{"prompt": f"p{i}", "completion": "c"} for i in range(n)])
    rows = Candidates(pool.rows, tokens, np.arange(n) % 4, np.ones(n, bool), Scores(jsd, jsd, jsd, jsd, jsd, counts))

    def met(name: str) -> float:
        chosen = pick(rows, STRATEGIES[name], Amount(4000, "tokens")).rows
        return float((jsd * counts)[chosen].sum())

    assert met("auto") > 1.2 * met("efficiency") and met("auto") > 1.3 * met("random")


def test_temperature_weights_and_target_change_the_shares() -> None:
    def weights(**changes: Any) -> Any:
        return STRATEGIES["auto"].prefer(candidates(**changes)).weights

    np.testing.assert_allclose(weights(temperature=2.0), [0.15**2, 0.4**2, 0], rtol=1e-6)
    np.testing.assert_allclose(weights(temperature=0.0), [1, 1, 1])
    np.testing.assert_allclose(weights(weights={1: 0.5}), [0.15, 0.2, 0], rtol=1e-6)
    np.testing.assert_allclose(weights(target=np.array([1.0, 0, 0])), [0.15, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(STRATEGIES["uniform"].prefer(candidates(weights={2: 3.0})).weights, [1, 1, 3])
    with pytest.raises(InputError, match="a weight is given for cluster 3, the clusters are 0 to 2"):
        weights(weights={3: 1.0})


def test_a_row_without_scores_counts_nothing_in_its_cluster() -> None:
    jsd = np.array([0.2, np.nan, 0.4, 0.4, 0.4, 0.4], np.float32)
    c = candidates()
    found = candidates(scores=replace(c.scores, jsd=jsd))
    np.testing.assert_allclose(found.damage(), [0.2, 0.4, 0], rtol=1e-6)


def test_baselines_put_first_what_they_say() -> None:
    def order(name: str, **changes: Any) -> list[int]:
        return np.argsort(-STRATEGIES[name].prefer(candidates(**changes)).scores, kind="stable").tolist()

    assert order("length")[:2] == [4, 1]
    assert order("perplexity") == [0, 1, 2, 3, 4, 5]
    assert order("all") == [0, 1, 2, 3, 4, 5] and STRATEGIES["all"].takes_all
    assert order("random") == order("random") != order("random", seed=1)
    assert order("ids", ids=("r4", "r0"))[:2] == [4, 0]
    with pytest.raises(InputError, match="--ids FILE"):
        order("ids")
    with pytest.raises(InputError, match="1 of 2 ids are not in the pool, the first is 'r9'"):
        order("ids", ids=("r0", "r9"))


def test_ifd_prefers_the_highest_below_one() -> None:
    c = candidates()
    alone = c.scores.dense_nll - np.log(np.array([0.5, 0.99, 1.01, 3.0, 0.7, 0.1], np.float32))
    scores = STRATEGIES["ifd"].prefer(candidates(scores=replace(c.scores, alone_nll=alone))).scores
    assert np.argsort(-scores).tolist() == [1, 4, 0, 5, 2, 3]


def test_what_a_person_says_is_read(tmp_path: Any) -> None:
    assert parse_weights(["3=2.0", "5=0"]) == {3: 2.0, 5: 0.0}
    for wrong, message in (
        ("3", "expected cluster=factor"),
        ("a=1", "such as 3=2.0"),
        ("1=-1", "at least 0"),
        ("1=nan", "finite"),
    ):
        with pytest.raises(InputError, match=message):
            parse_weights([wrong])
    plain, lines = tmp_path / "ids.txt", tmp_path / "ids.jsonl"
    plain.write_text("a 1\r\n\nb\n")
    lines.write_text('{"id": 7, "text": "x"}\n{"id": "b"}\n')
    assert read_ids(plain) == ["a 1", "b"] and read_ids(lines) == ["7", "b"]
    lines.write_text('{"text": "x"}\n')
    with pytest.raises(InputError, match=r"ids\.jsonl:1: there is no key 'id'; found: text"):
        read_ids(lines)
    plain.write_text("\n")
    with pytest.raises(InputError, match="there are no ids in it"):
        read_ids(plain)
