"""A recipe that cuts and trains in turns: what it leaves, what it says, and the same result after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sentei
from accel_files import dies_in_stage_two, write_files
from sentei.errors import InputError
from sentei.files import read_json
from sentei.models.load import load
from sentei.plan import Plan
from sentei.recipe import Recipe
from sentei.recover.tune import train
from sentei.report.formats import read_report
from sentei.report.html import render


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    write_files(folder)
    value: dict[str, Any] = {
        "model": "model",
        "data": "text.jsonl",
        "budget": {"sparsity": 0.4},
        "dtype": "float32",
        "prove": {"texts": ["text.jsonl"], "tasks": [], "window": 32, "windows": 8, "speed": False},
        "accel": {
            "pool": "pool.jsonl",
            "stages": 2,
            "tokens": "1k",
            "calibration": 256,
            "gradient_tokens": 64,
            "window": 32,
            "batch_tokens": 64,
        },
    }
    (folder / "recipe.yaml").write_text(json.dumps(value))  # JSON is YAML
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    sentei.run(recipe, out)
    return out


def test_what_is_there(whole: Path) -> None:
    names = {"recipe.yaml", "stages", "model", "family", "report.json", "report.html", ".lock"}
    assert {path.name for path in whole.iterdir()} - {"events.jsonl"} == names
    assert {path.name for path in (whole / "stages").iterdir()} == {"01-accel", "02-prove", "03-report"}
    plans = [Plan.load(whole / "family" / f"stage-0{n}" / "plan.json") for n in (1, 2)]
    assert plans[1] == Plan.load(whole / "model" / "plan.json")
    for n, plan in enumerate(plans, 1):
        small = load(whole / "family" / f"stage-0{n}", dtype="float32")
        assert sum(p.numel() for p in small.model.parameters()) == plan.shape().params()
    one, last = (load_file(d / "model.safetensors") for d in (whole / "family" / "stage-02", whole / "model"))
    assert one.keys() == last.keys() and all(torch.equal(one[name], last[name]) for name in one)


def test_the_report_tells_of_every_stage(whole: Path) -> None:
    kind, report = read_report(whole / "report.json")
    assert kind == "run" and [s["stage"] for s in report["accel"]["family"]] == [1, 2]
    assert report["models"]["pruned"]["block_params"] == report["accel"]["family"][-1]["block_params"]
    page = render(report)
    assert "Cut and trained in turns" in page and page.count("<svg") >= 3 and "2 of 2 stages ended well" in page


def test_killed_and_resumed_it_ends_with_the_same_files(
    recipe: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dies_in_stage_two(monkeypatch):
        sentei.run(recipe, tmp_path / "run")
    (work,) = (tmp_path / "run" / "work").iterdir()
    assert (work / "stage-01" / "done").is_dir()
    begun = (work / "stage-01" / "done" / "model" / "model.safetensors").stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        steps = [0]
        step = train.Trainer._train
        patch.setattr(train.Trainer, "_train", lambda *args: (steps.__setitem__(0, steps[0] + 1), step(*args))[1])
        sentei.resume(tmp_path / "run")
    assert begun and 0 < steps[0] == read_json(whole / "family/stage-02/stage.json")["steps"], "the first was kept"
    for name in ("model", "family/stage-01", "family/stage-02"):
        a, b = (load_file(out / name / "model.safetensors") for out in (whole, tmp_path / "run"))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_what_cannot_be_is_said_before_the_first_stage(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for message, overrides in (
        ("accel trains between its cuts, and recover after one", ["recover.tune=lora"]),
        ("prune.method: sieve makes low-rank matrices", ["prune.method=sieve"]),
        ("unknown loss 'kll'", ["accel.loss=kll"]),
        ("unknown adapter 'lorra'", ["accel.train=lorra"]),
        ("stage 1 of 900 goes from .* removes nothing", ["accel.stages=900"]),
        ("the pool has .* tokens to train on, 2 stages want 2,000,000", ["accel.tokens=2M"]),
        ("accel.tokens", ["accel.tokens=lots"]),
        ("does not exist", ["accel.pool=nowhere.jsonl"]),
    ):
        with pytest.raises(InputError, match=message):
            sentei.run(Recipe.load(recipe, overrides), tmp_path / "run")
        assert not (tmp_path / "run").exists(), message
    monkeypatch.setattr("sentei.memory.available", lambda: 10_000)
    with pytest.raises(InputError, match=r"accel needs about .* GB of memory, 0.00 GB are free; it holds the dense"):
        sentei.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
