from __future__ import annotations

from typing import Any

import pytest
import torch

from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.recover import attention
from sentei.recover.attention import short_attention
from tiny import make_plan, random_blocks


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens, each time the short way is taken."""
    lengths: list[int] = []
    bias = attention._bias

    def seen(query: Any) -> Any:
        lengths.append(query.shape[-2])
        return bias(query)

    monkeypatch.setattr(attention, "_bias", seen)
    return lengths


def outcome(model: Any, ids: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(ids, **inputs).logits
    logits.logsumexp(-1).square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(model: Any, ids: torch.Tensor, **inputs: Any) -> None:
    """In float64 the two ways differ by rounding only."""
    model.double()
    logits, grads = outcome(model, ids, **inputs)
    with short_attention(model):
        ours, our_grads = outcome(model, ids, **inputs)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-5)
    assert our_grads.keys() == grads.keys()
    scale = max(float(grad.abs().max()) for grad in grads.values())
    for name, grad in grads.items():
        assert float((our_grads[name] - grad).abs().max()) < 1e-5 * scale, name
    assert model.config._attn_implementation == "sdpa"


def test_every_family_attends_and_learns_as_with_sdpa(tiny: Any, ids: torch.Tensor, taken: list[int]) -> None:
    if not tiny._supports_sdpa:
        pytest.skip(f"{type(tiny).__name__} has soft caps, which sdpa has not")
    same(tiny, ids)
    windows = getattr(tiny.config, "sliding_window", None)
    assert (len(taken) > 0) or windows  # rows longer than the window have a mask, and go to the fused kernel
    same(tiny, ids[:, :4])
    assert 4 in taken


def test_a_pruned_model_attends_as_with_sdpa(tiny_models: dict[str, Any], ids: torch.Tensor, taken: list[int]) -> None:
    model = tiny_models["llama"]
    blocks = random_blocks(family_of(model.config).shape(model.config), 3)
    same(prune(model, make_plan(model, blocks)), ids)
    assert taken


def test_masks_long_rows_and_caches_go_to_the_fused_kernel(
    tiny_models: dict[str, Any], ids: torch.Tensor, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models["llama"]
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    same(model, ids, attention_mask=mask)
    assert not taken
    monkeypatch.setattr(attention, "LONGEST", 11)
    same(model, ids)
    assert not taken
    monkeypatch.setattr(attention, "LONGEST", 12)
    with short_attention(model), torch.no_grad():
        whole = model(ids).logits
        assert taken
        start = model(ids[:, :8], use_cache=True)
        taken.clear()
        step = model(ids[:, 8:9], past_key_values=start.past_key_values)
    assert not taken
    torch.testing.assert_close(step.logits[:, 0], whole[:, 8], rtol=1e-4, atol=1e-4)


def test_gradients_of_the_kernel_are_those_of_its_function() -> None:
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    def plain(q: Any, k: Any, v: Any) -> Any:
        scores = (q @ k[:, :, None].transpose(-1, -2)) * 0.4
        hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
        return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v[:, :, None]

    q, k, v = some(2, 3, 2, 5, 4), some(2, 3, 5, 4), some(2, 3, 5, 4)
    weight = some(2, 3, 2, 5, 4).detach()
    ours, wanted = attention._Short.apply(q, k, v, 0.4), plain(q, k, v)
    torch.testing.assert_close(ours, wanted)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((wanted * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # the shares' gradient is made in fp32


def test_models_are_put_back_also_after_an_error_and_others_are_left_alone(tiny_models: dict[str, Any]) -> None:
    sdpa, eager = tiny_models["llama"], tiny_models["mistral"]
    eager.set_attn_implementation("eager")
    with pytest.raises(RuntimeError, match="stop"), short_attention(sdpa, eager), short_attention(sdpa):
        assert (sdpa.config._attn_implementation, eager.config._attn_implementation) == (attention.NAME, "eager")
        raise RuntimeError("stop")
    assert (sdpa.config._attn_implementation, eager.config._attn_implementation) == ("sdpa", "eager")
