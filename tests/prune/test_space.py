from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.landscape import space as random_space
from sentei.errors import InfeasibleError
from sentei.prune.space import Gene, Space


@st.composite
def spaces(draw: st.DrawFn, genes: int = 4, levels: int = 5) -> Space:
    made = []
    for i in range(draw(st.integers(1, genes))):
        n = draw(st.integers(1, levels))
        costs = sorted(draw(st.sets(st.integers(0, 60), min_size=n, max_size=n)), reverse=True)
        losses = np.cumsum(draw(st.lists(st.integers(0, 20), min_size=n, max_size=n)))
        made.append(Gene(f"g{i}", tuple(costs), tuple(map(float, losses))))
    return Space(tuple(made), fixed=draw(st.integers(0, 10)))


def everything(space: Space) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(gene.costs)) for gene in space.genes)))


@settings(max_examples=60, deadline=None)
@given(spaces(), st.data())
def test_solve_is_within_one_segment_of_the_exact_optimum(space: Space, data: st.DataObject) -> None:
    budget = data.draw(st.integers(space.cost(space.smallest), space.cost(space.dense)))
    found = space.solve(budget)
    exact = min(space.loss(genome) for genome in everything(space) if space.cost(genome) <= budget)
    segment = max((g.losses[to] - g.losses[i] for g in space.genes for i, (to, _) in enumerate(g.steps)), default=0)
    assert space.cost(found) <= budget
    assert exact <= space.loss(found) <= exact + segment


@settings(max_examples=60, deadline=None)
@given(spaces(), st.data())
def test_budgets_on_the_hull_are_met_with_the_optimum(space: Space, data: st.DataObject) -> None:
    walk = [space.dense]
    while walk[-1] != space.smallest:
        walk.append(space.shrink(walk[-1], space.cost(walk[-1]) - 1))
    corner = data.draw(st.sampled_from(walk))
    budget = space.cost(corner)
    exact = min(space.loss(genome) for genome in everything(space) if space.cost(genome) <= budget)
    assert space.loss(corner) == exact == space.loss(space.solve(budget))


@settings(max_examples=60, deadline=None)
@given(spaces(), st.data())
def test_what_is_filled_cannot_be_filled_further(space: Space, data: st.DataObject) -> None:
    start = data.draw(st.sampled_from(everything(space)))
    budget = space.cost(start) + data.draw(st.integers(0, 60))
    found = space.fill(start, budget)
    assert space.cost(found) <= budget and space.loss(found) <= space.loss(start)
    for i, level in enumerate(found):
        for better in range(level):
            other = (*found[:i], better, *found[i + 1 :])
            assert space.cost(other) > budget or space.loss(other) == space.loss(found)
    assert space.fill(start, budget, locked=range(len(start))) == start


def test_steps_are_the_corners_of_the_hull() -> None:
    gene = Gene("x", (100, 90, 80, 40, 0), (0.0, 5.0, 6.0, 6.5, 20.0))
    assert gene.steps[0] == (3, 6.5 / 60), "levels 1 and 2 lie above the chord"
    assert gene.steps[1] == (3, 1.5 / 50)
    assert gene.steps[3] == (4, 13.5 / 40)
    straight = Gene("x", (30, 20, 10), (0.0, 1.0, 2.0))
    assert [to for to, _ in straight.steps] == [1, 2], "points on the chord are stops too"


def test_a_segment_that_saves_more_than_asked_is_left_out_where_finer_genes_do_for_less() -> None:
    coarse = [Gene(f"coarse {i}", (1000, 0), (0.0, 10.0 + i)) for i in range(3)]  # 0.01 per cost
    fine = Gene("fine", tuple(range(100, -1, -10)), tuple(0.2 * i for i in range(11)))  # 0.02 per cost
    space = Space((*coarse, fine))
    dense = space.cost(space.dense)
    assert space.solve(dense - 15) == (0, 0, 0, 2), "20 of the fine gene lose 0.4, the coarse one 10"
    assert space.solve(dense - 1000) == (1, 0, 0, 0)
    assert space.solve(dense - 1040) == (1, 0, 0, 4)


def test_an_even_share_is_the_least_that_the_budget_allows() -> None:
    space = random_space(levels=101)
    budget = 0.7 * space.cost(space.dense)
    found = space.evenly(budget)
    kept = [gene.costs[level] / gene.costs[0] for gene, level in zip(space.genes, found, strict=True)]
    assert space.cost(found) <= budget and space.fill(found, budget) == found
    middle = float(np.median(kept))
    assert sum(abs(share - middle) > 0.01 for share in kept) <= 2, "what is filled are a few genes"
    assert space.cost(space.even(1 - middle)) == pytest.approx(budget, rel=0.01)
    with pytest.raises(InfeasibleError, match="smallest choice"):
        space.evenly(space.cost(space.smallest) - 1)


def test_multipliers_move_the_removal_elsewhere() -> None:
    pair = Space(tuple(Gene(name, (10, 5, 0), (0.0, 1.0, 2.5)) for name in "ab"))
    assert pair.solve(15, [1, 3]) == (1, 0)
    assert pair.solve(15, [3, 1]) == (0, 1)
    assert pair.loss((1, 2), [2, 10]) == 2 + 25


def test_what_does_not_fit_is_refused() -> None:
    space = random_space()
    least = space.cost(space.smallest)
    assert space.solve(least) == space.smallest
    with pytest.raises(InfeasibleError, match=f"{least:,}"):
        space.solve(least - 1)
    assert space.solve(space.cost(space.dense)) == space.dense


def test_even_takes_the_same_share_of_each() -> None:
    space = random_space(levels=101)
    for share in (0.0, 0.2, 0.55, 0.9):
        kept = [gene.costs[level] / gene.costs[0] for gene, level in zip(space.genes, space.even(share), strict=True)]
        assert kept == pytest.approx([1 - share] * len(kept), abs=0.007)
    assert space.even(0) == space.dense and space.even(1) == space.smallest
    assert abs(space.removed(space.at(0.3)) - 0.3) < 0.01


def test_a_genome_has_one_name_in_one_space() -> None:
    space = random_space()
    assert space.digest(space.dense) == random_space().digest(space.dense)
    assert len({space.digest(space.dense), space.digest(space.smallest), random_space(seed=1).digest(space.dense)}) == 3


@pytest.mark.parametrize(
    ("costs", "losses", "match"),
    [
        ((3, 3), (0.0, 1.0), "fall strictly"),
        ((3, -1), (0.0, 1.0), "below 0"),
        ((3, 2), (1.0, 0.0), "not fall"),
        ((3, 2), (0.0, float("nan")), "finite"),
        ((3, 2), (0.0,), "2 costs and 1 losses"),
    ],
)
def test_curves_that_are_none(costs: tuple[int, ...], losses: tuple[float, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Gene("x", costs, losses)


def test_names_are_unique() -> None:
    gene = Gene("x", (1, 0), (0.0, 1.0))
    with pytest.raises(ValueError, match="names of their own"):
        Space((gene, gene))


def test_a_large_space_is_solved_in_no_time() -> None:
    import time

    space = random_space(genes=210, levels=64)
    started = time.perf_counter()
    genome = space.at(0.4)
    assert time.perf_counter() - started < 2, "a search solves hundreds of these"
    assert 0.4 <= space.removed(genome) < 0.401
