from __future__ import annotations

import numpy as np
import pytest

from search.landscape import Landscape, outcome, space
from sentei.search.ledger import Allowance, Ledger, Spent, Trial
from sentei.search.racing import behind, race, stops


def test_rungs_are_row_counts_that_mean_something() -> None:
    assert stops((1 / 8, 1 / 4, 1 / 2, 1.0), 300) == [38, 75, 150, 300]
    assert stops((1 / 8, 1 / 4, 1 / 2, 1.0), 60) == [16, 30, 60], "7 rows tell nothing"
    assert stops((1 / 8, 1.0), 10) == [10]
    assert stops((1.0,), 300) == [300]


def candidates(land: Landscape, count: int = 12) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(3)
    budget = 0.93 * land.space.cost(land.space.dense)
    return [land.space.solve(budget, rng.lognormal(0, 1.0, len(land.space.genes)).tolist()) for _ in range(count)]


def test_the_best_of_a_race_is_found_at_a_third_of_the_price() -> None:
    land = Landscape(space(24, 16), rows=320, spread=1.0)
    genomes = candidates(land)
    book = Ledger(land.space, land, land.goal(0.2))
    ahead = race(book, genomes)
    losses = sorted(land.truth(genome) for genome in set(genomes))
    assert land.truth(ahead[0].genome) <= losses[1]
    assert book.evaluations < len(set(genomes)) / 3 + 1
    assert all(len(trial.outcome.score) == 320 for trial in ahead)
    rows = [row["rows"] for row in book.history]
    assert rows == sorted(rows) and set(rows) == {40, 80, 160, 320}


def test_the_hopeless_are_dropped_on_few_rows() -> None:
    land = Landscape(space(24, 16), rows=320)
    book = Ledger(land.space, land, land.goal(0.01))
    ahead = race(book, [land.space.at(share) for share in (0.5, 0.6, 0.7)])
    assert {row["rows"] for row in book.history} == {40} and book.evaluations == 3 / 8
    assert land.truth(ahead[0].genome) == min(land.truth(trial.genome) for trial in ahead), "what was ahead is said"
    assert book.best.genome == land.space.dense


def test_one_that_is_clearly_behind_goes_and_one_that_may_win_stays() -> None:
    rng = np.random.default_rng(0)
    base = rng.exponential(1, 40)

    def trial(loss: object) -> Trial:
        return Trial((0,), 1, outcome(np.zeros(40), loss))  # type: ignore[arg-type]

    leader = trial(base)
    assert behind(trial(base + 0.2 + rng.normal(0, 0.1, 40)), leader, 320)
    assert not behind(trial(base + 0.01 + rng.normal(0, 0.5, 40)), leader, 320)
    assert not behind(leader, leader, 320) and not behind(trial(base - 0.2), leader, 320)
    assert behind(trial(base + 0.001), leader, 40), "all rows were seen"


def test_those_behind_go_before_their_half_does() -> None:
    land = Landscape(space(24, 16), rows=320)
    near, far = land.space.at(0.05), land.space.at(0.5)
    book = Ledger(land.space, land, land.goal(0.9))  # no one is hopeless
    assert [trial.genome for trial in race(book, [far, near], keep=1.0)] == [near]
    assert len(book.trials[far].outcome.score) == 40


def test_a_candidate_that_diverges_is_out_of_the_race() -> None:
    land = Landscape(space(24, 16), rows=320)
    good, bad = land.space.at(0.02), land.space.at(0.01)

    def evaluate(genome: tuple[int, ...], start: int, stop: int) -> object:
        found = land(genome, start, stop)
        if genome == bad:
            found.loss[0] = np.inf
        return found

    book = Ledger(land.space, evaluate, land.goal(0.2))  # type: ignore[arg-type]
    assert [trial.genome for trial in race(book, [bad, good], keep=1.0)] == [good]
    assert len(book.trials[bad].outcome.score) == 40


def test_races_stop_when_the_allowance_does() -> None:
    land = Landscape(space(24, 16), rows=320)
    book = Ledger(land.space, land, land.goal(0.2), allowance=Allowance(evaluations=1.0))
    with pytest.raises(Spent):
        race(book, candidates(land))
    assert book.evaluations <= 1.0
