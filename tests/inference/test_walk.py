"""Many forward passes through a model whose blocks are not in memory: the same numbers, each block read once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.streamed import streamed_blocks
from sentei.inference import walk
from sentei.inference.branches import make_batches, make_rows, score_batches, shares_heads
from sentei.inference.walk import Reading, hidden_states
from sentei.measure.stream import run_block
from sentei.metrics.perplexity import perplexity
from sentei.models.load import load
from sentei.models.save import save
from tiny import VARIANTS, tiny_model


@pytest.fixture(params=sorted(VARIANTS))
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save(tiny_model(request.param), tmp_path / "model")


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(3, 128, (5, 12), generator=torch.Generator().manual_seed(1))


def counted(model: Any) -> list[int]:
    """The blocks that are read from now on."""
    blocks, reads = streamed_blocks(model), []
    assert blocks is not None
    read = blocks.read
    blocks.read = lambda index: (reads.append(index), read(index))[1]
    return reads


def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states never fit into memory."""
    monkeypatch.setattr(walk, "held", lambda: 1 << 60)


@pytest.mark.parametrize("spilled", [False, True])
def test_perplexity_is_the_same_and_every_block_is_read_once(
    directory: Path, windows: torch.Tensor, spilled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = perplexity(load(directory, dtype="float32").model, windows, batch=2)
    model = load(directory, dtype="float32", memory=10**12).model
    if spilled:
        on_disk(monkeypatch)
    reads = counted(model)
    assert perplexity(model, windows, batch=2) == wanted
    assert reads == list(range(4)), "three batches went through each block"
    assert all(p.is_meta for p in family_of(model.config).blocks(model).parameters()), "no block stays"


def test_answers_are_scored_the_same(directory: Path) -> None:
    head = list(range(3, 40))
    requests = [([*head, word], [word + 1, end]) for word in range(40, 60) for end in (5, 6)]
    scored = []
    for memory in (None, 10**12):
        model = load(directory, dtype="float32", memory=memory).model
        rows, _ = make_rows(requests, longest=256, branch=5 if "window" in str(directory) else 256)
        batches = list(make_batches(rows, share=shares_heads(model)))
        assert any(batch.head for batch in batches) == (memory is None)
        with torch.inference_mode():
            scored.append({n: scores for found in score_batches(model, batches) for n, scores, _ in found})
    assert scored[0].keys() == scored[1].keys() == set(range(40))
    for number, scores in scored[0].items():
        assert torch.allclose(scores, scored[1][number], atol=1e-5), "to rounding: there the head has a pass of its own"


def test_what_waits_on_the_disk_has_no_name(
    tmp_path: Path, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tiny_model(), tmp_path / "model")
    on_disk(monkeypatch)
    (place := tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    model = load(tmp_path / "model", dtype="float32", memory=10**12).model
    with torch.inference_mode():
        states = hidden_states(model, [Reading(windows), Reading(windows[:2])])
        assert next(states).shape == (5, 12, 42)
        assert not list(place.iterdir()), "a killed process leaves nothing"
        assert next(states).shape == (2, 12, 42)


def test_a_full_disk_is_said_before_the_first_block(
    tmp_path: Path, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tiny_model(), tmp_path / "model")
    on_disk(monkeypatch)
    monkeypatch.setattr(walk.shutil, "disk_usage", lambda place: type("usage", (), {"free": 1000}))
    model = load(tmp_path / "model", dtype="float32", memory=10**12).model
    reads = counted(model)
    with pytest.raises(
        InputError, match=r"the hidden states of 60 tokens take 0.00 GB, .*read fewer tokens, or set TMPDIR"
    ):
        perplexity(model, windows)
    assert not reads


def test_a_walk_leaves_the_model_usable_for_gradients(tmp_path: Path, windows: torch.Tensor) -> None:
    save(tiny_model(), tmp_path / "model")
    model = load(tmp_path / "model", dtype="float32", streamed=True).model
    with torch.inference_mode():
        model(windows)  # ends with the last block in memory
    block = model.model.layers[3].requires_grad_(True)
    run_block(family_of(model.config), model, 3, torch.randn(1, 12, 42)).sum().backward()
    assert block.mlp.up_proj.weight.grad.abs().sum() > 0
