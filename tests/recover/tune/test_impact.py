import pytest
import torch
from torch import nn

from recover.tune.adapting import IDS, impact_of, loss, pruned
from sentei.errors import InputError
from sentei.recover.tune.adapters.base import linears
from sentei.recover.tune.impact import measure_impact
from tiny import VARIANTS


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_equals_autograd_of_the_weights(variant):
    model = pruned(variant)
    impact = impact_of(model)
    modules = linears(model)
    sums = {name: torch.zeros_like(m.weight) for name, m in modules.items()}
    squares = {name: torch.zeros_like(m.weight) for name, m in modules.items()}
    for batch in (IDS[:2], IDS[2:]):
        grads = torch.autograd.grad(loss(model, batch), [m.weight for m in modules.values()])
        for name, grad in zip(modules, grads, strict=True):
            sums[name] += grad / 2
            squares[name] += grad.square() / 2
    assert impact.batches == 2
    torch.testing.assert_close(impact.gradient, sums, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(impact.fisher, squares, rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_was():
    model = pruned()
    model.train()
    model.model.layers[1].eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)

    def state():
        flags = [p.requires_grad for p in model.parameters()]
        modes = [m.training for m in model.modules()]
        hooks = [len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        return flags, modes, hooks, [p.grad for p in model.parameters()], [p.clone() for p in model.parameters()]

    def same(a, b):
        return a[:4] == b[:4] and all(torch.equal(x, y) for x, y in zip(a[4], b[4], strict=True))

    before = state()
    impact_of(model)
    assert same(state(), before)

    def broken(_model, _batch):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        measure_impact(model, [IDS], broken, list(linears(model)))
    assert same(state(), before)


def test_the_same_bits_twice_and_fp32_for_bf16():
    first, second = (impact_of(pruned(dtype=torch.bfloat16)) for _ in range(2))
    for name, gradient in first.gradient.items():
        assert gradient.dtype == torch.float32 and torch.equal(gradient, second.gradient[name])
    assert impact_of(pruned(), fisher=False).fisher == {}


def test_a_module_that_is_not_reached_has_no_gradient():
    model = pruned()
    model.extra = nn.Linear(3, 3)
    assert not measure_impact(model, [IDS], loss, ["extra"]).gradient["extra"].any()


def test_bad_losses_and_no_batches_are_named():
    model = pruned()
    with pytest.raises(InputError, match="no batches"):
        measure_impact(model, [], loss, list(linears(model)))

    def overflowing(model, batch):
        value = loss(model, batch) * 1.0
        value.register_hook(lambda grad: grad * float("inf"))
        return value

    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj: the gradient is not finite"):
        measure_impact(model, [IDS], overflowing, list(linears(model)))
    with pytest.raises(InputError, match="the loss of batch 1 is nan"):
        measure_impact(model, [1.0, float("nan")], lambda m, scale: loss(m, IDS) * scale, list(linears(model)))
