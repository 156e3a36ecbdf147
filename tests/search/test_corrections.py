from __future__ import annotations

import numpy as np
import pytest

from search.landscape import Landscape, space
from sentei.search.corrections import BOUNDS, Corrections
from sentei.search.ledger import Ledger


def learn(spread: float, trials: int, noise: float = 0.02) -> tuple[Landscape, Corrections]:
    land = Landscape(space(16, 12), rows=200, spread=spread, noise=noise)
    book = Ledger(land.space, land, land.goal())
    rng = np.random.default_rng(5)
    for _ in range(trials):
        book.measure([tuple(rng.integers(0, 12, 16).tolist())])
    return land, Corrections.learn(land.space, book.goal, list(book.trials.values()))


def test_nothing_is_corrected_where_nothing_is_known() -> None:
    land, learnt = learn(0.5, 0)
    assert (learnt.mean == 1).all() and len(learnt.mean) == len(land.space.genes)


def test_a_common_factor_is_no_correction() -> None:
    _, learnt = learn(0.0, 40)
    assert learnt.mean == pytest.approx(np.ones(16), abs=0.2)


def test_the_hidden_factors_come_out_and_solving_with_them_is_better() -> None:
    land, learnt = learn(0.7, 120)
    weight = np.array([gene.losses[-1] for gene in land.space.genes])
    big = weight > np.median(weight)  # what hardly counts cannot be learnt, and need not
    assert np.corrcoef(np.log(learnt.mean[big]), np.log(land.factors[big]))[0, 1] > 0.85
    before, after, ideal = (
        land.truth(land.space.at(0.5, factors)) for factors in (None, learnt.mean.tolist(), land.factors.tolist())
    )
    assert after - ideal < 0.4 * (before - ideal)


def test_draws_agree_with_what_was_seen_and_differ_elsewhere() -> None:
    _, learnt = learn(0.5, 6)
    rng = np.random.default_rng(0)
    draws = np.stack([learnt.draw(rng) for _ in range(200)])
    assert draws.min() >= BOUNDS[0] and draws.max() <= BOUNDS[1]
    total = draws @ learnt._shares[0]  # the sum over genes that the first trial measured
    assert total.std() < 0.5 * draws.std(axis=0).mean()
    assert len(np.unique(draws[:, 0])) > 150


def test_trials_that_gain_or_break_teach_nothing() -> None:
    land = Landscape(space(4, 4), rows=20)
    goal = land.goal()
    book = Ledger(land.space, land, goal)
    (trial,) = book.measure([land.space.smallest])
    trial.outcome.loss[:] = np.inf
    assert (Corrections.learn(land.space, goal, [trial]).mean == 1).all()
    trial.outcome.loss[:] = goal.dense.loss - 1
    assert (Corrections.learn(land.space, goal, [trial]).mean == 1).all()
