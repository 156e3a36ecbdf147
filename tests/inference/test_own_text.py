"""Text that a model writes itself."""

from __future__ import annotations

import pytest
import torch

from sentei.errors import InputError
from sentei.inference.own_text import LENGTH, write_own_text
from sentei.models.load import Loaded
from tiny import tiny_model, tiny_tokenizer


def test_the_same_seed_writes_the_same_in_whole_windows(stories: Loaded) -> None:
    made = [write_own_text(stories.model, stories.tokenizer, tokens=1000, window=64, seed=seed) for seed in (0, 0, 1)]
    assert made[0].shape == (15, 64) and made[0].dtype == torch.int64
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert len({tuple(row) for row in made[0].tolist()}) == 15, "no two samples are alike"


def test_it_is_what_the_model_says(stories: Loaded) -> None:
    """stories260K tells stories: of its own text it expects each token about as well as of the stories it learnt."""
    own = write_own_text(stories.model, stories.tokenizer, tokens=4096, window=128)
    noise = torch.randint(own.max() + 1, own.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = [stories.model(ids, labels=ids).loss.item() for ids in (own, noise)]
    assert loss[0] < 2 < loss[1], loss
    assert "there was a" in " ".join(stories.tokenizer.batch_decode(own))


def test_samples_fill_longer_windows_and_a_small_cache_changes_only_the_batches(
    stories: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = write_own_text(stories.model, stories.tokenizer, tokens=2 * LENGTH, window=2 * LENGTH)
    assert long.shape == (1, 2 * LENGTH)
    monkeypatch.setattr("sentei.inference.own_text.CACHE", 1)
    assert write_own_text(stories.model, stories.tokenizer, tokens=48, window=16).shape == (3, 16)


def test_a_broken_model_writes_nothing() -> None:
    model = tiny_model()
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="predictions are not finite"):
        write_own_text(model, tiny_tokenizer(), tokens=16, window=8)
