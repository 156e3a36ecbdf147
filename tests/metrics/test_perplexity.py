from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sentei.errors import InputError
from sentei.inference import forward
from sentei.metrics.perplexity import perplexity
from tiny import tiny_model


def naive(model: Any, windows: torch.Tensor) -> list[float]:
    """What transformers computes itself, window by window."""
    with torch.no_grad():
        return [float(model(w[None], labels=w[None]).loss) * (len(w) - 1) for w in windows]


@pytest.mark.parametrize("variant", ["llama", "llama-tied", "mistral-window", "qwen2", "qwen3"])
def test_it_equals_the_loss_of_transformers(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "CHUNK", 128 * 7)  # seven rows of logits at a time
    model = tiny_model(variant)
    windows = torch.randint(128, (5, 12), generator=torch.Generator().manual_seed(1))
    result = perplexity(model, windows, batch=2)
    assert result.nll == pytest.approx(naive(model, windows), rel=1e-5)
    assert result.value == pytest.approx(math.exp(sum(result.nll) / 55), rel=1e-9)
    assert (result.tokens, result.window) == (55, 12)
    low, high = result.interval
    assert low < result.value < high


def test_it_equals_the_loss_of_transformers_on_real_language(stories: Any) -> None:
    text = stories.model.generate(torch.tensor([[1]]), max_new_tokens=127, do_sample=False, pad_token_id=0)
    result = perplexity(stories.model, text)
    assert result.nll == pytest.approx(naive(stories.model, text), rel=1e-5)
    assert result.value < 4 and not result.diverged, "greedy text is likely"


def test_bf16_is_scored_in_fp32(stories: Any) -> None:
    text = stories.model.generate(torch.tensor([[1]]), max_new_tokens=127, do_sample=False, pad_token_id=0)
    half = type(stories.model)(stories.model.config).bfloat16()
    half.load_state_dict(stories.model.state_dict())
    full, rounded = perplexity(stories.model, text).value, perplexity(half.eval(), text).value
    assert rounded == pytest.approx(full, rel=0.02) and rounded != full


def test_ratios_are_paired() -> None:
    windows = torch.randint(128, (6, 12), generator=torch.Generator().manual_seed(1))
    result = perplexity(tiny_model(), windows)
    assert result.ratio(result) == (1.0, (1.0, 1.0))


def test_divergence_is_named() -> None:
    windows = torch.randint(128, (4, 12), generator=torch.Generator().manual_seed(1))
    model = tiny_model()
    assert "worse than guessing" in perplexity(model, windows).diverged, "a random model with large weights"
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    broken = perplexity(model, windows)
    assert math.isnan(broken.value) and "4 of 4 windows is not finite" in broken.diverged


def test_the_model_goes_on_as_it_was() -> None:
    model = tiny_model().train()
    perplexity(model, torch.zeros((1, 4), dtype=torch.long))
    assert model.training


@pytest.mark.parametrize(("shape", "fill"), [((1, 1), 0), ((0, 4), 0), ((1, 300), 0), ((1, 4), 128)])
def test_bad_windows_are_refused(shape: tuple[int, int], fill: int) -> None:
    with pytest.raises(InputError, match=r"expected at least one, of 2 to 256|token 128 is outside"):
        perplexity(tiny_model(), torch.full(shape, fill))
