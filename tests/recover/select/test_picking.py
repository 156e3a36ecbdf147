from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentei.data.pools import read_pool
from sentei.errors import InputError
from sentei.recover.select.picking import Amount, pick
from sentei.recover.select.scores import Scores
from sentei.recover.select.strategies import STRATEGIES, Candidates


def pooled(
    jsd: list[float], tokens: list[int], clusters: list[int], allowed: list[bool] | None = None, **more: Any
) -> Candidates:
    rows = read_pool([{"prompt": f"question w{i} about w{i % 3}", "completion": "c"} for i in range(len(jsd))]).rows
    values = np.array(jsd, np.float32)
    kept = np.ones(len(jsd), bool) if allowed is None else np.array(allowed)
    return Candidates(
        rows,
        np.array(tokens),
        np.array(clusters),
        kept,
        Scores(values, values, values, values, values, np.ones_like(values)),
        **more,
    )


@st.composite
def pools(draw: Any) -> Candidates:
    count = draw(st.integers(2, 40))

    def many(values: Any) -> Any:
        return st.lists(values, min_size=count, max_size=count)

    return pooled(
        draw(many(st.floats(0, 0.69))),
        draw(many(st.integers(2, 50))),
        draw(many(st.integers(0, 4))),
        draw(many(st.booleans())),
    )


STRATEGY = st.sampled_from(["auto", "paser", "uniform", "random", "length", "perplexity"])


@settings(deadline=None)  # the first paser example imports NLTK
@given(pools(), STRATEGY, st.data())
def test_exactly_the_budget_is_picked(c: Candidates, name: str, data: Any) -> None:
    usable = int(c.allowed.sum())
    strategy = STRATEGIES[name]
    if not usable:
        with pytest.raises(InputError, match="rows are rejected, nothing can be selected"):
            pick(c, strategy, Amount(1, "rows"))
        return
    wanted = data.draw(st.integers(1, usable))
    found = pick(c, strategy, Amount(wanted, "rows"))
    assert len(set(found.rows)) == len(found.rows) == wanted == found.shares.sum()
    assert c.allowed[found.rows].all() and not set(found.rows) & set(found.refused)
    counts = np.bincount(found.groups[found.rows], minlength=len(found.shares))
    assert np.array_equal(counts, found.shares)
    for group in range(len(found.shares)):  # nothing better was left behind
        inside = c.allowed & (found.groups == group) & ~np.isin(np.arange(len(c.rows)), list(found.refused))
        left = np.setdiff1d(np.flatnonzero(inside), found.rows)
        mine = [row for row in found.rows if found.groups[row] == group]
        assert not len(left) or not mine or found.scores[left].max() <= found.scores[mine].min()


@settings(deadline=None)  # the first paser example imports NLTK
@given(pools(), STRATEGY, st.data())
def test_a_budget_of_tokens_leaves_less_than_the_shortest_row(c: Candidates, name: str, data: Any) -> None:
    total = int(c.tokens[c.allowed].sum())
    if not total:
        return
    wanted = data.draw(st.integers(int(c.tokens[c.allowed].min()), total))
    found = pick(c, STRATEGIES[name], Amount(wanted, "tokens"))
    spent = int(c.tokens[found.rows].sum())
    left = np.setdiff1d(np.flatnonzero(c.allowed), [*found.rows, *found.refused])
    assert len(set(found.rows)) == len(found.rows) and c.allowed[found.rows].all() and spent <= wanted
    assert not len(left) or wanted - spent < c.tokens[left].min()


@given(pools(), st.floats(0.01, 0.99))
def test_a_share_is_of_the_whole_pool(c: Candidates, share: float) -> None:
    wanted, usable = max(1, round(share * len(c.rows))), int(c.allowed.sum())
    if usable >= wanted:
        assert len(pick(c, STRATEGIES["auto"], Amount.parse(share)).rows) == wanted
    else:
        with pytest.raises(InputError, match=r"rejected"):
            pick(c, STRATEGIES["auto"], Amount.parse(share))


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0.2", Amount(0.2, "share")),
        (0.2, Amount(0.2, "share")),
        ("20%", Amount(0.2, "share")),
        ("100%", Amount(1, "share")),
        ("1", Amount(1, "rows")),
        (500, Amount(500, "rows")),
        ("40000 tokens", Amount(40_000, "tokens")),
        ("40k tokens", Amount(40_000, "tokens")),
        ("1.5M tok", Amount(1_500_000, "tokens")),
        ("12t", Amount(12, "tokens")),
    ],
)
def test_amounts(text: Any, amount: Amount) -> None:
    assert Amount.parse(text) == amount


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "0%", "101%", "many", "nan", "inf", "tokens", "0.2 rows"])
def test_amounts_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"is not understood; give a share of the pool \(0\.2 or 20%\)"):
        Amount.parse(text)


