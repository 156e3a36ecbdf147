"""ONNX exports, run in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sentei.errors import InputError
from sentei.models.load import Loaded, digest
from sentei.ship.base import Options
from sentei.ship.engines.onnxruntime import ENGINE
from sentei.ship.graph import needs
from sentei.ship.onnx import ROUTE
from ship.graphs import IDS, names_a_path, padded, reference, varied

pytestmark = pytest.mark.engine
for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason=f"needs the package {name}")


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return varied("mistral-window")


@pytest.fixture(scope="module")
def written(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx")
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
    import onnxruntime

    session = onnxruntime.InferenceSession(written / "model.onnx")
    ids, mask, positions = padded(IDS, 5)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for value in session.get_inputs()[3:]:
        inputs[value.name] = np.zeros((2, value.shape[1], 0, value.shape[3]), np.float32)
    (logits,) = session.run(["logits"], inputs)
    found, wanted = torch.tensor(logits).log_softmax(-1).numpy(), reference(loaded)
    assert np.abs(found[0] - wanted).max() < 1e-4
    assert np.abs(found[1, 5:] - wanted[:-5]).max() < 1e-4


def test_names_and_axes_are_the_usual_ones_and_a_removed_part_has_no_cache(written: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(written / "model.onnx")
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    assert shapes["input_ids"] == ["batch_size", "sequence_length"]
    assert shapes["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert shapes["past_key_values.2.value"] == ["batch_size", 3, "past_sequence_length", 8]
    assert shapes["present.0.key"] == ["batch_size", 2, "total_sequence_length", 8]
    assert {int(name.split(".")[1]) for name in shapes if "." in name} == {0, 2}


def test_what_lies_beside(loaded: Loaded, written: Path) -> None:
    assert names_a_path(written) == []
    config = json.loads((written / "config.json").read_text())
    assert config["num_hidden_layers"] == 3 and "_name_or_path" not in config
    read: Any = transformers.AutoTokenizer.from_pretrained(written)
    assert read("abab")["input_ids"] == loaded.tokenizer("abab")["input_ids"]
    assert read.chat_template == loaded.tokenizer.chat_template
    assert (written / "generation_config.json").is_file()


def test_int8_is_smaller_and_says_what_it_is(written: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from sentei.models.load import as_loaded
    from tiny import tiny_model

    dense = as_loaded(tiny_model("llama", num_hidden_layers=1, intermediate_size=512))
    before = dense.digest
    assert ROUTE.write(dense, tmp_path, Options("INT8"))["dtype"] == "INT8"
    assert digest(dense.model, dense.tokenizer) == before and capfd.readouterr().out == ""
    session = ENGINE.open(tmp_path)
    assert session.dtype == "INT8"
    wanted = reference(dense, [i % 128 for i in IDS])
    found = session.log_probs([i % 128 for i in IDS])
    assert 1e-4 < np.abs(found - wanted).mean() < 0.02 * wanted.std()
    weights = sum(value.numel() * 4 for value in dense.model.parameters())
    assert (tmp_path / "model.onnx.data").stat().st_size < 0.5 * weights


def test_what_cannot_be_opened_is_one_line(written: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model\.onnx; make one with"):
        ENGINE.open(tmp_path)
    (tmp_path / "model.onnx").write_bytes((written / "model.onnx").read_bytes()[:999])
    with pytest.raises(InputError, match="ONNX Runtime does not load") as refused:
        ENGINE.open(tmp_path)
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="pip install no_such_package"):
        needs("json", "no_such_package")


def test_bfloat16_is_written_as_f32_and_said(loaded: Loaded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sentei.ship import onnx

    asked = []

    class Done(Exception):
        pass

    def stop(exporter: str, loaded: Loaded, dtype: str, **settings: Any) -> None:
        asked.append(dtype)
        raise Done

    monkeypatch.setattr(onnx, "export_graph", stop)
    with pytest.raises(Done):
        ROUTE.write(Loaded(_like(torch.bfloat16), None, "", ""), tmp_path, Options())
    with pytest.raises(Done):
        ROUTE.write(Loaded(_like(torch.float16), None, "", ""), tmp_path, Options())
    assert asked == ["F32", "F16"]


def _like(dtype: torch.dtype) -> Any:
    return torch.empty(0, dtype=dtype)
