"""A family that describes something else than the model computes is named, with the block and the part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from sentei.errors import InputError
from sentei.families import FAMILIES, family_of
from sentei.families.selfcheck import check_family
from sentei.families.surgery import prune
from sentei.measure import measure
from tiny import SIZES, make_plan, random_blocks, tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cut", [False, True])
def test_all_families_describe_their_models(tiny, ids, dtype, attention, cut):
    family = family_of(tiny.config)
    model: Any = prune(tiny, make_plan(tiny, random_blocks(family.shape(tiny.config), 7), "bias")) if cut else tiny
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip(f"{type(model).__name__} has soft caps, which sdpa has not")
    model.set_attn_implementation(attention)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_family(family, model.to(dtype), ids)
    model.float()
    assert model.state_dict().keys() == before.keys() and not any(m._forward_hooks for m in model.modules())


def granite(**multipliers: float) -> Any:
    """Llama with multipliers, of which its config speaks and the family of Llama does not."""
    neutral = {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0}
    values = {**SIZES, "hidden_size": 48, "head_dim": 8, **neutral, "attention_multiplier": 8**-0.5, **multipliers}
    torch.manual_seed(0)
    return transformers.GraniteForCausalLM(transformers.GraniteConfig(**values)).eval()


@pytest.fixture
def granite_as_llama(monkeypatch):
    monkeypatch.setitem(FAMILIES._paths, "granite", "sentei.families.llama:FAMILY")


WRONG = {
    "embedding_multiplier": (0.1, "at the class of pruned models, nothing removed"),
    "residual_multiplier": (0.6, "at block 0(, ffn part: what it reads|: the sum of its parts)"),
    "logits_scaling": (1.2, "at the class of pruned models, nothing removed"),
    "attention_multiplier": (1.0, "at the class of pruned models, nothing removed"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WRONG)
def test_multipliers_that_the_family_does_not_know(granite_as_llama, ids, name, dtype):
    value, where = WRONG[name]
    model = granite(**{name: value})
    with torch.no_grad():  # attention that matters
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 20
            layer.self_attn.k_proj.weight *= 20
            layer.self_attn.v_proj.weight *= 20
            layer.self_attn.o_proj.weight *= 20
    with pytest.raises(InputError, match=f"family llama computes something else than the model {where}"):
        check_family(FAMILIES["llama"], model.to(dtype), ids)


def test_measure_stops_before_anything_is_measured(ids):
    model = tiny_model("llama")
    _after(model.model.layers[3], lambda y: y * 1.5)
    with pytest.raises(InputError, match="block 3: the sum of its parts"):
        measure(model, ids, gradient_tokens=0)


def test_neutral_multipliers_are_no_difference(granite_as_llama, ids):
    check_family(FAMILIES["llama"], granite(), ids)


@pytest.mark.parametrize(
    ("break_it", "where"),
    [
        (lambda m: _after(m.model.layers[2].mlp, lambda y: y * 1.1), "block 2, ffn part: its last matrix"),
        (lambda m: _after(m.model.layers[1].self_attn.o_proj, lambda y: y * 2), None),
        (lambda m: _after(m.model.layers[3], lambda y: y + 0.1), "block 3: the sum of its parts"),
        (lambda m: _after(m.model.norm, lambda y: y.tanh()), None),
    ],
)
def test_where_a_model_does_more(ids, break_it, where):
    """Of what a hook does the class of pruned models knows nothing, whichever check sees it first."""
    model = tiny_model("llama")
    break_it(model)
    with pytest.raises(InputError, match=where or "the class of pruned models"):
        check_family(FAMILIES["llama"], model, ids)


def _after(module: torch.nn.Module, change: Any) -> None:
    def hook(_module: Any, _inputs: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    module.register_forward_hook(hook, prepend=True)


def test_values_that_are_not_finite_are_named_by_measure(ids):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(InputError, match="block 1: weights or activations are not finite"):
        measure(model, ids, gradient_tokens=0)
