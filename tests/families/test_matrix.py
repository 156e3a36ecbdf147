"""Every family through every kind of cut, one tune, and each route out: all mechanics hold for all of them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from sentei.errors import InputError
from sentei.families import FAMILIES, family_of
from sentei.families.surgery import prune
from sentei.measure import measure
from sentei.measure.profile import Profile
from sentei.models.load import Loaded, digest, load
from sentei.models.save import save
from sentei.plan import Budget, Plan
from sentei.prune.cut import cut
from sentei.prune.planning import plan
from sentei.recover.tune.tune import tune
from sentei.ship import ROUTES
from sentei.ship.base import Options
from tiny import MIXTURES, VARIANTS, tiny_model, tiny_tokenizer

METHODS = ("auto", "structural", "uniform", "flap", "adapt", "shortgpt")
IDS = torch.randint(3, 128, (16, 24), generator=torch.Generator().manual_seed(3))


@functools.cache
def measured(variant: str) -> Profile:
    model = tiny_model(variant)
    experts = any(block.experts for block in family_of(model.config).shape(model.config).blocks)
    return measure(model, IDS, gradient_tokens=96, keep_grams=not experts)


def planned(variant: str, method: str, sparsity: float = 0.3) -> Plan:
    if method == "uniform":
        return plan(measured(variant), Budget(sparsity=sparsity, target_engine="uniform"), "structural")
    return plan(measured(variant), Budget(sparsity=sparsity), method)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS[:2]).logits
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_cut_save_load_and_generate(variant: str, method: str, tmp_path: Path) -> None:
    model = tiny_model(variant)
    if (variant, method) == ("qwen3_moe-mixed", "uniform"):
        with pytest.raises(InputError, match="'uniform' wants all blocks alike, and block 1 of this model is not like"):
            planned(variant, method)
        return
    made = planned(variant, method)
    small = cut(model, made, IDS)
    params = sum(p.numel() for p in small.parameters())
    assert params == made.shape().params()
    assert made.shape().block_params() <= made.budget.target(made.dense), "never over budget"
    assert torch.isfinite(logits(small)).all()
    save(small, tmp_path / "m", plan=made)
    again = load(tmp_path / "m", dtype="float32", device="cpu").model
    assert torch.equal(logits(again), logits(small))
    options = {"attention_mask": torch.ones_like(IDS[:2]), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(again.generate(IDS[:2], **options), again.generate(IDS[:2], use_cache=False, **options))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_what_is_fitted_is_nearer_to_the_dense_model(variant: str) -> None:
    """The compensation knows norms behind parts, multipliers and parallel parts: a fit beats a mere cut."""
    model, made = tiny_model(variant), planned(variant, "structural", 0.15)
    with torch.no_grad():
        dense = model.base_model(IDS).last_hidden_state
        errors = [
            float((small.base_model(IDS).last_hidden_state - dense).square().mean())
            for small in (cut(model, made, IDS), prune(model, made.model_copy(update={"compensation": "none"})))
        ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_tune(variant: str, tmp_path: Path) -> None:
    model, tokenizer = cut(tiny_model(variant), planned(variant, "structural"), IDS), tiny_tokenizer()
    rows = [{"prompt": f"w{3 + i} w{7 + i}", "completion": f"w{5 + i} w{9 + i} w{11 + i}"} for i in range(24)]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    loaded = Loaded(model, tokenizer, "small", digest(model, tokenizer))
    tuned = tune(loaded, rows, adapter="lora+sparse", tokens=2000, batch_tokens=64, learning_rate=3e-3, patience=None)
    curve = tuned.record["curve"]
    assert curve[-1]["train"] < curve[1]["train"], "it learns the rows that it sees"
    tuned.save(tmp_path / "tuned")
    assert torch.isfinite(logits(load(tmp_path / "tuned", dtype="float32", device="cpu").model)).all()


@pytest.mark.parametrize("route", ["hf", "uniform", "dense-fold", "gguf", "nemotron-nas"])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_routes_write_or_say_why_not(variant: str, route: str, tmp_path: Path) -> None:
    """What is written gives the same logits where transformers reads it; what is refused is refused with a reason."""
    model = prune(tiny_model(variant), planned(variant, "shortgpt", 0.2).model_copy(update={"compensation": "none"}))
    model.config.sentei_dtype = "float32"
    loaded = Loaded(model, None, "small", digest(model))
    chosen = ROUTES[route]
    if reason := chosen.refuse(loaded):
        assert len(reason) > 20 and "\n" not in reason
        assert route != "hf", "anything can be written for transformers"
        return
    if route == "gguf":
        return  # read in its engine, by the tests of the route
    chosen.write(loaded, tmp_path / "out", Options(dtype="F32"))
    if route != "nemotron-nas":
        torch.testing.assert_close(
            logits(load(tmp_path / "out", dtype="float32", device="cpu").model), logits(model), rtol=1e-4, atol=1e-4
        )


def test_every_family_says_what_it_is() -> None:
    for name, family in FAMILIES.items():
        assert family.name == name and family.uniform_as
        assert family_of(f"sentei_{name}") is family


@pytest.mark.parametrize("variant", MIXTURES)
def test_what_a_cut_mixture_reaches_is_said(variant: str) -> None:
    """An engine that is named as reached can hold it, and a refusal names no route that refuses too."""
    model = prune(tiny_model(variant), planned(variant, "adapt"))
    loaded = Loaded(model, None, "small", digest(model))
    reasons = {name: route.refuse(loaded) for name, route in ROUTES.items()}
    assert {name for name, reason in reasons.items() if reason is None} == {"hf"}
    for reason in reasons.values():
        assert reason is None or not any(f"--to {name}" in reason for name in ("gguf", "onnx", "dense-fold"))
    assert "experts of one width" in ROUTES["hf"].reach(loaded)["vllm"]
