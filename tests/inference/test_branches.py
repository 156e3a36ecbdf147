"""Batches of trees, against one plain forward pass per request."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.inference.branches import Row, branch_limit, make_batches, make_rows, score_batches
from sentei.inference.tree import Tree
from tiny import VARIANTS, make_plan, random_blocks, tiny_model

Requests = list[tuple[list[int], list[int]]]


def requests(seed: int, shared: int = 0) -> Requests:
    """Continuations of few words, so that many begin alike, and some are there twice."""
    rng = random.Random(seed)
    start = rng.choices(range(3, 128), k=shared)
    found = []
    for _ in range(20):
        context = start + rng.choices(range(3, 128), k=rng.randint(1, 9))
        found += [(context, rng.choices(range(3, 6), k=rng.randint(1, 5))) for _ in range(8)]
    return found


def scored(model: Any, some: Requests, **limits: int) -> list[tuple[list[float], list[int]]]:
    rows, _ = make_rows(some, **{"longest": 256, "branch": branch_limit(model), **limits})
    found: dict[int, tuple[list[float], list[int]]] = {}
    with torch.inference_mode():
        for batch in score_batches(model, list(make_batches(rows))):
            found |= {number: (scores.tolist(), best.tolist()) for number, scores, best in batch}
    return [found[number] for number in range(len(some))]


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_trees_score_as_single_passes_do(variant: str, cut: bool) -> None:
    model = tiny_model(variant)
    if cut:
        model = prune(model, make_plan(model, random_blocks(family_of(model.config).shape(model.config), seed=5)))
    some = requests(0, shared=40) if cut else requests(1)
    for (context, target), (scores, best) in zip(some, scored(model, some), strict=True):
        with torch.inference_mode():
            table = model(torch.tensor([context + target])).logits[0, len(context) - 1 : -1].log_softmax(-1)
        assert scores == pytest.approx(table[range(len(target)), target].tolist(), abs=2e-3)
        assert best == table.argmax(1).tolist()


def test_only_what_is_needed_is_read() -> None:
    model = tiny_model()
    read: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].numel()))
    some: Requests = [([3] * 10, [4, 5, 6]), ([3] * 10, [4, 5, 7]), ([3] * 10, [8]), ([3] * 10, [4, 9])]
    together = scored(model, some)
    assert read == [10 + 2], "the context once, the common beginning once, last tokens never"
    alone = scored(model, some, branch=0)
    assert sum(read[1:]) > 3 * 10
    for (a, x), (b, y) in zip(together, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-4) and x == y


def test_rows_keep_within_the_models_context() -> None:
    rows, truncated = make_rows([([3, 4, 5, 6], [7, 8])], longest=4, branch=99)
    assert truncated == 1 and rows[0].context == (4, 5, 6) and rows[0].length == 4
    with pytest.raises(InputError, match="a continuation has 5 tokens, expected 1 to 4"):
        make_rows([([3], [4] * 5)], longest=4, branch=99)
    with pytest.raises(InputError, match="a continuation has 0 tokens"):
        make_rows([([3], [])], longest=4, branch=99)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12))
def test_a_tree_holds_every_beginning_once(targets: list[list[int]]) -> None:
    tree = Tree.of(targets)

    def spelled(node: int) -> tuple[int, ...]:
        return () if node < 0 else (*spelled(tree.parents[node]), tree.tokens[node])

    nodes = [spelled(node) for node in range(len(tree.tokens))]
    assert set(nodes) == {tuple(t[:k]) for t in targets for k in range(1, len(t))} and len(set(nodes)) == len(nodes)
    for target, path in zip(targets, tree.paths, strict=True):
        assert [spelled(node) for node in path] == [tuple(target[:k]) for k in range(len(target))]
    assert tree.depths == [len(node) - 1 for node in nodes]
    for i, one in enumerate(nodes):
        assert tree.seen[i].tolist() == [one[: len(other)] == other for other in nodes]
    assert tree.branches == (len(nodes) != len({len(node) for node in nodes}))


def test_a_row_with_one_chain_needs_no_mask() -> None:
    assert not Row((1, 2), [(0, [3, 4, 5]), (1, [3]), (2, [3, 4])]).tree.branches
    assert Row((1, 2), [(0, [3, 4]), (1, [5, 6])]).tree.branches
