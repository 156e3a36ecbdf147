from __future__ import annotations

import math

import numpy as np
import pytest

from search.landscape import ACCURACY, PERPLEXITY, Landscape, outcome, space
from sentei.errors import InputError
from sentei.search.goal import Goal, below_zero, loss, take

RNG = np.random.default_rng(0)


def test_the_tolerance_is_relative_and_inclusive() -> None:
    goal = Goal(outcome([1] * 80 + [0] * 20), 0.05, ACCURACY)
    assert goal.met(outcome([1] * 76 + [0] * 24)), "0.76 = 0.95 · 0.80"
    assert not goal.met(outcome([1] * 75 + [0] * 25))
    assert goal.change(outcome([1] * 76 + [0] * 24)) == pytest.approx(-0.05)
    assert goal.value(goal.dense) == 0.8


def test_perplexity_counts_tokens() -> None:
    dense = outcome([2.0, 3.0], weight=[30, 10])
    goal = Goal(dense, 0.1, PERPLEXITY)
    assert goal.value(dense) == pytest.approx(math.exp(2.25))
    edge = math.log(1.1)
    assert goal.met(outcome([2.0 + edge, 3.0 + edge], weight=[30, 10]))
    assert goal.met(outcome([2.0, 3.0 + 4 * edge - 1e-6], weight=[30, 10])), (
        "a quarter of the tokens may lose four times as much"
    )
    assert not goal.met(outcome([2.0, 3.0 + 4 * edge + 1e-6], weight=[30, 10]))
    assert goal.change(outcome([2.1, 3.1], weight=[30, 10])) == pytest.approx(math.expm1(0.1))


def test_the_interval_is_paired_and_says_what_strict_needs() -> None:
    base = RNG.random(400) < 0.7
    worse = base.copy()
    worse[np.flatnonzero(base)[:6]] = False  # 6 of 400 rows lost
    goal = Goal(outcome(base), 0.05, ACCURACY)
    low, high = goal.interval(outcome(worse))
    assert low < goal.change(outcome(worse)) < high <= 0
    assert high - low < 0.04, "unpaired it would be 0.13"
    assert goal.met_strictly(outcome(worse)) and not Goal(outcome(base), 0.025, ACCURACY).met_strictly(outcome(worse))
    few = Goal(outcome(base), 0.03, ACCURACY).rows_needed(outcome(worse))
    assert few is not None and 400 < few < 20_000
    assert Goal(outcome(base), 0.01, ACCURACY).rows_needed(outcome(worse)) is None, (
        "the point estimate fails: no number helps"
    )