def test_budgets_that_cannot_be_filled_are_refused() -> None:
    c = pooled([0.1, 0.2, 0.3], [5, 6, 7], [0, 0, 1], [True, True, False])
    auto = STRATEGIES["auto"]
    with pytest.raises(InputError, match=r"the budget is 3 rows, the pool has 2 rows that may be selected \(1 of 3"):
        pick(c, auto, Amount(3, "rows"))
    with pytest.raises(InputError, match=r"the budget is 12 tokens, the pool has 11 tokens"):
        pick(c, auto, Amount(12, "tokens"))
    with pytest.raises(InputError, match=r"4 tokens is less than the shortest row \(5\)"):
        pick(c, auto, Amount(4, "tokens"))
    with pytest.raises(InputError, match="all 3 rows are rejected"):
        pick(pooled([0.1] * 3, [5] * 3, [0] * 3, [False] * 3), auto, Amount(1, "rows"))
    with pytest.raises(InputError, match="the scores that this strategy needs are not there"):
        pick(pooled([float("nan")] * 3, [5] * 3, [0] * 3), auto, Amount(1, "rows"))
    with pytest.raises(InputError, match="does not look at clusters"):
        pick(c, STRATEGIES["random"], Amount(1, "rows"), minimum=1)
    with pytest.raises(InputError, match="does not look at clusters"):
        pick(pooled([0.1] * 3, [5] * 3, [0] * 3, weights={0: 2.0}), STRATEGIES["length"], Amount(1, "rows"))
    assert pick(c, STRATEGIES["all"], Amount(3, "rows")).rows == [0, 1]  # takes all there is, whatever the budget


def test_the_damaged_cluster_gets_its_part_and_its_worst_rows() -> None:
    c = pooled([0.1] * 10 + [0.3 + i / 1000 for i in range(10)], [8] * 20, [0] * 10 + [1] * 10)
    found = pick(c, STRATEGIES["auto"], Amount(8, "rows"))
    assert found.shares.tolist() == [2, 6] and found.rows == [0, 1, 19, 18, 17, 16, 15, 14]
    assert pick(c, STRATEGIES["auto"], Amount(8, "rows"), minimum=3).shares.tolist() == [3, 5]
    assert pick(c, STRATEGIES["auto"], Amount(15, "rows")).shares.tolist() == [5, 10], "full: the rest goes on"


def test_no_damage_at_all_still_fills_the_budget() -> None:
    found = pick(pooled([0.0] * 9, [8] * 9, [0, 0, 0, 0, 0, 0, 1, 1, 1]), STRATEGIES["auto"], Amount(3, "rows"))
    assert found.shares.tolist() == [2, 1]


@pytest.mark.parametrize(("unit", "budget"), [("rows", 3), ("tokens", 30)])
def test_the_concept_graph_refuses_only_while_the_budget_can_be_filled(
    monkeypatch: pytest.MonkeyPatch, unit: str, budget: int
) -> None:
    from sentei.recover.select import concepts

    monkeypatch.setattr(concepts.ConceptGraph, "accepts", lambda self, row: int(row.id) >= 4)
    c = pooled([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], [10] * 6, [0] * 6)
    found = pick(c, STRATEGIES["paser"], Amount(budget, unit))
    assert sorted(found.refused) == [0, 1, 2] and found.rows == [3, 4, 5]
    assert all("the concept graph refuses it" in reason for reason in found.refused.values())
    whole = pick(c, STRATEGIES["paser"], Amount(budget * 2, unit))
    assert not whole.refused and len(whole.rows) == 6
