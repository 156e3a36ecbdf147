from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from accel_files import write_files
from cli.calling import refused
from sentei.recover.tune import train

Sentei = Any


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


def call(files: Path, out: Path, **options: str) -> list[str]:
    usual = {
        "pool": str(files / "pool.jsonl"),
        "data": str(files / "text.jsonl"),
        "text": str(files / "text.jsonl"),
        "to": "60%",
        "stages": "2",
        "tokens": "1k",
        "calibration": "256",
        "batch-tokens": "64",
        "windows": "2",
        "dtype": "float32",
        "out": str(out),
        **options,
    }
    return ["accel", str(files / "model"), *(part for name, value in usual.items() for part in (f"--{name}", value))]


def test_accel_makes_a_run(sentei: Sentei, files: Path, tmp_path: Path) -> None:
    result = sentei(*call(files, tmp_path / "run", format="json"))
    assert result.code == 0, result
    report = result.json()
    assert report["recipe"]["accel"]["tokens"] == 1000 and report["recipe"]["budget"]["sparsity"] == pytest.approx(0.4)
    assert len(report["accel"]["family"]) == 2 and (tmp_path / "run" / "model" / "config.json").is_file()
    again = sentei("resume", str(tmp_path / "run"))
    assert again.code == 0 and "accel: done before" in again.err and "every stage" in again.out


def test_a_divergence_ends_with_3_and_the_model_before(
    sentei: Sentei, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, runs = train.Trainer.run, [0]

    def broken(self: Any) -> Any:
        runs[0] += 1
        if runs[0] == 2:
            self.loss = lambda batch: torch.tensor(float("nan"), requires_grad=True)
        return real(self)

    monkeypatch.setattr(train.Trainer, "run", broken)
    result = sentei(*call(files, tmp_path / "run"))
    refused(result, "stage 2 of 2", "diverged", "kept is the model of stage 1", code=3)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["accel"]["stopped"] == "diverged" and len(report["accel"]["family"]) == 1
    assert report["models"]["pruned"]["block_params"] == report["accel"]["family"][0]["block_params"]
    assert "diverged" in (tmp_path / "run" / "report.html").read_text()


def test_bad_calls_are_refused_in_one_line(sentei: Sentei, files: Path, tmp_path: Path) -> None:
    for words, options in (
        (("--to 1.5",), {"to": "1.5"}),
        (("--to 0", "such as 0.5 or 50%"), {"to": "0"}),
        (("stage 1 of 2", "removes nothing"), {"to": "0.999"}),
        (("the pool has", "epochs"), {"tokens": "2M"}),
        (("accel.tokens",), {"tokens": "many"}),
        (("unknown loss",), {"loss": "nope"}),
        (("does not exist",), {"pool": "nowhere.jsonl"}),
        (("accel.moments",), {"moments": "lose"}),
    ):
        out = tmp_path / "run"
        refused(sentei(*call(files, out, **options)), *words)
        assert not out.exists()
