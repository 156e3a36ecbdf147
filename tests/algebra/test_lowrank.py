import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sentei.algebra.lowrank import break_even, expected_loss, factors, relative_error, stored, tail
from sentei.errors import SenteiError

TOKENS = 300


def problem(out=14, into=10, seed=0, tokens=TOKENS, dtype=torch.float64):
    """Weight, inputs that correlate, and their Gram matrix."""
    g = torch.Generator().manual_seed(seed)
    decay = torch.linspace(0, 4, into, dtype=dtype).neg().exp()
    x = torch.randn(tokens, into, generator=g, dtype=dtype) * decay @ torch.randn(into, into, generator=g, dtype=dtype)
    return torch.randn(out, into, generator=g, dtype=dtype), x, x.T @ x / tokens


def metric_of(out, seed=0):
    """A full positive definite output metric."""
    generator = torch.Generator().manual_seed(seed + 100)
    g = torch.randn(3 * out, out, generator=generator, dtype=torch.float64)
    g = g * torch.rand(out, generator=generator, dtype=torch.float64)
    return g.T @ g / len(g)


SIZES = [(14, 10), (10, 14), (9, 9), (3, 20), (20, 3)]


@pytest.mark.parametrize(("out", "into"), SIZES)
def test_error_at_every_rank_is_the_tail_of_the_values(out, into):
    weight, x, gram = problem(out, into)
    found = factors(weight, gram)
    left = tail(found.values)
    assert found.u.shape == (out, min(out, into)) and found.v.shape == (min(out, into), into)
    for rank in range(min(out, into) + 1):
        error = ((weight - found.product(rank)) @ x.T).square().sum().item() / TOKENS
        assert error == pytest.approx(left[rank].item(), abs=1e-10 * left[0].item())
    torch.testing.assert_close(found.product(min(out, into)), weight)
    torch.testing.assert_close(found.u.T @ found.u, torch.eye(min(out, into), dtype=torch.float64))
    assert (found.values.diff() <= 0).all()


@given(seed=st.integers(0, 10**6), rank=st.integers(1, 6), size=st.sampled_from(SIZES))
@settings(max_examples=60, deadline=None)
def test_no_other_matrix_of_the_rank_has_a_smaller_error(seed, rank, size):
    """Against random directions around the optimum and around zero, in the plain and in an output metric."""
    weight, _, gram = problem(*size, seed=seed)
    g = torch.Generator().manual_seed(seed)
    rank = min(rank, *size)
    for metric in (None, metric_of(size[0], seed)):
        best = factors(weight, gram, metric=metric, damping=0.0)
        cost = torch.eye(size[0], dtype=torch.float64) if metric is None else metric

        def error(u, v, cost=cost):
            e = weight - u @ v
            return torch.trace(cost @ e @ gram @ e.T).item()

        u, v = best.u[:, :rank], best.v[:rank]
        least = error(u, v)
        assert least == pytest.approx(tail(best.values)[rank].item(), abs=1e-9 * best.values.sum().item())
        for scale in (1e-3, 1e-1, 1.0):
            du, dv = (scale * torch.randn(m.shape, generator=g, dtype=m.dtype) for m in (u, v))
            assert error(u + du, v + dv) >= least * (1 - 1e-9) - 1e-12
            assert error(du, dv) >= least * (1 - 1e-9) - 1e-12


