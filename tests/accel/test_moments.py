from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recover.recovering import random_samples
from sentei.accel.adapters import SUITABLE, Adapted
from sentei.accel.family import rebuilt
from sentei.accel.moments import carry
from sentei.accel.settings import Settings
from sentei.data.batches import pad
from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.plan import Plan
from sentei.recover.tune.adapters.base import linears
from sentei.recover.tune.impact import measure_impact
from sentei.recover.tune.loss import SFT
from sentei.recover.tune.train import Trainer
from tiny import VARIANTS, make_plan, random_blocks, tiny_model, whole

# Where experts go, tokens are sent to others: no masked model does the same.
EXPERTS = {name for name in VARIANTS if "moe" in name or "mixtral" in name}
SAMPLES = random_samples([10, 8, 6, 12, 9, 7, 11, 5], seed=5)


def trainer(model: Any, steps: int, rows: tuple[int, ...] = (0, 1)) -> Trainer:
    """All parameters of the blocks, the gradient not clipped: what is masked has a part in its norm."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # a smaller model draws other numbers
            module.p = 0.0
    model.requires_grad_(False)
    family_of(model.config).blocks(model).requires_grad_(True)
    batches = [(1, lambda n=n: pad(SAMPLES, [(row + n) % 8 for row in rows])) for n in range(steps)]
    losses = iter([1.0, 0.9, 0.8])
    options: dict[str, Any] = {"learning_rate": 1e-3, "keep": "last", "evaluations": 1}
    return Trainer(model, lambda batch: SFT(model, batch), batches, losses.__next__, **options)


def started(variant: str, seed: int, steps: int = 3) -> tuple[Any, dict[str, Tensor], Plan]:
    """A model as a first cut leaves it, trained for some steps, its state, and a plan for the next cut."""
    model = tiny_model(variant)
    shape = family_of(model.config).shape(model.config)
    model = prune(model, make_plan(model, whole(shape)))
    made = trainer(model, steps)
    made.run()
    return model, made.state(), make_plan(model, random_blocks(shape, seed))


def masked_step(model: Any, state: dict[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """One step of the model whose removed units are masked: they put out nothing and get no gradient."""
    masks = ones_kept(model, plan)
    params = {name: p for name, p in model.named_parameters() if name in masks}
    with torch.no_grad():
        for name, param in params.items():
            param.mul_(masks[name])
    silence(model, plan)
    made = trainer(model, 1, rows=(4, 5))
    made.load({name: value for name, value in state.items() if not name.startswith("value.")} | values(model))
    for name, param in params.items():
        param.register_hook(lambda grad, mask=masks[name]: grad * mask)
    made.run()
    return made.state()


def silence(model: Any, plan: Plan) -> None:
    """Lets parts that a plan removes add nothing to the stream."""
    family = family_of(model.config)
    for index, block in enumerate(family.blocks(model)):
        for part, size in (("attention", plan.blocks[index].kv_groups), ("ffn", plan.blocks[index].ffn)):
            after = family.layout(part).after
            names = [*family.linears(block, part).values()][-1:] + ([block.get_submodule(after)] if after else [])
            for module in names if not size else ():
                module.register_forward_hook(lambda _m, _i, out: out * 0)


def values(model: Any) -> dict[str, Tensor]:
    return {f"value.{name}": p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def ones_kept(model: Any, plan: Plan) -> dict[str, Tensor]:
    """1 where a number stays, by name of the parameter; found by numbering all numbers of the model."""
    state, numbered, count = {}, {}, 1
    start = f"{family_of(model.config).blocks_at}."
    for name, param in model.named_parameters():
        if name.startswith(start):
            numbered[name] = torch.arange(count, count + param.numel(), dtype=torch.float64).view(param.shape)
            count += param.numel()
            state[f"value.{name}"] = numbered[name].float()
    assert count < 2**24, "each number has a name in fp32"
    left = torch.cat([v.flatten() for v in carry(state, model, prune(model, plan), plan, "keep").values()])
    return {name: torch.isin(number.float(), left).float() for name, number in numbered.items()}


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - EXPERTS))
def test_a_step_after_the_cut_is_the_step_of_the_masked_model(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentei.recover.tune.train.CLIP", 1e9)
    model, state, plan = started(variant, seed=0)
    state = {name: value.clone() for name, value in state.items()}
    small = prune(model, plan)
    carried = carry(state, model, small, plan, "drop")
    made = trainer(small, 1, rows=(4, 5))
    made.load(carried)
    made.run()
    found = made.state()
    masked = masked_step(model, state, plan)
    wanted = carry(masked, model, prune(model, plan), plan, "keep")
    assert found.keys() == wanted.keys() and any(name.startswith("exp_avg_sq.") for name in found)
    for name, value in found.items():
        if name.endswith(
            "k_proj.bias"
        ):  # attention does not depend on it but for RoPE: its gradient is rounding errors
            continue
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    assert any(found[name].shape != state[name].shape for name in found if name.startswith("exp_avg."))


@pytest.mark.parametrize("name", SUITABLE)
@pytest.mark.parametrize("variant", ["llama", "phi3", "gemma2", "gpt_neox"])
def test_a_step_of_an_adapter_after_the_cut_is_that_of_the_masked_one(
    variant: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sentei.recover.tune.train.CLIP", 1e9)
    model = tiny_model(variant)
    shape = family_of(model.config).shape(model.config)
    model, plan = prune(model, make_plan(model, whole(shape))), make_plan(model, random_blocks(shape, 0))
    way = Adapted(Settings(train=name, budget_params=2000), lambda net: impact_of(net))
    state = trained_for(way, model, way.start(model), steps=3)
    before = way.effective(rebuilt(model, make_plan(model, whole(shape)), state, "base"), state)
    after = prune(before, plan)
    cut = way.cut(state, before, after, plan)
    assert same_weights(way.effective(rebuilt(model, plan, cut, "base"), cut), after)
    found = trained_for(way, model, cut, steps=1, plan=plan, rows=(4, 5))
    masked = trained_for(way, model, state, steps=1, rows=(4, 5), masks=stays(way, state, before, after, plan), of=plan)
    base = way.effective(rebuilt(model, make_plan(model, whole(shape)), masked, "base"), masked)
    wanted = way.cut(masked, base, prune(base, plan), plan)
    assert found.keys() == wanted.keys() and any(key.startswith("exp_avg_sq.") for key in found)
    assert any(found[key].shape != state[key].shape for key in found if key.startswith("exp_avg."))
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def impact_of(model: Any) -> Any:
    return measure_impact(model, [pad(SAMPLES, [0, 1, 2])], SFT, list(linears(model)))


def trained_for(
    way: Adapted,
    dense: Any,
    state: dict[str, Tensor],
    steps: int,
    plan: Plan | None = None,
    rows: tuple[int, ...] = (0, 1),
    masks: dict[str, Tensor] | None = None,
    of: Plan | None = None,
) -> dict[str, Tensor]:
    """A state after some steps; with masks the removed numbers are 0 and get no gradient, and removed parts say 0."""
    shape = family_of(dense.config).shape(dense.config)
    state = {key: value * masks[key] if masks and key in masks else value.clone() for key, value in state.items()}
    model = rebuilt(dense, plan or make_plan(dense, whole(shape)), state, "base")
    if of is not None:
        silence(model, of)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    adapted = way.wrap(model, state)
    batches = [(1, lambda n=n: pad(SAMPLES, [(row + n) % 8 for row in rows])) for n in range(steps)]
    options: dict[str, Any] = {"learning_rate": 1e-3, "keep": "last", "evaluations": 1}
    made = Trainer(adapted, lambda batch: SFT(model, batch), batches, iter([1.0, 0.9]).__next__, **options)
    made.load(state)
    for key, param in adapted.named_parameters():
        if masks and f"value.{key}" in masks:
            param.register_hook(lambda grad, mask=masks[f"value.{key}"]: grad * mask)
    made.run()
    return {key: value.clone() for key, value in way.state(adapted, made.state()).items()}


def stays(way: Adapted, state: dict[str, Tensor], before: Any, after: Any, plan: Plan) -> dict[str, Tensor]:
    """1 where a number of an adapter or of the weights below it stays, found by numbering them."""
    numbered, count = dict(state), 1
    for key, value in state.items():
        if key.startswith(("value.", "base.")):
            numbered[key] = torch.arange(count, count + value.numel(), dtype=torch.float32).view(value.shape)
            count += value.numel()
    assert count < 2**24, "each number has a name in fp32"
    left = torch.cat(
        [v.flatten() for k, v in way.cut(numbered, before, after, plan).items() if k.startswith(("v", "base"))]
    )
    return {k: torch.isin(v, left).float() for k, v in numbered.items() if k.startswith(("value.", "base."))}


def same_weights(a: Any, b: Any) -> bool:
    one, other = (dict(model.named_parameters()) for model in (a, b))
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], atol=1e-5) for k in one)
