"""Parity where something is rounded: right exports pass, planted faults do not, in every dtype and engine."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sentei.files import read_json, write_json
from sentei.models.load import Loaded, as_loaded
from sentei.ship.compared import Parity
from sentei.ship.export import export
from sentei.ship.facts import facts_path
from sentei.ship.likeness import Apart, Likeness
from sentei.ship.parity import parity
from sentei.ship.rounding import _blocks, _q8_0, _rows, disturbed, rounded
from ship.byte_level import cut_model, whole_model
from tiny import tiny_model

PLACES = [
    ("gguf", "Q8_0", "xllamacpp"),
    ("gguf", "BF16", "xllamacpp"),
    ("gguf", "F16", "xllamacpp"),
    # a trace takes many seconds
    pytest.param(("onnx", "INT8", "onnxruntime"), marks=pytest.mark.slow, id="onnx-INT8"),
    pytest.param(("openvino", "INT8", "nncf"), marks=pytest.mark.slow, id="openvino-INT8"),
    pytest.param(("openvino", "BF16", "openvino"), marks=pytest.mark.slow, id="openvino-BF16"),
    ("hf", "BF16", "transformers"),
    ("hf", "F16", "transformers"),
]
TEXTS = [
    "Once upon a time, there was a little girl named Lily. She loved to play in the park with her red ball. One day "
    "she saw a big dog. The dog was sad, because he had lost his bone. Lily said: Do not cry, we will look for it. "
    "They looked under the tree and behind the house, and at last they found it in the sand. The dog was very happy.",
    "Tom and his mom went to the shop. They wanted to buy some milk and a cake for the party. The man in the shop was "
    "kind and gave Tom a sweet. Tom said thank you and they walked home in the rain, but they did not mind at all.",
] * 4


def faulty(loaded: Loaded, fault: str) -> Loaded:
    """The model with a fault that an export could have."""
    model: Any = copy.deepcopy(loaded.model)
    layers = model.model.layers
    with torch.no_grad():
        if fault == "epsilon":
            model.config.rms_norm_eps *= 1000
            for module in model.modules():
                if hasattr(module, "variance_epsilon"):
                    module.variance_epsilon *= 1000
        elif fault == "norm":
            layers[1].input_layernorm.weight *= 1.1
        elif fault == "ffn norm":
            layers[2].post_attention_layernorm.weight *= 1.1
        elif fault == "final norm":
            model.model.norm.weight *= 1.1
        elif fault == "rope":
            values = model.config.to_dict()
            values["rope_parameters"] = {**model.config.rope_parameters, "rope_theta": 1e5}
            made = type(model)(type(model.config)(**values)).float().eval()
            made.load_state_dict(model.state_dict())
            model = made
        elif fault == "heads":
            weight, size = layers[1].self_attn.q_proj.weight, layers[1].self_attn.head_dim
            weight[: 2 * size] = torch.cat([weight[size : 2 * size], weight[:size]])
        elif fault == "bias":
            layers[1].self_attn.v_proj.bias.zero_()
    return as_loaded(model, loaded.tokenizer, loaded.name)


def checked(
    loaded: Loaded, made_of: Loaded, place: tuple[str, str, str], directory: Path, texts: Any = TEXTS
) -> Parity:
    """Parity with a model, of an export that was made of another one and does not say so."""
    route, dtype, package = place
    pytest.importorskip(package, reason=f"needs the package {package}")
    path = directory / ("m.gguf" if route == "gguf" else "m")
    export(made_of, route, path, dtype=dtype, check=False)
    facts = read_json(facts_path(path))
    write_json(facts_path(path), {**facts, "digest": loaded.digest})
    return parity(loaded, path, texts=texts, lengths=(16, 64), tokens=144)


@pytest.mark.engine
@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(place[:2]))
def test_a_trained_model_passes_and_its_faults_do_not(
    stories: Any, place: tuple[str, str, str], tmp_path: Path
) -> None:
    right = checked(stories, stories, place, tmp_path / "right")
    assert right.passed and right.likeness is not None, right.verdict()
    assert right.likeness.divergence < right.likeness.divergence_limit < 2e-3
    faults = ("epsilon", "norm", "heads", "rope", "ffn norm", "final norm")
    for fault in faults[:3] if place[0] in ("onnx", "openvino") else faults:
        (tmp_path / fault).mkdir()
        found = checked(stories, faulty(stories, fault), place, tmp_path / fault)
        assert not found.passed and found.likeness is not None, (fault, found.verdict())
        assert found.likeness.divergence > 2 * found.likeness.divergence_limit or fault == "epsilon", fault
        assert "mean KL" in found.verdict() and "FAILED" in found.verdict()


@pytest.mark.engine
@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(place[:2]))
def test_a_missing_bias_is_seen(place: tuple[str, str, str], tmp_path: Path) -> None:
    loaded = whole_model("qwen2")
    (tmp_path / "right").mkdir()
    (tmp_path / "wrong").mkdir()
    right = checked(loaded, loaded, place, tmp_path / "right")
    assert right.passed, right.verdict()
    assert not checked(loaded, faulty(loaded, "bias"), place, tmp_path / "wrong").passed


@pytest.mark.engine
@pytest.mark.parametrize("variant", ["llama", "llama-tied", "mistral", "qwen3"])
@pytest.mark.parametrize("dtype", ["Q8_0", "BF16"])
def test_cut_models_pass_in_llama_cpp(variant: str, dtype: str, tmp_path: Path) -> None:
    sizes = {"tie_word_embeddings": True} if variant == "qwen3" else {}
    loaded = cut_model(variant, 3, **sizes)
    found = checked(loaded, loaded, ("gguf", dtype, "xllamacpp"), tmp_path)
    assert found.passed, found.verdict()


def test_rounding_is_that_of_the_formats() -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q8_0
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)) * 3
    x[3, :32] = 0
    wanted = gguf.quants.dequantize(gguf.quants.quantize(x.numpy(), kind), kind)
    assert np.array_equal(_q8_0(x).numpy(), wanted)
    short = x[:, :50]  # as if filled up with zeros, which is how it is written
    assert torch.equal(_q8_0(short)[:, :32], _q8_0(x)[:, :32]) and _q8_0(short).shape == short.shape
    for rounding, step in ((_blocks, x.abs().max() / 128), (_rows, (x.max() - x.min()) / 255)):
        assert 0 < (rounding(x) - x).abs().max() <= step and torch.equal(
            rounding(torch.zeros(3, 40)), torch.zeros(3, 40)
        )


def test_a_rounded_copy_leaves_the_model_and_a_disturbed_one_comes_back() -> None:
    model = tiny_model("llama-tied").float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    facts = {"route": "gguf", "dtype": "Q8_0", "lossless": False}
    made = rounded(model, facts, "Q8_0")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert torch.equal(made.model.norm.weight, model.model.norm.weight), "norms stay as they are"
    kept = {name: value.clone() for name, value in made.state_dict().items()}
    with disturbed(made, facts, "Q8_0"):
        moved = (made.model.norm.weight.detach() / kept["model.norm.weight"] - 1).abs().max()
        assert 0 < float(moved) < 5e-5
    assert all(torch.equal(value, kept[name]) for name, value in made.state_dict().items())


def test_how_far_apart() -> None:
    p = np.log(np.array([[0.5, 0.3, 0.2]], dtype=np.float32))
    q = np.log(np.array([[0.4, 0.4, 0.2]], dtype=np.float32))
    apart = Apart()
    assert apart.add(p, q) == pytest.approx(np.log(4 / 3), rel=1e-5)
    assert apart.mean == pytest.approx(0.5 * np.log(5 / 4) + 0.3 * np.log(3 / 4), rel=1e-5)
    assert apart.median == pytest.approx(np.log(5 / 4), rel=1e-5)
    broken = Apart()
    broken.add(p, np.full_like(p, np.nan))
    assert broken.mean == np.inf and not Likeness(broken.mean, 1.0, broken.median, 1.0).passed
