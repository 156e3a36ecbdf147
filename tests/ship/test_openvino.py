"""OpenVINO exports, run in OpenVINO."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from sentei.errors import InputError
from sentei.models.load import Loaded, as_loaded, digest
from sentei.ship.base import Options
from sentei.ship.engines.openvino import ENGINE
from sentei.ship.openvino import ROUTE
from sentei.ship.telemetry import without_telemetry
from ship.graphs import IDS, names_a_path, padded, reference, varied
from tiny import tiny_model

pytestmark = pytest.mark.engine
with without_telemetry():
    pytest.importorskip("openvino", reason="needs the package openvino")


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return varied("qwen3-biases", storage="pivoted")


@pytest.fixture(scope="module")
def written(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openvino")
    assert ROUTE.refuse(loaded) is None
    assert ROUTE.write(loaded, path, Options())["dtype"] == "F32"
    return path


def test_prefill_and_decode_give_the_same_log_probabilities(loaded: Loaded, written: Path) -> None:
    session, wanted = ENGINE.open(written), reference(loaded)
    assert session.dtype == "F32"
    for _ in range(2):  # the second time from an empty cache again
        assert np.abs(session.log_probs(IDS) - wanted).max() < 1e-4
        assert np.abs(session.decode(IDS, 7) - wanted[7:]).max() < 1e-4
    timing = session.generate(IDS, 3)
    assert 0 < timing.first < timing.total
    session.close()


def test_a_batch_with_padding_sees_none_of_it(loaded: Loaded, written: Path) -> None:
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    model = openvino.Core().compile_model(written / "openvino_model.xml", "CPU", exact)
    ids, mask, positions = padded(IDS, 5)
    rows = np.arange(2, dtype=np.int32)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "beam_idx": rows}
    found = torch.tensor(model.create_infer_request().infer(inputs)["logits"]).log_softmax(-1).numpy()
    wanted = reference(loaded)
    assert np.abs(found[0] - wanted).max() < 1e-4
    assert np.abs(found[1, 5:] - wanted[:-5]).max() < 1e-4


def test_what_lies_beside(loaded: Loaded, written: Path) -> None:
    assert names_a_path(written) == []
    read = transformers.AutoTokenizer.from_pretrained(written)
    assert read("abab")["input_ids"] == loaded.tokenizer("abab")["input_ids"]
    assert (written / "config.json").is_file() and (written / "generation_config.json").is_file()


def test_int8_is_smaller_and_says_what_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nncf", reason="needs the package nncf")
    dense = as_loaded(tiny_model("llama", num_hidden_layers=1, intermediate_size=512))
    before = dense.digest
    assert ROUTE.write(dense, tmp_path, Options("INT8"))["dtype"] == "INT8"
    assert digest(dense.model, dense.tokenizer) == before and capfd.readouterr().out == ""
    session = ENGINE.open(tmp_path)
    assert session.dtype == "INT8"
    ids = [i % 128 for i in IDS]
    wanted = reference(dense, ids)
    assert 1e-4 < np.abs(session.log_probs(ids) - wanted).mean() < 0.05 * wanted.std()
    weights = sum(value.numel() * 4 for value in dense.model.parameters())
    assert (tmp_path / "openvino_model.bin").stat().st_size < 0.35 * weights


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no openvino_model\.xml; make one with"):
        ENGINE.open(tmp_path)
    (tmp_path / "openvino_model.xml").write_text("<net")
    with pytest.raises(InputError, match="OpenVINO does not load") as refused:
        ENGINE.open(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("before", [None, "maybe"])
def test_no_telemetry_and_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.delenv("CI", raising=False)
    if before:
        monkeypatch.setenv("CI", before)
    checker = pytest.importorskip("openvino_telemetry.utils.opt_in_checker", reason="needs openvino_telemetry")
    with pytest.raises(KeyError), without_telemetry():
        answer = checker.OptInChecker().check(enable_opt_in_dialog=False, disable_in_ci=True)
        assert answer is checker.ConsentCheckResult.DECLINED
        raise KeyError
    assert os.environ.get("CI") == before
