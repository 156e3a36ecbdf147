"""Timing of exports: turns, ratios, errors; with an engine that takes the time that it is told to take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sentei.errors import InputError, SenteiError
from sentei.files import write_json
from sentei.ship import bench as module
from sentei.ship.bench import bench
from sentei.ship.engines import ENGINES, Timing
from sentei.ship.export import export
from ship.byte_level import cut_model, whole_model

pytest.importorskip("gguf", reason="needs the package gguf")


def test_rates_from_times():
    rates = module._rates([Timing(0.5, 1.5), Timing(0.25, 0.75)], prompt=100, new=11)
    np.testing.assert_allclose(rates["prefill"], [200, 400])
    np.testing.assert_allclose(rates["decode"], [10, 20])
    slow = {name: rate / 2 for name, rate in rates.items()}
    figures = module._figures(rates, slow, [Timing(0.5, 1.5), Timing(0.25, 0.75)])
    assert figures["first_token_s"] == 0.375 and figures["decode_tokens_per_s"] == 15
    assert figures["prefill_ratio"] == {"median": 2, "low": 2, "high": 2}


def test_the_peak_is_that_of_this_process():
    before = module._peak()
    block = np.ones(before // 8 + (64 << 20), dtype=np.uint8)
    assert module._peak() >= before and block.any()
    assert 10 << 20 < before < 1 << 40


@pytest.mark.parametrize(("name", "value"), [("prompt", 0), ("new", 1), ("rounds", 0)])
def test_numbers_that_make_no_sense(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}"):
        bench([], **{name: value})


def test_what_is_no_export(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        bench([tmp_path / "none.gguf"])
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="no export"):
        bench([tmp_path / "m.gguf"])


def test_a_missing_engine_says_how_to_install_it(tmp_path, monkeypatch):
    export(whole_model(), "gguf", tmp_path / "m.gguf", check=False)
    monkeypatch.setattr(type(ENGINES["llama.cpp"]), "installed", lambda self: False)
    with pytest.raises(InputError, match="pip install xllamacpp"):
        bench([tmp_path / "m.gguf"])


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """A dense model and a smaller one, as GGUF."""
    pytest.importorskip("xllamacpp", reason="needs the package xllamacpp")
    wide = {"intermediate_size": 4096, "hidden_size": 192}
    export(whole_model(**wide), "gguf", tmp_path / "dense.gguf", check=False)
    export(whole_model(**{**wide, "intermediate_size": 64}), "gguf", tmp_path / "small.gguf", check=False)
    return [tmp_path / "dense.gguf", tmp_path / "small.gguf"]


@pytest.mark.engine
def test_a_smaller_model_is_faster_in_llama_cpp(pair):
    found = bench(pair, prompt=100, new=16, rounds=3)
    assert found["protocol"] | {"threads": 1} == {"prompt": 100, "new": 16, "batch": 1, "rounds": 3, "threads": 1}
    dense, small = found["runs"]
    assert [Path(run["export"]).name for run in found["runs"]] == ["dense.gguf", "small.gguf"]
    assert dense["engine"] == "llama.cpp" and dense["route"] == "gguf" and dense["dtype"] == "F32"
    assert dense["prefill_ratio"] == dense["decode_ratio"] == {"median": 1, "low": 1, "high": 1}
    assert small["prefill_ratio"]["median"] > 1.5 and small["decode_ratio"]["median"] > 1.5
    assert small["bytes"] < dense["bytes"] < small["bytes"] * 100
    assert small["first_token_s"] < dense["first_token_s"] and dense["peak_rss_bytes"] > dense["bytes"]
    json.dumps(found, allow_nan=False)


@pytest.mark.engine
def test_what_an_engine_refuses_is_one_line(pair, tmp_path):
    with pytest.raises(InputError, match="exceed the context of 256"):
        bench(pair, prompt=300, new=2, rounds=1)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(pair[0].read_bytes()[:-100])
    write_json(tmp_path / "broken.gguf.json", json.loads((tmp_path / "dense.gguf.json").read_text()))
    with pytest.raises(SenteiError, match="no whole GGUF model"):
        bench([broken], prompt=4, new=2, rounds=1)


@pytest.mark.engine
def test_command(pair):
    from typer.testing import CliRunner

    from sentei.cli.app import app

    result = CliRunner().invoke(app, ["bench", *map(str, pair), "--prompt", "8", "--new", "4", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    (dense,) = (line for line in lines if "dense.gguf" in line)
    (small,) = (line for line in lines if "small.gguf" in line)
    assert dense.count("×1.00") == 2 and "llama.cpp" in small and "F32" in small
    assert lines[-1].startswith("batch 1, prompt 8, 4 new tokens, 1 rounds")


def test_layouts_other_than_plain_are_served_too(tmp_path):
    assert export(cut_model("llama", 0), "gguf", tmp_path / "m.gguf", check=False)["engines"] == ["llama.cpp", "ollama"]
