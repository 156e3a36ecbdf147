from types import SimpleNamespace

import pytest
import torch

from sentei.budget import Budget
from sentei.errors import InputError
from sentei.families import family_of
from sentei.measure import Profile, measure
from sentei.measure.stream import exact_products, gram
from sentei.prune.planning import plan
from tiny import tiny_model


def inputs_of(model, ids, name):
    """All inputs of the linear called `name`, one `[tokens, n]` per block, by plain hooks on a plain forward pass."""
    found = []
    handles = [
        module.register_forward_pre_hook(lambda _m, args: found.append(args[0].flatten(0, 1)))
        for key, module in model.named_modules()
        if key.endswith(name)
    ]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return found


def test_grams_and_means_are_those_of_a_plain_forward_pass(plain, ids):
    profile = measure(plain, ids, gradient_tokens=0, keep_grams=True)
    assert profile.shape == family_of(plain.config).shape(plain.config)
    family = family_of(plain.config)
    for name, part in (("o_proj", "attention"), ("down_proj", "ffn")):
        at = f"{family.layout(part).path}.{family.layout(part).matrices[name]}"
        for block, x in zip(profile.blocks, inputs_of(plain, ids, at), strict=True):
            stats = getattr(block, part)
            torch.testing.assert_close(stats.gram, x.T @ x / len(x), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(stats.mean, x.mean(0), rtol=1e-4, atol=1e-6)
            assert stats.taylor is None and stats.output_grad is None


def test_gradients_are_those_of_a_plain_backward_pass(plain, ids):
    plain.requires_grad_(True)
    profile, family = measure(plain, ids, gradient_tokens=ids.numel(), keep_grams=True), family_of(plain.config)
    assert all(p.requires_grad for p in plain.parameters()), "measure must leave the model as it was"
    at = f"{family.ffn_part.path}.{family.ffn_part.matrices['down_proj']}"
    grads = []
    handles = [
        m.register_full_backward_hook(lambda _m, _i, out: grads.append(out[0].flatten(0, 1)))
        for key, m in plain.named_modules()
        if key.endswith(at)
    ]
    plain.zero_grad()
    logits = plain(ids).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum").backward()
    for handle in handles:
        handle.remove()
    for block, g in zip(reversed(profile.blocks), grads, strict=True):
        torch.testing.assert_close(block.ffn.output_grad, g.T @ g / ids.numel(), rtol=1e-3, atol=1e-7)
    for stats, block in zip(profile.blocks, family.blocks(plain), strict=True):
        *inner, down = family.linears(block, "ffn").values()
        wanted = sum((w.weight * w.weight.grad).abs().sum(1) for w in inner)
        wanted = wanted + (down.weight * down.weight.grad).abs().sum(0)
        torch.testing.assert_close(stats.ffn.taylor, wanted.detach() / ids.numel(), rtol=1e-3, atol=1e-6)
        # a KV group's score is the sum over its own query heads, keys and values: nothing lost, nothing counted twice
        total = sum((w.weight * w.weight.grad).abs().sum() for w in family.linears(block, "attention").values())
        torch.testing.assert_close(stats.attention.taylor.sum(), total.detach() / ids.numel(), rtol=1e-3, atol=1e-6)


def test_a_group_owns_its_own_query_heads(tiny_models, ids):
    """Scaling group 1's value rows must raise the norm of group 1's inputs of o_proj and of no other's."""
    model = tiny_models["llama"]
    before = measure(model, ids, gradient_tokens=0).blocks[1].attention.norm
    attention = family_of(model.config).blocks(model)[1].self_attn
    with torch.no_grad():
        attention.v_proj.weight[attention.head_dim : 2 * attention.head_dim] *= 3
    after = measure(model, ids, gradient_tokens=0).blocks[1].attention.norm
    changed = ((after - before).abs() > 1e-6).view(-1, attention.num_key_value_groups * attention.head_dim).any(1)
    assert changed.tolist() == [False, True, False]


def test_profile_survives_saving(tiny_models, ids, tmp_path):
    profile = measure(tiny_models["qwen3"], ids, gradient_tokens=12, keep_grams=True)
    profile.save(tmp_path / "p")
    again = Profile.load(tmp_path / "p")
    assert again.digest() == profile.digest() and again.shape == profile.shape
    for one, two in zip(profile.blocks, again.blocks, strict=True):
        assert one.angle == two.angle
        for part in ("attention", "ffn"):
            a, b = getattr(one, part), getattr(two, part)
            for key in ("gram", "mean", "norm", "input_gram", "output_grad", "taylor", "ranks", "alone", "grad_energy"):
                torch.testing.assert_close(getattr(a, key), getattr(b, key))
        assert one.curves == two.curves and {"obs", "obs-fisher", "newton"} == set(one.curves)


def test_bf16_products_are_exact():
    x = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = (x.double().T @ x.double()).float()
    torch.testing.assert_close(gram(x), exact, rtol=1e-4, atol=1e-3)
    assert (x.T @ x - exact).abs().max() > 10 * (gram(x) - exact).abs().max(), "a bf16 sum would be as good"


def test_the_setting_of_products_is_put_back(monkeypatch):
    matmul = SimpleNamespace(fp32_precision="ieee")
    monkeypatch.setattr(torch.backends.mkldnn, "matmul", matmul, raising=False)
    with exact_products():
        assert matmul.fp32_precision == "bf16"
    assert matmul.fp32_precision == "ieee"
    monkeypatch.delattr(torch.backends.mkldnn, "matmul")  # as before torch 2.9
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(gram(x), x.float().T @ x.float())


def test_only_the_curves_of_named_scores_are_made() -> None:
    ids = torch.randint(3, 90, (4, 16))
    profile = measure(tiny_model(), ids, gradient_tokens=0, scores=["flap"])
    assert profile.contents.scores == ()
    assert plan(profile, Budget(sparsity=0.2), "flap").blocks
    with pytest.raises(InputError, match="without --scores"):
        plan(profile, Budget(sparsity=0.2), "structural", score="obs", weigh="energy")
    with pytest.raises(InputError, match="flap"):
        measure(tiny_model(), ids, scores=["flop"])
