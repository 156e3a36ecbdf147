"""A recipe with recovery on a tiny model: what it leaves, what it says, and the same result after a stop."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sentei
from sentei.errors import InputError
from sentei.files import read_json
from sentei.models.save import save
from sentei.progress import Bar, Progress
from sentei.recipe import Recipe
from sentei.report.html import render
from tiny import tiny_model, tiny_tokenizer

WORK = ("select", "tune", "compare")


def embedded(texts: Any, embedder: Any, progress: Any, device: Any = None) -> np.ndarray:
    """Two clusters, by the first word of the instruction, without an embedding model."""
    vectors = np.zeros((len(texts), 16), np.float32)
    for row, text in enumerate(texts):
        near = np.random.default_rng(zlib.crc32(text.encode())).normal(0, 0.05, 16)
        vectors[row] = near
        vectors[row, 0 if text.split()[0] == "w3" else 1] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def patched() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sentei.recover.select.select._embedded", embedded)
        patch.setattr("sentei.recover.select.embed.find_embedder", lambda: Path())
        patch.setattr("sentei.recover.select.select.embedder_bytes", lambda model: 0)
        patch.setattr("sentei.recover.select.damage.SHARD_TOKENS", 1000)  # several, to go on from, in a small pool too
        yield


def words(rng: np.random.Generator, count: int) -> str:
    return " ".join(f"w{n}" for n in rng.integers(6, 128, count))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rng = np.random.default_rng(0)
    save(tiny_model(), folder / "model", tokenizer=tiny_tokenizer())
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": words(rng, 60)}) + "\n" for _ in range(12)))
    pool = [
        {"prompt": f"w{3 + n % 2} {words(rng, 5)}", "completion": words(rng, 12), "id": f"row-{n}"} for n in range(600)
    ]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pool))
    quiz = [{"context": words(rng, 6), "choices": [words(rng, 2), words(rng, 3)], "label": n % 2} for n in range(8)]
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in quiz))
    value: dict[str, Any] = {
        "model": "model",
        "data": "text.jsonl",
        "budget": {"sparsity": 0.3},
        "prune": {"method": "magnitude"},
        "dtype": "float32",
        "measure": {"tokens": 512, "window": 32, "gradient_tokens": 0},
        "prove": {"texts": ["text.jsonl"], "tasks": ["quiz.jsonl"], "window": 32, "windows": 8, "speed": False},
        "recover": {
            "pool": "pool.jsonl",
            "budget": 500,
            "budget_params": "30%",
            "tokens": 16_000,
            "learning_rate": 0.003,
            "loss": "kd",
            "watts": 60,
            "price_per_hour": 0.5,
        },
    }
    (folder / "recipe.yaml").write_text(json.dumps(value))  # JSON is YAML
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def whole(recipe: Path, patched: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    sentei.run(Recipe.load(recipe), out)
    return out


class Stops(Progress):
    """Ends the process, as far as the run can tell, at the nth step of one piece of work."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.left = name, steps

    @contextlib.contextmanager
    def stage(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
        yield Bar(self.seen if name == self.name else None, total, unit)

    def seen(self, bar: Bar) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def made(out: Path) -> dict[str, Any]:
    """All that must not depend on when and how often a run was stopped."""
    kept = [*(out / "model").rglob("*.safetensors"), *(out / "stages" / "04-select").rglob("*.safetensors")]
    kept += [out / "stages" / "04-select" / name for name in ("selected.jsonl", "manifest.jsonl", "selection.html")]
    found: dict[str, Any] = {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
    report = read_json(out / "report.json")
    recovery = report["recovery"]
    del recovery["cost"], recovery["tune"]["seconds"]
    return found | {"recovery": recovery, "figures": [f for f in report["figures"] if f["group"] != "memory"]}


def test_a_run_that_reads_models_block_by_block_gives_the_same(recipe: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "streamed"
    sentei.run(Recipe.load(recipe, ["memory=64GB"]), out)
    for stage in ("cut", "tune"):
        one, other = (
            sentei.load(next(run.glob(f"stages/*-{stage}")) / "model", dtype="float32") for run in (whole, out)
        )
        for (name, value), twin in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
            assert torch.equal(value, twin), (stage, name)
    for name in ("capabilities.json", "manifest.jsonl"):
        first, second = (next(run.glob(f"stages/*/{name}")).read_text() for run in (whole, out))
        assert first == second


def test_the_report_of_a_run_with_recovery(whole: Path) -> None:
    report = read_json(whole / "report.json")
    assert list(report["models"]) == ["dense", "pruned", "recovered"] == list(report["average_accuracy"])
    dense, pruned, recovered = report["models"].values()
    assert dense["params"] > pruned["params"] == recovered["params"]
    (step,) = report["steps"]
    ratio = recovered["perplexity"]["text"]["value"] / pruned["perplexity"]["text"]["value"]
    assert step["perplexity"]["text"]["ratio"] == pytest.approx(ratio) and step["speed"] == {}
    recovery = report["recovery"]
    assert recovery["budget"]["selected"] == 500 == sum(c["selected"] for c in recovery["capabilities"])
    assert sum(c["share"] for c in recovery["capabilities"]) == pytest.approx(1)
    assert 15_900 < recovery["tune"]["tokens"] <= 16_000 and recovery["tune"]["curve"][0]["tokens"] == 0
    cost = recovery["cost"]
    assert cost["watt_hours"] == pytest.approx(60 * sum(cost["seconds"].values()) / 3600)
    assert cost["money"] == pytest.approx(cost["watt_hours"] / 60 * 0.5) and cost["currency"] == "EUR"


def test_damage_comes_back_on_rows_that_were_not_trained_on(whole: Path) -> None:
    recovery = read_json(whole / "report.json")["recovery"]
    overall = recovery["overall"]
    manifest = [json.loads(line) for line in (whole / "stages" / "04-select" / "manifest.jsonl").open()]
    assert overall["rows"] == sum(row["decision"] == "left out" for row in manifest) == 100
    assert overall["before"]["value"] == pytest.approx(
        np.mean([row["jsd"] for row in manifest if row["decision"] == "left out"])
    )
    assert overall["came_back"] == pytest.approx(1 - overall["after"]["value"] / overall["before"]["value"])
    assert overall["interval"][0] < overall["came_back"] < overall["interval"][1]
    assert overall["interval"][0] > 0, "the tiny model learns from the dense one"


def test_the_published_model_is_the_recovered_one(whole: Path) -> None:
    assert read_json(whole / "report.json")["recovery"]["yardstick"]["kept"] == "recovered"
    tuned, cut = whole / "stages" / "05-tune" / "model", whole / "stages" / "03-cut" / "model"
    assert (whole / "model" / "model.safetensors").read_bytes() == (tuned / "model.safetensors").read_bytes()
    assert sentei.load(whole / "model").digest != sentei.load(cut).digest
    assert (whole / "selection.html").is_file() and not (whole / "work").exists()
    assert sorted(path.name[3:] for path in (whole / "stages").iterdir()) == sorted(
        ["measure", "plan", "cut", *WORK, "prove", "report"]
    )


def test_the_page_shows_three_models_and_what_came_back(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    assert "<th>dense</th><th>pruned</th><th>recovered</th>" in page and 'href="selection.html"' in page
    assert "What came back" in page and "polyline" in page and page == render(read_json(whole / "report.json"))


@pytest.mark.parametrize(("work", "steps"), [("score", 2), ("tune", 4)])
def test_stopped_in_a_stage_resume_gives_the_identical_result(
    work: str, steps: int, whole: Path, recipe: Path, patched: None, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        sentei.run(Recipe.load(recipe), out, progress=Stops(work, steps))
    (kept,) = (out / "work").iterdir()
    assert kept.name.startswith("select-" if work == "score" else "tune-")
    files = sorted(kept.rglob("*.safetensors"))
    assert files, "nothing to go on with"
    written = files[0].stat().st_mtime_ns
    (out / "work" / "tune-of-another-key").mkdir()
    seen = Seen()
    sentei.resume(out, progress=seen)
    if work == "score":
        assert (out / "stages" / "04-select" / "scores" / files[0].name).stat().st_mtime_ns == written, "began anew"
    else:
        assert seen.first["tune"] > 0, "it began anew"
    assert made(out) == made(whole) and not (out / "work").exists()


class Seen(Progress):
    """Remembers how far each piece of work was after its first step."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
        yield Bar(lambda bar: self.first.setdefault(name, bar.done), total, unit)


def test_without_recovery_again_nothing_of_it_is_left(whole: Path, recipe: Path, patched: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    report = sentei.run(Recipe.load(recipe, ["recover=null"]), out, overwrite=True)
    assert list(report["models"]) == ["dense", "pruned"] and "recovery" not in report and "steps" not in report
    assert not (out / "selection.html").exists()
    cut = out / "stages" / "03-cut" / "model"
    assert (out / "model" / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()


def test_a_price_alone_makes_only_the_report_again(whole: Path, recipe: Path, patched: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = (out / "stages" / "07-prove" / "stage.json").read_bytes()
    report = sentei.run(Recipe.load(recipe, ["recover.price_per_hour=null"]), out, overwrite=True)
    assert "money" not in report["recovery"]["cost"] and "watt_hours" in report["recovery"]["cost"]
    assert (out / "stages" / "07-prove" / "stage.json").read_bytes() == before


def test_the_whole_pool_leaves_nothing_to_compare_on_and_says_so(
    whole: Path, recipe: Path, patched: None, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    changed = Recipe.load(recipe, ["recover.select=all", "recover.tokens=500", "prove.tasks=[]"])
    recovery = sentei.run(changed, out, overwrite=True)["recovery"]
    assert recovery["overall"] | {"rows": 0, "came_back": None, "interval": None} == recovery["overall"]
    assert recovery["notes"][0].startswith("0 rows of the pool were neither selected nor rejected")
    assert "0 rows of the pool were neither" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("recover.select=autoo", "unknown strategy 'autoo' (did you mean 'auto'?)"),
        ("recover.select=ids", "recover.select: 'ids' needs a list"),
        ("recover.budget=lots", "budget 'lots' is not understood"),
        ("recover.tune=lorra", "unknown adapter 'lorra' (did you mean 'lora'?)"),
        ("recover.pool=none.jsonl", "none.jsonl does not exist"),
        ("recover.target=none.jsonl", "none.jsonl does not exist"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(change: str, words: str, recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        sentei.run(Recipe.load(recipe, [change]), tmp_path / "out")
    assert words in str(caught.value) and not (tmp_path / "out").exists()
