from __future__ import annotations

import pytest

from search.landscape import Landscape, outcome, space
from sentei.prune.space import Gene, Genome, Space
from sentei.search.bisect import bisect, descend, holds
from sentei.search.ledger import Allowance, Ledger


class Steps:
    """One gene of 1000 steps; the goal holds on given ranges of the share removed."""

    def __init__(self, *ranges: tuple[float, float]) -> None:
        costs = tuple(range(1000, -1, -1))
        self.space = Space((Gene("x", costs, tuple(i / 1000 for i in range(1001))),))
        self.ranges, self.asked = ranges, []

    def __call__(self, genome: Genome, start: int, stop: int) -> object:
        share = genome[0] / 1000
        self.asked.append(share)
        good = any(low <= share <= high for low, high in self.ranges)
        return outcome([float(good)] * (stop - start))

    def goal(self) -> object:
        from search.landscape import ACCURACY
        from sentei.search.goal import Goal

        return Goal(outcome([1.0] * 20), 0.05, ACCURACY)


@pytest.mark.parametrize("edge", [0.0, 0.004, 0.3, 0.333, 0.75, 1.0])
def test_the_edge_is_found_to_the_resolution(edge: float) -> None:
    task = Steps((0, edge))
    found = bisect(task.space, task, task.goal(), resolution=0.01)  # type: ignore[arg-type]
    share = task.space.removed(found.genome)
    assert edge - 0.01 < share <= edge and found.feasible and found.stopped == "resolution"
    assert found.evaluations == len(task.asked) <= 7 + 2


def test_an_island_just_beyond_is_found_too() -> None:
    task = Steps((0, 0.30), (0.312, 0.345))
    found = bisect(task.space, task, task.goal(), resolution=0.01)  # type: ignore[arg-type]
    assert 0.335 < task.space.removed(found.genome) <= 0.345
    blind = bisect(task.space, Steps((0, 0.30), (0.318, 0.345)), task.goal(), resolution=0.01, neighbours=0)  # type: ignore[arg-type]
    assert task.space.removed(blind.genome) <= 0.30


def test_the_knapsacks_path_beats_the_uniform_one() -> None:
    land = Landscape(space(24, 32), rows=200)
    goal = land.goal()
    ours = bisect(land.space, land, goal, path=land.space.at)
    theirs = bisect(land.space, land, goal)
    assert ours.cost < 0.95 * theirs.cost
    assert goal.met(land(ours.genome, 0, 200)) and ours.cost == land.space.cost(ours.genome)
    assert abs(ours.cost - land.best(goal)) < 0.02 * land.space.cost(land.space.dense), "predictions are right here"


def test_what_the_space_cannot_do_counts_as_too_much() -> None:
    land = Landscape(space(), rows=40)
    book = Ledger(land.space, land, land.goal())
    assert not holds(book, land.space.at, 0.99, (1.0,)) and book.evaluations == 0


def test_hopeless_shares_cost_a_part_of_the_rows() -> None:
    land = Landscape(space(24, 32), rows=320)
    book = Ledger(land.space, land, land.goal())
    share = descend(book, land.space.at, rungs=(1 / 8, 1 / 4, 1 / 2, 1.0))
    plain = Ledger(land.space, land, land.goal())
    assert descend(plain, land.space.at) == share
    assert book.evaluations < plain.evaluations and book.best.genome == plain.best.genome


def test_what_is_left_of_the_allowance_decides() -> None:
    land = Landscape(space(), rows=40)
    found = bisect(land.space, land, land.goal(), path=land.space.at, allowance=Allowance(evaluations=3))
    assert found.evaluations <= 3 and found.stopped == "evaluations" and len(found.history) == 3
