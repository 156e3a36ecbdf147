"""A real recipe on a real (tiny) model: everything that a run promises, and the same result after a SIGKILL."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sentei
from run.stories import write_recipe
from sentei.files import read_json
from sentei.measure import Profile
from sentei.recipe import Recipe

SENTEI = (sys.executable, "-m", "sentei")


@pytest.fixture(scope="module")
def recipe(stories_dir: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rows = (data_dir / "eval" / "piqa.val.jsonl").read_text().splitlines()[:12]
    (folder / "piqa.jsonl").write_text("\n".join(rows))
    return write_recipe(folder, stories_dir, data_dir, 4096, 1024, windows=4, tasks=["piqa.jsonl"])


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run([*SENTEI, "run", str(recipe), "--out", str(out)], check=True, capture_output=True)
    return out


def made(out: Path) -> dict[str, str]:
    """Hashes of what must not depend on when and how often a run was stopped."""
    files = [*sorted((out / "model").iterdir()), out / "stages" / "02-plan" / "plan.json"]
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    evidence = read_json(out / "stages" / "04-prove" / "evidence.json")
    for model in evidence["models"]:
        del model["memory"]["peak_rss_bytes"]  # of the process, whatever it did before
    return found | {"evidence": json.dumps(evidence)}


def test_the_report_of_a_run(whole: Path) -> None:
    report = read_json(whole / "report.json")
    dense, pruned = report["models"]["dense"], report["models"]["pruned"]
    assert 1 - pruned["block_params"] / dense["block_params"] == pytest.approx(0.2, abs=0.005)
    (text,) = pruned["perplexity"].values()
    assert text["value"] > 1 and text["tokens"] == 4 * 127
    assert report["models"]["dense"]["tasks"]["piqa"]["n"] == 12
    assert len(report["blocks"]) == 5 and all(row["ffn"]["sensitivity"] > 0 for row in report["blocks"])
    predicted = {row["name"]: row for row in report["predictions"]}
    assert predicted["block params"]["predicted"] == predicted["block params"]["measured"] == pruned["block_params"]
    assert predicted["weights"]["predicted"] == predicted["weights"]["measured"]
    assert "<title>" in (whole / "report.html").read_text()


def test_the_model_of_a_run_loads(whole: Path) -> None:
    model = sentei.load(whole / "model", dtype="float32").model
    params = read_json(whole / "report.json")["models"]["pruned"]["params"]
    assert sum(p.numel() for p in model.parameters()) == params


def test_a_second_budget_measures_nothing_again(whole: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole, out)
    before = (out / "stages" / "01-measure" / "stage.json").read_bytes()
    changed = Recipe.load(recipe, ["budget.sparsity=0.3", "prune.method=magnitude"])
    report = sentei.run(changed, out, overwrite=True)
    assert (out / "stages" / "01-measure" / "stage.json").read_bytes() == before
    assert report["budget"]["sparsity"] == 0.3 and report["method"]["name"] == "magnitude"
    assert report == read_json(out / "report.json")


def test_a_plan_that_is_tried_in_place_finds_its_gram_matrices(whole: Path, recipe: Path, tmp_path: Path) -> None:
    """Whatever method the run was begun with: the profile of another one has none."""
    out = tmp_path / "run"
    sentei.run(Recipe.load(recipe, ["prune.method=magnitude"]), out)
    assert not Profile.load(out / "stages" / "01-measure" / "profile").contents.grams
    before = (out / "stages" / "01-measure" / "stage.json").read_bytes()
    sentei.run(Recipe.load(recipe), out, overwrite=True)
    assert (out / "stages" / "01-measure" / "stage.json").read_bytes() == before
    one, two = (read_json(place / "stages" / "02-plan" / "plan.json") for place in (out, whole))
    assert one.pop("predicted") == pytest.approx(two.pop("predicted"), rel=1e-4) and one == two


@pytest.mark.parametrize("stage", ["02-plan", "04-prove"])
def test_killed_in_a_stage_resume_gives_the_identical_result(
    stage: str, whole: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [*SENTEI, "run", str(recipe), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = time.monotonic()
    while not list((out / "stages").glob(f".{stage}.*")) and process.poll() is None and time.monotonic() - begun < 120:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "report.json").exists(), "it was not killed in time"
    subprocess.run([*SENTEI, "resume", str(out)], check=True, capture_output=True)
    assert made(out) == made(whole)