def test_rows_needed_are_enough_and_not_too_many() -> None:
    dense = np.arange(50) % 5 > 0
    pruned = np.where(np.arange(50) == 1, ~dense, dense)  # 39 of 50 instead of 40
    needed = Goal(outcome(dense), 0.04, ACCURACY).rows_needed(outcome(pruned))
    assert needed is not None and 200 < needed < 2000

    def strict(times: int) -> bool:
        goal = Goal(outcome(np.tile(dense, times)), 0.04, ACCURACY)
        return goal.met_strictly(outcome(np.tile(pruned, times)))

    assert strict(math.ceil(1.2 * needed / 50)) and not strict(needed // 100)


def test_the_interval_of_perplexity() -> None:
    nll = RNG.normal(3, 0.5, 300)
    weight = RNG.integers(5, 50, 300).astype(float)
    goal = Goal(outcome(nll, weight=weight), 0.05, PERPLEXITY)
    low, high = goal.interval(outcome(nll + RNG.normal(0.03, 0.02, 300), weight=weight))
    assert low < math.expm1(0.03) < high and high - low < 0.01
    assert goal.met_strictly(outcome(nll + 0.03, weight=weight))


def test_a_broken_candidate_is_not_met_and_hopeless() -> None:
    goal = Goal(outcome([1.0, 2.0, 3.0, 4.0]), 0.1, PERPLEXITY)
    broken = outcome([1.0, math.inf], loss=[1.0, math.nan])
    assert not goal.met(broken) and goal.hopeless(broken) and loss(broken) == math.inf
    assert not goal.met_strictly(outcome([math.inf] * 4))


@pytest.mark.parametrize("tolerance", [0.0, -0.1, 1.0, float("nan")])
def test_a_tolerance_that_is_none(tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance"):
        Goal(outcome([1.0]), tolerance, ACCURACY)


def test_a_dense_model_with_nothing_to_keep() -> None:
    with pytest.raises(InputError, match="nothing to keep"):
        Goal(outcome([0.0, 0.0]), 0.1, ACCURACY)


@pytest.mark.parametrize("flips", [0.03, 0.15])
@pytest.mark.parametrize("first", [32, 64, 150])
def test_few_that_would_meet_the_goal_are_dropped(flips: float, first: int) -> None:
    """Candidates exactly on the edge, whose rows come in random order: at most the stated share is given up."""
    rng = np.random.default_rng(first)
    dense = np.concatenate([np.ones(240), np.zeros(60)])
    lost = round(flips * 240)
    pruned = dense.copy()
    pruned[:lost] = 0
    goal_tolerance = lost / 240 + 1e-9
    dropped = 0
    for _ in range(1000):
        order = rng.permutation(300)
        goal = Goal(outcome(dense[order]), goal_tolerance, ACCURACY)
        dropped += goal.hopeless(outcome(pruned[order][:first]), error=0.05)
    assert dropped / 1000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_looks_share_the_error_and_losers_go_early() -> None:
    rng = np.random.default_rng(7)
    good = bad = 0
    for _ in range(600):
        values = rng.normal(0, 1, 400)
        values -= values.mean()
        looks = (50, 100, 200)
        good += any(below_zero(values[:n], np.ones(n), 400, looks=3) for n in looks)
        bad += below_zero(values[:50] - 0.6, np.ones(50), 400, looks=3)
    assert good / 600 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
    assert bad / 600 > 0.9


def test_what_is_still_unseen_is_all_that_is_uncertain() -> None:
    values = np.tile([1.0, -1.3], 50)  # mean −0.15, standard error 0.116, 1.3 of them below 0
    assert not below_zero(values, np.ones(100), 10_000)
    assert below_zero(values, np.ones(100), 150), "two thirds of the rows are known: 2.2 standard errors"


def test_with_all_rows_the_test_is_the_comparison() -> None:
    land = Landscape(space(), rows=100)
    goal = land.goal(0.05)
    for share in np.linspace(0, 0.8, 12):
        found = land(land.space.at(float(share)), 0, 100)
        assert goal.hopeless(found) != goal.met(found)


def test_rows_are_taken_with_their_weights() -> None:
    whole = outcome([1, 0, 1, 1], [4, 3, 2, 1], [1, 2, 3, 4])
    part = take(whole, 1, 3)
    assert (part.score.tolist(), part.loss.tolist(), part.weight.tolist()) == ([0, 1], [3, 2], [2, 3])
    assert loss(whole) == pytest.approx(2.0)


def test_few_rows_that_agree_do_not_settle_it() -> None:
    """Ten of ten right before and after: the change may well be more than the tolerance."""
    goal = Goal(outcome([1] * 10), 0.05, ACCURACY)
    same = outcome([1] * 10)
    low, high = goal.interval(same)
    assert goal.met(same) and not goal.met_strictly(same) and low < -0.1 and high > 0.1
    needed = goal.rows_needed(same)
    assert needed is not None and 30 < needed < 200
    assert Goal(outcome([1] * needed), 0.05, ACCURACY).met_strictly(outcome([1] * needed))
    fewer = needed - 1
    assert not Goal(outcome([1] * fewer), 0.05, ACCURACY).met_strictly(outcome([1] * fewer))
