import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sentei.recover.tune import effective
from sentei.recover.tune.effective import effective_linear, effective_weight, thin_is_cheaper


def inputs(out=5, n=4, rank=2, k=3, dtype=torch.float64, weight_dtype=None, tokens=(2, 3), seed=0):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    kept = weight_dtype or dtype
    x, weight, bias = draw(*tokens, n).to(kept), draw(out, n).to(kept), draw(out).to(kept)
    A, B, values = draw(rank, n).to(dtype), draw(out, rank).to(dtype), draw(k).to(dtype)
    indices = torch.randperm(out * n, generator=g)[:k].sort().values
    for t in (x, A, B, values):
        t.requires_grad_()
    return x, weight, bias, A, B, 1.5, values, indices


@pytest.mark.parametrize("thin", [True, False])
@pytest.mark.parametrize("rank,k", [(2, 3), (2, 0), (0, 3), (0, 0)])
def test_gradients_are_those_of_the_function(monkeypatch, rank, k, thin):
    monkeypatch.setattr(effective, "thin_is_cheaper", lambda *_: thin)
    assert torch.autograd.gradcheck(effective_linear, inputs(rank=rank, k=k))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 3), st.integers(0, 4), st.integers(1, 9), st.booleans())
def test_equals_the_sum_of_its_parts(out, n, rank, k, tokens, biased):
    x, weight, bias, A, B, scale, values, indices = inputs(out, n, rank, min(k, out * n), tokens=(tokens,))
    bias = bias if biased else None
    y = effective_linear(x, weight, bias, A, B, scale, values, indices)
    sparse = torch.zeros(out * n, dtype=torch.float64).index_add(0, indices, values).view(out, n)
    wanted = F.linear(x, weight, bias) + scale * (x @ A.T) @ B.T + x @ sparse.T
    torch.testing.assert_close(y, wanted)
    names = [t for t in (x, A, B, values) if t.numel()]
    got = torch.autograd.grad(y.square().sum(), names)
    torch.testing.assert_close(got, torch.autograd.grad(wanted.square().sum(), names))


def test_nothing_dense_is_held_from_forward_to_backward():
    args = inputs(out=64, n=48, rank=2, k=30, dtype=torch.float32, tokens=(8,))
    x, weight, _, A, B, _, values, indices = args
    own = {t.data_ptr() for t in (weight, A, B, values, indices)}
    held = []

    def pack(t):
        if t.data_ptr() not in own:
            held.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        effective_linear(*args)
    assert held == [x.numel()], "only the input is kept"


def test_masters_stay_fp32_and_are_rounded_once():
    args = inputs(out=33, n=17, rank=3, k=20, dtype=torch.float32, weight_dtype=torch.bfloat16)
    x, weight, _, A, B, scale, values, indices = args
    y = effective_linear(*args)
    grads = torch.autograd.grad(y.float().square().sum(), (x, A, B, values))
    assert [g.dtype for g in grads] == [torch.bfloat16] + [torch.float32] * 3 and y.dtype == torch.bfloat16
    wide = weight.float() + scale * B @ A
    wide.view(-1)[indices] += values
    # fp32 sums in another order may fall on the other side of a rounding boundary: one unit in the last place
    torch.testing.assert_close(effective_weight(*args[1:2], *args[3:]), wide.bfloat16(), rtol=2**-7, atol=0)


@pytest.mark.parametrize("k", [0, 40])
def test_bf16_gradients_are_near_those_of_fp32(k):
    exact = inputs(out=48, n=40, rank=4, k=k, dtype=torch.float32, tokens=(64,))
    rounded = [t.detach().bfloat16() if i < 3 else t for i, t in enumerate(exact)]
    rounded[0].requires_grad_()
    grads = []
    for args in (exact, rounded):
        y = effective_linear(*args)
        (g,) = torch.autograd.grad(y.float().square().sum(), args[4])
        grads.append(g)
    assert (grads[0] - grads[1]).norm() < 0.02 * grads[0].norm()  # bf16 keeps 8 bits: 0.4 % a product


def test_the_cheaper_route_is_taken():
    assert thin_is_cheaper(2048, 1536, 576, 8)
    assert not thin_is_cheaper(2048, 1536, 576, 300)
    assert not thin_is_cheaper(512, 64, 64, 48)