def test_the_metric_decides_what_is_kept():
    weight, x, gram = problem()
    diagonal = torch.rand(14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one = factors(weight, gram, metric=diagonal)
    other = factors(weight, gram, metric=diagonal.diag())
    torch.testing.assert_close(one.values, other.values)
    torch.testing.assert_close(one.product(4), other.product(4))
    plain = factors(weight, gram)

    def cost(m):
        return (((weight - m) @ x.T).square().sum(1) * diagonal).sum().item()

    assert cost(one.product(4)) < 0.98 * cost(plain.product(4))  # 0.93 here
    torch.testing.assert_close(factors(weight, gram, metric=torch.ones(14), damping=0.0).product(4), plain.product(4))


def test_a_metric_that_knows_one_output_keeps_that_output():
    weight, _, gram = problem()
    metric = torch.zeros(14, 14)
    metric[2, 2] = 1.0
    row = factors(weight, gram, metric=metric, damping=1e-9).product(1)[2]
    torch.testing.assert_close(row, weight[2], atol=1e-5, rtol=1e-5)


def test_neither_the_unit_of_the_metric_nor_that_of_the_inputs_matters():
    weight, _, gram = problem()
    metric = metric_of(14)
    for unit in (1e-8, 1e8):
        for known in (metric, metric.diagonal()):
            one, other = factors(weight, gram, metric=known), factors(weight, gram * unit, metric=known * unit)
            torch.testing.assert_close(one.product(4), other.product(4))
            torch.testing.assert_close(one.values * unit**2, other.values)


def test_zero_metric_is_an_error():
    weight, _, gram = problem()
    with pytest.raises(SenteiError, match="no gradient reached it"):
        factors(weight, gram, metric=torch.zeros(14))


def test_anchored_factors_bring_the_compressed_inputs_to_the_dense_outputs():
    weight, x, gram = problem()
    g = torch.Generator().manual_seed(5)
    seen = x @ (torch.eye(10, dtype=torch.float64) + 0.3 * torch.randn(10, 10, generator=g, dtype=torch.float64))
    seen = seen + 0.05 * x.std() * torch.randn(x.shape, generator=g, dtype=torch.float64)
    target = x @ weight.T
    seen_gram, cross = seen.T @ seen / TOKENS, target.T @ seen / TOKENS

    def error(m):
        return (target - seen @ m.T).square().sum().item() / TOKENS

    anchored = factors(weight, seen_gram, target_cross=cross, ridge=1e-12)
    full = error(anchored.product(10))
    for rank in range(11):
        left = tail(anchored.values)[rank].item()
        assert error(anchored.product(rank)) - full == pytest.approx(left, rel=1e-6, abs=1e-6 * full)
    for rank in (3, 6, 9):
        blind = min(error(factors(weight, c).product(rank)) for c in (gram, seen_gram))
        assert error(anchored.product(rank)) < 0.9 * blind


def test_anchored_factors_of_unchanged_inputs_are_the_plain_ones_whatever_the_ridge():
    weight, _, gram = problem()
    anchored = factors(weight, gram, target_cross=weight @ gram, ridge=0.1)
    torch.testing.assert_close(anchored.product(10), weight)
    nearly = factors(weight, gram, target_cross=weight @ gram, ridge=1e-9)
    torch.testing.assert_close(nearly.product(4), factors(weight, gram).product(4), atol=1e-6, rtol=1e-6)


def test_anchored_fit_with_a_dead_input_and_fewer_tokens_than_inputs():
    weight, x, _ = problem(tokens=6)
    x[:, 3] = 0
    gram = x.T @ x / 6
    assert (tail(factors(weight, gram).values) >= 0).all()  # rounding makes the last eigenvalues negative
    found = factors(weight, gram, target_cross=weight @ gram)
    torch.testing.assert_close(found.product(10), weight)
    with pytest.raises(SenteiError, match="not positive definite"):
        factors(weight, gram - 1e-3 * torch.eye(10), target_cross=weight @ gram, ridge=0.0)


@given(seed=st.integers(0, 10**6), size=st.sampled_from(SIZES), full=st.booleans())
@settings(max_examples=40, deadline=None)
def test_expected_loss_is_half_the_fisher_cost_of_the_error(seed, size, full):
    weight, _, gram = problem(*size, seed=seed)
    fisher = metric_of(size[0], seed)
    gradient = fisher if full else fisher.diagonal()
    cost = fisher if full else fisher.diagonal().diag()
    for metric in (None, fisher.diagonal()):
        found = factors(weight, gram, metric=metric)
        losses = expected_loss(found, gradient)
        assert (losses.diff() <= 0).all() and losses[-1] == 0
        for rank in range(len(losses)):
            e = weight - found.product(rank)
            wanted = 0.5 * torch.trace(cost @ e @ gram @ e.T).item()
            assert losses[rank].item() == pytest.approx(wanted, rel=1e-6, abs=1e-9 * losses[0].item())


def test_expected_loss_predicts_the_loss_of_a_logistic_regression():
    """Second order in truth: softmax over the outputs, labels drawn from the model, a small error."""
    weight, x, gram = problem(out=6, into=8, tokens=40_000)
    weight = weight / (x @ weight.T).std()
    logits = x @ weight.T
    labels = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    gradient = logits.softmax(-1) - torch.nn.functional.one_hot(labels, 6)
    found = factors(weight, gram)
    losses = expected_loss(found, gradient.T @ gradient / len(x))
    dense = logits.log_softmax(-1)
    for rank in (4, 5):
        kept = (x @ found.product(rank).T).log_softmax(-1)
        increase = (dense.exp() * (dense - kept)).sum(-1).mean().item()
        assert increase == pytest.approx(losses[rank].item(), rel=0.5)


def test_truncated_factors_keep_the_tail_but_cannot_be_judged():
    weight, _, gram = problem()
    found = factors(weight, gram)
    short = found.truncated(4)
    assert (short.rank, found.rank) == (4, 10)
    torch.testing.assert_close(short.product(3), found.product(3))
    torch.testing.assert_close(tail(short.values), tail(found.values))
    assert short.u.untyped_storage().nbytes() == short.u.nbytes
    with pytest.raises(ValueError, match="all 10 components, got 4"):
        expected_loss(short, torch.ones(14))


def test_bf16_weights_give_fp32_factors_and_inputs_are_left_alone():
    weight, _, gram = problem(dtype=torch.float32)
    weight = weight.bfloat16()
    before = weight.clone(), gram.clone()
    found = factors(weight, gram, metric=torch.ones(14), target_cross=weight.float() @ gram)
    assert found.u.dtype == found.v.dtype == torch.float32 and found.values.dtype == torch.float64
    torch.testing.assert_close((weight, gram), before, rtol=0, atol=0)
    assert relative_error(weight, found.product(10), gram) < 1e-4


def test_small_components_survive_a_few_huge_inputs():
    """Activations of real models span many orders; a squared fp32 matrix loses what is below 3e-4 of the largest."""
    weight, x, _ = problem(out=30, into=20, tokens=2000)
    x[:, 0] *= 1e4
    found = factors(weight.float(), (x.T @ x / len(x)).float())
    best = torch.linalg.svdvals(weight @ x.T).square().flip(0).cumsum(0).flip(0) / len(x)
    for rank in (1, 5, 10):
        error = ((weight - found.product(rank).double()) @ x.T).square().sum().item() / len(x)
        assert error == pytest.approx(best[rank].item(), rel=1e-3)


def test_inputs_that_are_all_zero_cost_nothing():
    weight, _, _ = problem()
    found = factors(weight, torch.zeros(10, 10))
    assert tail(found.values).abs().max() == 0
    assert relative_error(weight, found.product(2), torch.zeros(10, 10)) == 0.0


@given(out=st.integers(1, 60), into=st.integers(1, 60), storage=st.sampled_from(["factors", "pivoted"]))
def test_break_even_is_the_largest_rank_that_saves(out, into, storage):
    best = break_even(out, into, storage)
    saving = [r for r in range(1, min(out, into) + 1) if stored(out, into, r, storage) < stored(out, into, None)]
    assert best == max(saving, default=0)


def test_relative_error_is_that_of_the_outputs():
    weight, x, gram = problem()
    other = weight + 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = ((weight - other) @ x.T).norm() / (weight @ x.T).norm()
    assert relative_error(weight, other, gram) == pytest.approx(wanted.item())
    assert relative_error(weight, weight, gram) == 0.0
    assert relative_error(weight, torch.zeros_like(weight), gram) == pytest.approx(1.0)
