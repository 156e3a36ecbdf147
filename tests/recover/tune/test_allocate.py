import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sentei.errors import InputError
from sentei.recover.tune.allocate import CRITERIA, Share, allocate, matrix
from sentei.recover.tune.impact import Impact


def impact(gradients, fisher=None, weights=None):
    weights = weights or {name: torch.ones_like(g) for name, g in gradients.items()}
    return Impact(gradients, fisher or {}, weights, 2)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(out, n, rank, size=1.0, seed=0):
    """Singular values `size`, evenly spread singular vectors."""
    U, _ = torch.linalg.qr(draw(out, rank, seed=seed))
    V, _ = torch.linalg.qr(draw(n, rank, seed=seed + 1))
    return size * U @ V.T


def spent(shares, gradients):
    return sum(s.rank * sum(gradients[n].shape) + len(s.indices) for n, s in shares.items())


sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))


@settings(deadline=None, max_examples=60)
@given(st.lists(sizes, min_size=1, max_size=4), st.integers(0, 2), st.floats(0.001, 1.0), st.sampled_from(CRITERIA))
def test_the_budget_is_spent_exactly(shapes, rank, share, criterion):
    gradients = {}
    for i, (out, n) in enumerate(shapes):
        planted = low_rank(out, n, min(rank, out, n), 20.0, seed=i) if rank else 0
        gradients[f"m{i}"] = draw(out, n, seed=i + 50) + planted
    squares = {name: g.square() + 0.1 for name, g in gradients.items()}
    budget = max(1, int(share * sum(g.numel() for g in gradients.values())))
    shares = allocate(impact(gradients, squares), budget, criterion=criterion)
    assert spent(shares, gradients) == budget
    for name, found in shares.items():
        assert found.rank or len(found.indices), "no empty shares"
        assert (found.indices.diff() > 0).all(), "ascending, none twice"
        assert all(0 <= i < gradients[name].numel() for i in found.indices.tolist())
        if found.rank:
            torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(found.rank), rtol=0, atol=1e-4)


def test_a_planted_low_rank_gets_its_rank_and_a_planted_sparse_its_entries():
    spots = torch.randperm(40 * 30, generator=torch.Generator().manual_seed(0))[:25].sort().values
    sparse = torch.zeros(40 * 30).index_fill(0, spots, 1.0).view(40, 30)
    gradients = {"low": low_rank(40, 30, 3, 12.0) + 0.01 * draw(40, 30), "sparse": sparse + 0.01 * draw(40, 30, seed=9)}
    shares = allocate(impact(gradients), 3 * 70 + 25)
    assert shares["low"].rank == 3 and len(shares["low"].indices) == 0
    assert shares["sparse"].rank == 0 and torch.equal(shares["sparse"].indices, spots)
    basis = shares["low"].basis
    recovered = gradients["low"] @ basis.T @ basis
    assert (recovered - gradients["low"]).norm() < 0.05 * gradients["low"].norm(), "A starts where the gradient is"


def test_both_in_one_matrix_are_told_apart():
    """Outliers on a low rank: the entries are found on what the components leave (robust PCA)."""
    spots = torch.tensor([5, 333, 700, 901])
    G = low_rank(40, 30, 2, 15.0) + 0.01 * draw(40, 30)
    G.view(-1)[spots] += 3.0
    shares = allocate(impact({"m": G}), 2 * 70 + 4)
    assert shares["m"].rank == 2 and torch.equal(shares["m"].indices, spots)


def test_no_gradient_no_share():
    gradients = {"dead": torch.zeros(8, 8), "live": draw(8, 8)}
    assert set(allocate(impact(gradients), 60)) == {"live"}
    with pytest.raises(InputError, match=r"only 64 weights have a gradient"):
        allocate(impact(gradients), 65)
    with pytest.raises(InputError, match="at least 1"):
        allocate(impact(gradients), 0)


def test_sparse_entries_are_the_largest_of_all_modules():
    """Without components (max_rank 0) the choice is a global top-k, whatever the sizes."""
    gradients = {"a": draw(50, 40, seed=1), "b": 3 * draw(20, 60, seed=2), "c": 0.1 * draw(64, 64, seed=3)}
    shares = allocate(impact(gradients), 700, max_rank=0)
    flat = torch.cat([g.flatten().abs() for g in gradients.values()])
    threshold = flat.sort(descending=True).values[699]
    for name, g in gradients.items():
        wanted = (g.abs().flatten() >= threshold).nonzero()[:, 0]
        assert torch.equal(shares.get(name, Share(0)).indices, wanted)


def test_components_that_are_worth_less_are_bought_later():
    graded = sum(low_rank(40, 30, 1, size, seed=10 * i) for i, size in enumerate((60.0, 35.0, 20.0, 12.0)))
    gradients = {"m": graded + 0.5 * draw(40, 30)}
    bought = [allocate(impact(gradients), 400, rank_worth=w).get("m").rank for w in (1.0, 0.25, 0.0)]
    assert bought == sorted(bought, reverse=True) and bought[0] > bought[1] > bought[-1] == 0


def test_equal_gains_are_cut_in_order():
    shares = allocate(impact({"a": torch.ones(6, 6), "b": torch.ones(6, 6)}), 40, max_rank=0)
    assert len(shares["a"].indices) == 36 and shares["b"].indices.tolist() == [0, 1, 2, 3]


def test_large_matrices_take_the_randomised_svd_and_the_same_bits_twice():
    G = low_rank(300, 260, 5, 40.0) + 0.01 * draw(300, 260)
    first, second = (allocate(impact({"m": G}), 5 * 560, max_rank=16) for _ in range(2))
    assert first["m"].rank == 5 and torch.equal(first["m"].basis, second["m"].basis)
    kept = G @ first["m"].basis.T
    exact = torch.linalg.svdvals(G)[:5].square().sum()
    assert abs(kept.square().sum() / exact - 1) < 1e-3


def test_what_the_criteria_are():
    G, F, W = draw(6, 5), draw(6, 5, seed=1).square(), draw(6, 5, seed=2)
    given_all = impact({"m": G}, {"m": F}, {"m": W})
    assert torch.equal(matrix(given_all, "m", "gradient"), G)
    assert torch.equal(matrix(given_all, "m", "snip"), W * G)
    torch.testing.assert_close(matrix(given_all, "m", "fisher"), G / (F + F.mean()).sqrt())
    with pytest.raises(InputError, match=r"did you mean 'fisher'"):
        matrix(given_all, "m", "fischer")
    with pytest.raises(InputError, match="fisher=True"):
        matrix(impact({"m": G}), "m", "fisher")


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(10, 900))
def test_no_single_exchange_gains_more(seed, budget):
    """What was bought last gains at least as much as the best entry that was not bought."""
    G = low_rank(30, 26, 2, 10.0, seed=seed) + draw(30, 26, seed=seed + 7)
    share = allocate(impact({"m": G}), min(budget, 700))["m"]
    U, S, Vh = torch.linalg.svd(G)
    left = (G - U[:, : share.rank] * S[: share.rank] @ Vh[: share.rank]).flatten().square()
    unbought = left.clone()
    unbought[share.indices] = 0
    if len(share.indices):
        assert left[share.indices].min() >= unbought.max() * (1 - 1e-4)
    if share.rank:
        assert (S[share.rank - 1] ** 2 / 56) * (1 + 1e-4) >= unbought.max() * 0.99 or len(share.indices) < 56
