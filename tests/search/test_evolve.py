from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.landscape import Landscape, space
from sentei.search.bisect import bisect
from sentei.search.cache import Cache
from sentei.search.corrections import Corrections
from sentei.search.evolve import Evolution, _offspring, evolve, swap
from sentei.search.genetic import genetic
from sentei.search.ledger import Allowance


@pytest.fixture
def land() -> Landscape:
    return Landscape(space(24, 12), rows=200, spread=1.0)


def test_the_planted_optimum_is_nearly_reached_where_predictions_mislead(land: Landscape) -> None:
    goal, dense = land.goal(), land.space.cost(land.space.dense)
    found = evolve(land.space, land, goal)
    best = 1 - land.best(goal) / dense
    uniform = land.space.removed(bisect(land.space, land, goal).genome)
    path = land.space.removed(bisect(land.space, land, goal, path=land.space.at).genome)
    removed = land.space.removed(found.genome)
    assert found.feasible and goal.met(land(found.genome, 0, 200)) and found.stopped == "stagnation"
    assert uniform < path < removed, (uniform, path, removed, best)
    assert removed > path + 0.6 * (best - path), "most of what wrong predictions cost is won back"


def test_it_needs_a_tenth_of_the_genetic_algorithms_evaluations(land: Landscape) -> None:
    goal = land.goal()
    theirs = genetic(land.space, land, goal)
    ours = evolve(land.space, land, goal, allowance=Allowance(evaluations=theirs.evaluations / 10))
    assert ours.cost < theirs.cost and ours.evaluations <= theirs.evaluations / 10


def test_history_says_it_all(land: Landscape) -> None:
    found = evolve(land.space, land, land.goal(), allowance=Allowance(evaluations=20))
    assert json.loads(json.dumps(found.history, allow_nan=False)) == found.history
    assert found.history[-1]["evaluations"] == found.evaluations <= 20
    rows: dict[tuple[int, ...], int] = {}
    for row in found.history:
        rows[tuple(row["genome"])] = row["rows"]
    assert sum(rows.values()) / 200 == pytest.approx(found.evaluations), "a row is paid for once"
    met = [row["cost"] for row in found.history if row["met"]]
    assert found.cost == min(met)


@pytest.mark.parametrize("after", [0.5, 7.3, 21.0])
def test_it_goes_on_to_the_same_end_wherever_it_is_stopped(land: Landscape, tmp_path: Path, after: float) -> None:
    whole = evolve(land.space, land, land.goal(), seed=1)

    class Killed(Exception):
        pass

    def fragile(genome: tuple[int, ...], start: int, stop: int) -> object:
        if sum(end - begin for _, begin, end in land.calls) > after * 200:
            raise Killed
        return land(genome, start, stop)

    goal, journal = land.goal(), tmp_path / "journal.jsonl"
    land.calls.clear()
    with pytest.raises(Killed):
        evolve(land.space, fragile, goal, seed=1, cache=Cache(land.space, 200, journal))  # type: ignore[arg-type]
    with open(journal, "a") as file:
        file.write('{"genome": [0, 1')  # a kill in the middle of a line
    resumed = evolve(land.space, land, goal, seed=1, cache=Cache(land.space, 200, journal))
    assert resumed.history == whole.history and resumed.cost == whole.cost and resumed.genome == whole.genome
    assert sum(end - begin for _, begin, end in land.calls) == pytest.approx(whole.evaluations * 200), "nothing twice"


def test_it_is_seeded_and_a_deadline_ends_it(land: Landscape) -> None:
    assert (
        evolve(land.space, land, land.goal(), seed=2).history == evolve(land.space, land, land.goal(), seed=2).history
    )
    now = [0.0]

    def slow(genome: tuple[int, ...], start: int, stop: int) -> object:
        now[0] += (stop - start) / 200
        return land(genome, start, stop)

    allowance = Allowance(deadline=15.0, clock=lambda: now[0], pace=1.0)
    found = evolve(land.space, slow, land.goal(), allowance=allowance)  # type: ignore[arg-type]
    assert found.stopped == "deadline" and 13.5 < now[0] < 15 and found.feasible


def test_where_nothing_can_go_the_dense_model_stays() -> None:
    base = Landscape(space(6, 4), rows=64)
    hard = dataclasses.replace(base, space=base.space)
    hard.factors = base.factors * 1e6
    found = evolve(hard.space, hard, hard.goal(0.01))
    assert found.genome == hard.space.dense and found.feasible and found.stopped == "stagnation"
    assert found.evaluations < 25


def test_where_everything_can_go_it_goes() -> None:
    land = Landscape(space(6, 4), rows=64)
    land.factors = land.factors * 1e-9
    found = evolve(land.space, land, land.goal(0.01))
    assert found.genome == land.space.smallest


SPACE = space(8, 6)


@settings(max_examples=80, deadline=None)
@given(st.floats(0.05, 0.75), st.integers(0, 10_000))
def test_swaps_keep_the_budget_and_change_something(share: float, seed: int) -> None:
    budget = SPACE.cost(SPACE.dense) * (1 - share)
    parent = SPACE.solve(budget)
    child = swap(SPACE, parent, budget, np.ones(8), np.random.default_rng(seed))
    assert SPACE.cost(child) <= budget and child != parent
    assert all(0 <= level < 6 for level in child)
    deeper = sum(a > b for a, b in zip(child, parent, strict=True))
    assert 1 <= deeper <= 3


def test_swaps_prefer_what_the_predictions_prefer_but_exclude_nothing() -> None:
    rng = np.random.default_rng(0)
    budget = SPACE.cost(SPACE.dense) * 0.6
    parent = SPACE.even(0.4)
    factors = np.ones(8)
    factors[3] = 100.0  # said to be dear
    down = np.zeros(8)
    for _ in range(600):
        child = swap(SPACE, parent, budget, factors, rng)
        down += np.array(child) > parent
    assert down.min() > 0 and down[3] == down.min()


def test_draws_explore_what_is_not_known() -> None:
    blank = Corrections.learn(SPACE, Landscape(SPACE, rows=20).goal(), [])
    budget = SPACE.cost(SPACE.dense) * 0.6
    only_draws = Evolution(offspring=1, drawn=6)  # and no swaps
    found = _offspring(SPACE, budget, blank, [SPACE.dense], only_draws, np.random.default_rng(0))
    assert SPACE.solve(budget) == found[0] and len(found) >= 4
    assert all(SPACE.cost(genome) <= budget for genome in found)
    assert not _offspring(SPACE, 0, blank, [SPACE.dense], only_draws, np.random.default_rng(0)), "nothing is so small"


def test_settings_are_told(land: Landscape) -> None:
    found = evolve(land.space, land, land.goal(), settings=Evolution(generations=1))
    assert {row["by"] for row in found.history} == {"bisection", "generation 0"} and found.stopped == "generations"
