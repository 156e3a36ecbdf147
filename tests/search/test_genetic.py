from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from search.landscape import Landscape, space
from sentei.search.cache import Cache
from sentei.search.genetic import Genetic, genetic
from sentei.search.ledger import Allowance

SMALL = Genetic(population=30, generations=12)


@pytest.fixture
def land() -> Landscape:
    return Landscape(space(10, 8), rows=60, spread=0.5)


def test_it_beats_every_uniform_genome(land: Landscape) -> None:
    goal = land.goal()
    found = genetic(land.space, land, goal, settings=SMALL)
    uniform = [land.space.even(i / 100) for i in range(100)]
    best = min(land.space.cost(genome) for genome in uniform if goal.met(land(genome, 0, 60)))
    assert found.feasible and goal.met(land(found.genome, 0, 60)) and found.cost < best
    assert found.evaluations == len({tuple(row["genome"]) for row in found.history}) <= 30 * 12


def test_failing_is_never_fit(land: Landscape) -> None:
    """The published fitness would prefer the smallest genome of all."""
    found = genetic(land.space, land, land.goal(0.01), settings=SMALL)
    assert found.feasible and found.genome != land.space.smallest


def test_it_is_seeded(land: Landscape) -> None:
    first, second = (genetic(land.space, land, land.goal(), settings=SMALL, seed=3) for _ in range(2))
    assert first.history == second.history and first.genome == second.genome
    assert genetic(land.space, land, land.goal(), settings=SMALL, seed=4).history != first.history


def test_mutation_goes_one_step_and_levels_stay_legal(land: Landscape) -> None:
    settings = dataclasses.replace(SMALL, population=20, uniform=20, crossover=0.0, generations=2, mutation=1.0)
    found = genetic(land.space, land, land.goal(), settings=settings)
    first = [row["genome"] for row in found.history if row["by"] == "generation 0"]
    for row in found.history:
        assert all(0 <= level < 8 for level in row["genome"])
        if row["by"] == "generation 1":
            near = [all(abs(a - b) <= 1 for a, b in zip(row["genome"], old, strict=True)) for old in first]
            assert any(near)


def test_it_stops_when_the_size_hardly_falls(land: Landscape) -> None:
    settings = dataclasses.replace(SMALL, generations=200, patience=4)
    found = genetic(land.space, land, land.goal(), settings=settings)
    assert found.stopped == "stagnation"
    assert len({row["by"] for row in found.history}) < 60
    assert (
        genetic(land.space, land, land.goal(), settings=dataclasses.replace(SMALL, generations=2)).stopped
        == "generations"
    )


@pytest.mark.parametrize("after", [1, 40, 95])
def test_it_goes_on_to_the_same_end(land: Landscape, tmp_path: Path, after: int) -> None:
    whole = genetic(land.space, land, land.goal(), settings=SMALL)
    journal = tmp_path / "j"
    genetic(
        land.space, land, land.goal(), settings=SMALL,
        allowance=Allowance(evaluations=after), cache=Cache(land.space, 60, journal),
    )  # fmt: skip
    goal = land.goal()
    land.calls.clear()
    resumed = genetic(land.space, land, goal, settings=SMALL, cache=Cache(land.space, 60, journal))
    assert resumed.history == whole.history and resumed.genome == whole.genome
    assert len(land.calls) == whole.evaluations - after
