"""Parity in real llama.cpp, on tiny models of every kind that a GGUF file can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sentei.errors import InputError
from sentei.families.surgery import prune
from sentei.models.load import as_loaded
from sentei.plan import BlockPlan
from sentei.ship.base import Options
from ship.byte_level import cut_model, whole_model
from tiny import make_plan

pytest.importorskip("gguf", reason="needs the package gguf")

from sentei.ship.engines.llama_cpp import ENGINE
from sentei.ship.gguf import ROUTE

IDS = torch.randint(3, 260, (24,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("engine"):
        pytest.importorskip("xllamacpp", reason="needs the package xllamacpp")


def reference(model: Any, ids: list[int] = IDS) -> np.ndarray:
    with torch.no_grad():
        return model.float()(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()


def deviation(loaded: Any, path: Path, dtype: str = "F32", ids: list[int] = IDS, start: int = 16) -> float:
    """The largest |Δ log p| over all positions and words, prefill and decode."""
    assert ROUTE.refuse(loaded) is None
    ROUTE.write(loaded, path, Options(dtype))
    session = ENGINE.open(path)
    prefill, decode = session.log_probs(ids), session.decode(ids, start)
    session.close()
    wanted = reference(loaded.model, ids)
    assert prefill.shape == wanted.shape and decode.shape == wanted[start:].shape
    assert prefill.dtype == decode.dtype == np.float32
    return float(max(np.abs(prefill - wanted).max(), np.abs(decode - wanted[start:]).max()))


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, **YARN, "rope_type": "llama3"}
TIED = {"tie_word_embeddings": True}


@pytest.mark.engine
@pytest.mark.parametrize("variant", ["llama", "llama-tied", "llama-biases", "mistral", "qwen2", "qwen3"])
def test_equal_blocks(tmp_path, variant):
    assert deviation(whole_model(variant), tmp_path / "m.gguf") < 2e-4


@pytest.mark.engine
@pytest.mark.parametrize(
    ("variant", "bias", "sizes"),
    [
        ("llama", False, {}),
        ("llama", True, {}),
        ("llama-biases", True, {}),
        ("llama-tied", False, {"rope_parameters": LLAMA3}),
        ("llama", False, {"rope_parameters": YARN}),
        ("mistral", True, {}),
        ("qwen2", False, {}),
        ("qwen2", True, {}),
        ("qwen3", False, TIED),
        ("qwen3", False, {**TIED, "rope_parameters": YARN}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_blocks_of_different_sizes_and_removed_parts(tmp_path, variant, bias, sizes, seed):
    # Seed 0: FFN gone in block 0, attention gone in block 2. Seed 1: attention gone in 1, FFN gone in 2.
    assert deviation(cut_model(variant, seed, bias=bias, **sizes), tmp_path / "m.gguf") < 5e-4


@pytest.mark.engine
def test_a_block_that_lost_both_parts_even_the_last(tmp_path):
    loaded = whole_model("llama")
    every = {"kv_groups": [0, 2], "query_heads": [[0], [1]], "ffn": [0, 5, 7]}
    none: dict[str, Any] = {"kv_groups": [], "query_heads": [], "ffn": []}
    plan = make_plan(loaded.model, [BlockPlan(**part) for part in (every, none, {**every, "ffn": [3]}, none)])
    small = as_loaded(prune(loaded.model, plan), loaded.tokenizer, "small")
    assert deviation(small, tmp_path / "m.gguf") < 2e-4


@pytest.mark.engine
def test_a_wrong_model_is_seen(tmp_path):
    """The measure can fail: one changed weight in a thousand is far beyond the tolerance."""
    loaded = cut_model("llama", 0)
    ROUTE.write(loaded, tmp_path / "m.gguf", Options())
    loaded.model.model.layers[3].mlp.up_proj.weight.data[::7, ::3] *= 1.1
    session = ENGINE.open(tmp_path / "m.gguf")
    assert np.abs(session.log_probs(IDS) - reference(loaded.model)).max() > 0.01
    assert np.abs(session.decode(IDS, 20) - reference(loaded.model)[20:]).max() > 0.01
    session.close()


@pytest.mark.engine
@pytest.mark.parametrize(("dtype", "least", "most"), [("F32", 0.0, 1e-3), ("F16", 1e-5, 0.02), ("Q8_0", 1e-3, 0.5)])
def test_precision_on_a_real_model(tmp_path, stories, dtype, least, most):
    ids = stories.tokenizer("Once upon a time there was a little girl who liked to play in the park.").input_ids
    assert least <= deviation(stories, tmp_path / "m.gguf", dtype, ids, len(ids) - 6) < most
    session = ENGINE.open(tmp_path / "m.gguf")
    assert session.dtype == dtype
    session.close()


@pytest.mark.engine
def test_generation_is_timed_as_asked(tmp_path):
    ROUTE.write(cut_model("llama", 0), tmp_path / "m.gguf", Options())
    session = ENGINE.open(tmp_path / "m.gguf")
    for _ in range(2):  # the second time, the prompt is not taken from the cache
        times = session.generate(IDS, 8)
        assert 0 < times.first < times.total < 5
    with pytest.raises(InputError, match=r"24 \+ 300 tokens exceed the context of 256"):
        session.generate(IDS, 300)
    session.close()


@pytest.mark.engine
def test_a_full_context(tmp_path):
    """All positions of a prefill are told; the server keeps room for an answer, so the last cannot be decoded."""
    loaded = cut_model("llama", 0, max_position_embeddings=64)
    ROUTE.write(loaded, tmp_path / "m.gguf", Options())
    session = ENGINE.open(tmp_path / "m.gguf")
    ids = (IDS * 3)[:64]
    assert np.abs(session.log_probs(ids) - reference(loaded.model, ids)).max() < 2e-4
    assert np.abs(session.decode(ids[:63], 60) - reference(loaded.model, ids)[60:63]).max() < 2e-4
    with pytest.raises(InputError, match=r"64 \+ 1 tokens exceed the context of 64"):
        session.decode(ids, 60)
    session.close()


def test_what_is_no_model(tmp_path):
    with pytest.raises(InputError, match="is no file"):
        ENGINE.open(tmp_path)
    for content in (b"", b"GGUF", b"no model at all", b"GGUF\x03\0\0\0" + b"\xff" * 40):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(InputError, match="no whole GGUF model"):
            ENGINE.open(tmp_path / "bad.gguf")
    ROUTE.write(whole_model("llama"), tmp_path / "m.gguf", Options())
    cut = (tmp_path / "m.gguf").read_bytes()[:-5000]
    (tmp_path / "bad.gguf").write_bytes(cut)
    with pytest.raises(InputError, match="no whole GGUF model"):
        ENGINE.open(tmp_path / "bad.gguf")


@pytest.mark.engine
def test_what_llama_cpp_refuses(tmp_path):
    gguf = pytest.importorskip("gguf")
    ROUTE.write(whole_model("llama"), tmp_path / "m.gguf", Options())
    reader = gguf.GGUFReader(tmp_path / "m.gguf", "r+")
    reader.get_field("llama.attention.head_count").parts[-1][0] = 5  # heads that do not fit the tensors
    del reader
    session = ENGINE.open(tmp_path / "m.gguf")
    with pytest.raises(InputError, match=r"llama\.cpp does not load"):
        session.log_probs(IDS)
    session.close()
