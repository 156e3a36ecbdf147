"""`sentei select` and `sentei tune`, from the command line to the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.calling import Result, refused
from recover.recovering import by_topic, damaged, loaded, pool, small_model
from sentei.models.load import load
from sentei.models.save import save
from sentei.recover.tune import train

Sentei = Callable[..., Result]


@pytest.fixture(autouse=True)
def embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentei.recover.select.select._embedded", by_topic)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dense/, pruned/ and pool.jsonl."""
    place = tmp_path_factory.mktemp("files")
    dense = small_model()
    for name, model in (("dense", dense), ("pruned", damaged(dense))):
        save(model, place / name, tokenizer=loaded(model).tokenizer)
    (place / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pool()))
    return place


def select(sentei: Sentei, files: Path, out: Path, *more: object) -> Result:
    models = ("--dense", files / "dense", "--pruned", files / "pruned", "--pool", files / "pool.jsonl")
    return sentei("select", *models, "--out", out, "--dtype", "float32", "--clusters", 2, *more)


def tune(sentei: Sentei, files: Path, data: Path, out: Path, *more: object) -> Result:
    usual = ("--tokens", 400, "--batch-tokens", 100, "--evaluations", 2, "--budget-params", "5%", "--dtype", "float32")
    return sentei("tune", files / "pruned", "--data", data, "--out", out, *usual, *more)


def test_from_a_pool_to_a_healed_model(sentei: Sentei, files: Path, tmp_path: Path) -> None:
    first = select(sentei, files, tmp_path / "sel", "--budget", "50%", "--filters", "none")
    assert first.code == 0 and f"{tmp_path / 'sel'}: 20 rows, " in first.out and "next: sentei tune" in first.out
    assert "pool: 40 rows" in first.err and "read as completion" in first.err
    again = sentei("select", tmp_path / "sel", "--budget", 4, "--out", tmp_path / "small", "--format", "json")
    assert again.code == 0 and again.json()["selected"] == 4 and again.json()["schema_version"] == 1
    ids = [json.loads(line)["id"] for line in (tmp_path / "small" / "selected.jsonl").read_text().splitlines()]
    assert all(id.startswith("b") for id in ids), "where the damage is"
    tuned = tune(sentei, files, tmp_path / "sel", tmp_path / "healed", "--format", "json")
    assert tuned.code == 0 and tuned.json()["loss"] == "both" and tuned.json()["stopped"] == "finished"
    assert next(iter(tuned.json())) == "schema_version"
    assert load(tmp_path / "healed").model.config.hidden_size == 42 and (tmp_path / "healed" / "adapter").is_dir()
    taught = tune(sentei, files, files / "pool.jsonl", tmp_path / "taught", "--teacher", files / "dense")
    assert taught.code == 0 and "held-out loss" in taught.out and "the teacher reads" in taught.err
    (tmp_path / "other.txt").write_text("t9 t4 t11 t30 " * 200)
    watched = tune(sentei, files, tmp_path / "sel", tmp_path / "watched", "--other-text", tmp_path / "other.txt")
    assert watched.code == 0 and "the perplexity of the other text went from" in watched.out
    assert not list(tmp_path.glob(".*")), "no work is left over"


def test_select_refuses_in_one_line(sentei: Sentei, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(sentei("select", "--budget", 3, "--out", out), "--dense, --pruned, --pool missing")
    refused(select(sentei, files, out, "--budget", "lots"), "budget 'lots' is not understood")
    refused(select(sentei, files, out, "--budget", 3, "--strategy", "rnadom"), "did you mean 'random'?")
    refused(select(sentei, files, out, "--budget", 41), "the pool has 40 rows")
    refused(select(sentei, files, out, "--budget", 3, "--weight", "1:2"), "expected cluster=factor")
    refused(select(sentei, files, out, "--budget", 3, "--filters", "emty"), "did you mean 'empty'?")
    refused(select(sentei, files, out, "--budget", 3, "--strategy", "ids"), "give one with --ids FILE")
    refused(sentei("select", tmp_path, "--budget", 3, "--out", out), "holds no selection")
    refused(
        sentei("select", tmp_path, "--budget", 3, "--out", out, "--clusters", 3, "--pool", "x"),
        "--pool, --clusters cannot be changed without the models",
    )
    assert not out.exists()
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 3}\n')
    models = ("--dense", "no-such-model", "--pruned", "none")
    refused(
        sentei("select", *models, "--pool", tmp_path / "bad.jsonl", "--budget", 1, "--out", out, "--strict"),
        "bad.jsonl:2",
    )


def test_tune_refuses_in_one_line(sentei: Sentei, files: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out", files / "pool.jsonl"
    refused(tune(sentei, files, data, out, "--adapter", "lorra"), "did you mean 'lora'?")
    refused(tune(sentei, files, data, out, "--loss", "kdd"), "did you mean 'kd'?")
    refused(tune(sentei, files, data, out, "--loss", "kd"), "distillation needs a teacher")
    refused(tune(sentei, files, tmp_path / "none.jsonl", out), "none.jsonl does not exist")
    refused(tune(sentei, files, data, out, "--budget-params", "200%"), "expected a share")
    refused(tune(sentei, files, data, files), "holds the input")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    refused(tune(sentei, files, data, tmp_path / "full"), "exists and is not empty")
    assert not out.exists()


def test_a_killed_tune_goes_on_when_it_is_called_again(
    sentei: Sentei, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = files / "pool.jsonl"
    assert tune(sentei, files, data, tmp_path / "whole").code == 0
    real, calls = train.Trainer._train, []

    def killed(self: object, batch: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(train.Trainer, "_train", killed)
    assert tune(sentei, files, data, tmp_path / "killed").code == 130
    assert not (tmp_path / "killed").exists() and len(list(tmp_path.glob(".killed.partial-*"))) == 1
    assert tune(sentei, files, data, tmp_path / "killed").code == 0 and len(calls) < 9
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1] and not list(tmp_path.glob(".killed*"))


def test_a_divergence_is_told_by_the_exit_code(
    sentei: Sentei, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.Trainer, "_train", lambda self, batch: self.guard._diverged("the loss is not a number"))
    result = tune(sentei, files, files / "pool.jsonl", tmp_path / "out")
    refused(result, "training diverged", "lower --learning-rate", code=3)
    assert load(tmp_path / "out").model is not None, "the model before it is kept"
