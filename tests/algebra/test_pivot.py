import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sentei.algebra.lowrank import factors
from sentei.algebra.pivot import pivot
from sentei.errors import SenteiError
from sentei.plan import stored

BOUND = 1.1


def product(out, into, rank, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=g), torch.randn(rank, into, generator=g)


def apply(order, rows, mix, x):
    kept = x @ rows.T
    return torch.cat([kept, kept @ mix.T], -1)[..., order]


@given(out=st.integers(1, 24), into=st.integers(1, 24), rank=st.integers(1, 24), seed=st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_nothing_is_lost_and_the_size_is_as_priced(out, into, rank, seed):
    rank = min(rank, out, into)
    u, v = (m.double() for m in product(out, into, rank, seed))
    order, rows, mix = pivot(u, v)
    assert rows.numel() + mix.numel() == stored(out, into, rank, "pivoted")
    assert sorted(order.tolist()) == list(range(out)) and order.dtype == torch.int64
    x = torch.randn(2, 5, into, dtype=torch.float64)
    torch.testing.assert_close(apply(order, rows, mix, x), x @ (u @ v).T, rtol=1e-7, atol=1e-7)
    assert mix.numel() == 0 or mix.abs().max() <= BOUND


def test_the_kept_rows_are_rows_of_the_matrix():
    u, v = product(12, 9, 4)
    order, rows, _ = pivot(u, v)
    at = torch.stack([(order == i).nonzero()[0, 0] for i in range(4)])
    torch.testing.assert_close(rows, (u @ v)[at])


def test_badly_scaled_factors_are_pivoted_well():
    """Elimination alone would take rows whose mixing coefficients grow; swaps keep them small."""
    n = 40
    growth = torch.eye(n, dtype=torch.float64) - torch.ones(n, n, dtype=torch.float64).tril(-1)
    growth[:, -1] = 1  # the classic matrix on which elimination grows as 2ⁿ
    u = torch.cat([growth, torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None].expand(3, n)])
    v = torch.randn(n, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order, rows, mix = pivot(u, v)
    assert mix.abs().max() <= BOUND
    torch.testing.assert_close(torch.cat([rows, mix @ rows])[order], u @ v, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [16, 48])
def test_bf16_rounds_a_few_times_as_much_as_two_factors(rank):
    """The coefficients are as large as 1, those of orthonormal factors are not: a price, but a bounded one."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 64, generator=g) @ (torch.randn(64, 64, generator=g) * torch.linspace(0, 3, 64).neg().exp())
    found = factors(torch.randn(128, 64, generator=g), x.T @ x / len(x))
    u, v = found.u[:, :rank], found.v[:rank]
    order, rows, mix = pivot(u, v)
    exact = x @ found.product(rank).T

    def error(y):
        return ((y.float() - exact).norm() / exact.norm()).item()

    x, u, v, rows, mix = (m.bfloat16() for m in (x, u, v, rows, mix))
    factored, pivoted = error(x @ v.T @ u.T), error(apply(order, rows, mix, x))
    assert pivoted < 0.015
    assert pivoted < 6 * factored


def test_dtypes_are_the_factors_own():
    u, v = product(12, 9, 4)
    order, rows, mix = pivot(u.bfloat16(), v.bfloat16())
    assert rows.dtype == mix.dtype == torch.bfloat16 and order.dtype == torch.int64


@pytest.mark.parametrize("case", ["repeated", "zero", "wide", "nan"])
def test_a_rank_that_is_not_there_is_an_error(case):
    u, v = (m.double() for m in product(8, 8, 4))
    if case == "repeated":
        u[:, 3] = u[:, 0] - u[:, 1]
    elif case == "zero":
        u[:] = 0
    elif case == "wide":
        u, v = product(8, 8, 9)
    else:
        u[2, 2] = float("nan")
    with pytest.raises(SenteiError, match="rank below"):
        pivot(u, v)
