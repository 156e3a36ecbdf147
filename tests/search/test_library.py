"""Candidates in place: what a genome scores is what a model with the same parts scores."""

import numpy as np
import pytest
import torch

from sentei.data.task_rows import TaskRow
from sentei.measure import measure
from sentei.metrics.score import prepare
from sentei.plan import Budget
from sentei.prune.cut import cut
from sentei.prune.planning import menus_for, plan_of
from sentei.search.library import Library
from tiny import tiny_model, tiny_tokenizer


def rows(tokenizer, count=12):
    words = sorted(w for w in tokenizer.get_vocab() if w.isalnum())[:40]
    return [
        TaskRow(str(i), f"{words[i]} {words[i + 1]}", (f" {words[i + 2]}", f" {words[i + 3]}"), i % 2, "", (), {}, "")
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 128, (24, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def made(ids):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    profile = measure(model, ids, keep_grams=True)
    menus = menus_for(profile, Budget(sparsity=0.3), levels=12)
    return model, profile, menus, Library(model, profile, menus, prepare(rows(tokenizer), tokenizer, "acc"))


def test_the_dense_genome_is_the_dense_model_and_restore_brings_it_back(made):
    model, _, menus, library = made
    dense = library.prepared.score(model)
    assert np.array_equal(library(menus.space.dense, 0, 12).loss, dense.loss)
    assert not np.array_equal(library(menus.space.smallest, 0, 12).loss, dense.loss)
    library.restore()
    assert np.array_equal(library.prepared.score(model).loss, dense.loss)


def test_one_part_in_place_is_the_cut_model(made, ids):
    """Where nothing before it is cut, an entry in place and the sequential cut with least squares agree."""
    model, profile, menus, library = made
    position = len(menus.parts) - 1  # the last block's FFN: nothing comes after it
    for level in range(1, len(menus.parts[position].entries) - 1):
        genome = (*[0] * position, level)
        decided = plan_of(profile, menus, menus.entries(genome), method="test", allocation="global")
        library.restore()
        small = cut(model, decided.model_copy(update={"compensation": "least-squares"}), ids)
        wanted = library.prepared.score(small).loss
        dense = library.prepared.score(model).loss
        found = library(genome, 0, 12).loss
        # their ridges differ, and there is little data
        assert np.linalg.norm(found - wanted) <= 0.5 * max(np.linalg.norm(dense - wanted), 0.1)


def test_menus_fall_in_cost_and_rise_in_loss_and_hold_every_kind(made):
    _, profile, menus, library = made
    assert {bool(e.at) for m in menus.parts for e in m.entries} == {True, False}
    assert any(e.ranks and e.at for m in menus.parts for e in m.entries)
    for menu in menus.parts:
        costs, losses = [e.cost for e in menu.entries], [e.loss for e in menu.entries]
        assert costs == sorted(set(costs), reverse=True) and losses == sorted(losses)
        for entry in menu.entries:  # the price is that of the module
            module = library.build(menu.block, menu.part, entry)
            size = sum(p.numel() for p in module.parameters())
            norm = profile.shape.hidden if size else 0
            assert size + norm == entry.cost


def test_modules_beyond_the_memory_are_built_again(made):
    model, profile, menus, library = made
    rng = np.random.default_rng(0)
    genomes = [tuple(int(rng.integers(len(m.entries))) for m in menus.parts) for _ in range(4)]
    wanted = [library(genome, 0, 12).loss for genome in genomes]
    library.restore()
    small = Library(model, profile, menus, library.prepared)
    small._most = 1.0
    for genome, loss in zip(genomes, wanted, strict=True):
        assert np.array_equal(small(genome, 0, 12).loss, loss)
        assert len(small._modules) == 1
    small.restore()
