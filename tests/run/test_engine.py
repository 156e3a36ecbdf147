from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from run import fake_stages
from sentei.errors import InputError
from sentei.fingerprint import fingerprint
from sentei.models.load import Loaded
from sentei.outputs import locked
from sentei.plan import Budget
from sentei.progress import TerminalProgress
from sentei.recipe import Prune, Recipe
from sentei.run import resume, run

engine = importlib.import_module("sentei.run")
ALL = ["first", "second", "third"]


@pytest.fixture(autouse=True)
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(engine, "STAGES", fake_stages.registry())
    fake_stages.CALLS.clear()
    return fake_stages.CALLS


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "text.txt").write_text("calibration")
    return Recipe(model="m", data=str(tmp_path / "text.txt"), budget=Budget(sparsity=0.2))


def contents(out: Path) -> dict[str, str]:
    """Hashes of all that a run made; what tells of time is left out."""
    files = (p for p in sorted(out.rglob("*")) if p.is_file() and p.name not in {"stage.json", "events.jsonl", ".lock"})
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_run_leaves_the_promised_directory(recipe: Recipe, tmp_path: Path) -> None:
    report = run(recipe, tmp_path / "out", progress=TerminalProgress())
    out = tmp_path / "out"
    assert report["schema_version"] == 1
    assert Recipe.load(out / "recipe.yaml") == recipe
    assert sorted(path.name for path in (out / "stages").iterdir()) == ["01-first", "02-second", "03-third"]
    record = json.loads((out / "stages" / "02-second" / "stage.json").read_text())
    assert (record["name"], record["status"], len(record["key"])) == ("second", "done", 64)
    assert (out / "model" / "weights.bin").samefile(out / "stages" / "02-second" / "model" / "weights.bin")
    assert not (out / "model" / "config.json").samefile(out / "stages" / "02-second" / "model" / "config.json")
    events = [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert events.count("begin") == events.count("done") == 3


def test_a_run_keeps_the_dtype_that_it_began_with_and_says_so_elsewhere(
    recipe: Recipe, tmp_path: Path, stages: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"

    def machine(name: str, dtype: str) -> None:
        monkeypatch.setattr("sentei.machine.processor", lambda: name)
        monkeypatch.setattr("sentei.machine.fast_dtype", lambda device: dtype)

    def dtypes() -> set[str]:
        records = (json.loads(path.read_text()) for path in out.glob("stages/*/stage.json"))
        return {record["machine"]["dtype"] for record in records}

    machine("an AMX machine", "bfloat16")
    run(recipe, out, progress=TerminalProgress())
    assert "started on" not in capsys.readouterr().err and dtypes() == {"bfloat16"}
    assert Recipe.load(out / "recipe.yaml").dtype == "auto"
    shutil.rmtree(out / "stages" / "03-third")
    machine("an AVX2 machine", "float32")
    stages.clear()
    resume(out, progress=TerminalProgress())
    said = capsys.readouterr().err
    assert "started on an AMX machine (cpu" in said and "goes on on an AVX2 machine (cpu" in said
    assert "computed in bfloat16 as it began; float32 is fast here" in said
    assert stages == ["third"] and dtypes() == {"bfloat16"}
    run(recipe.model_copy(update={"seed": 1}), out, overwrite=True, progress=TerminalProgress())  # another one
    assert "started on" not in capsys.readouterr().err and dtypes() == {"float32"}


def test_a_device_that_is_not_there_is_refused_before_any_work(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        run(recipe.model_copy(update={"device": "gpu"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_not_done_again(recipe: Recipe, tmp_path: Path, stages: list[str]) -> None:
    first = run(recipe, tmp_path / "out")
    assert resume(tmp_path / "out") == first == run(recipe, tmp_path / "out", overwrite=True)
    assert stages == ALL


def test_only_what_reads_a_change_is_done_again(recipe: Recipe, tmp_path: Path, stages: list[str]) -> None:
    run(recipe, tmp_path / "out")
    stages.clear()
    changed = recipe.model_copy(update={"prune": Prune(method="random")})
    run(changed, tmp_path / "out", overwrite=True)
    assert stages == ["second", "third"]
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text()) == {"method": "random"}


def test_the_contents_of_the_data_count_not_its_name(recipe: Recipe, tmp_path: Path, stages: list[str]) -> None:
    run(recipe, tmp_path / "out")
    stages.clear()
    (tmp_path / "copy.txt").write_text("calibration")
    run(recipe.model_copy(update={"data": str(tmp_path / "copy.txt")}), tmp_path / "out", overwrite=True)
    assert stages == []
    (tmp_path / "text.txt").write_text("other")
    run(recipe, tmp_path / "out", overwrite=True)
    assert stages == ALL


def test_a_directory_that_is_not_empty_is_refused(recipe: Recipe, tmp_path: Path, stages: list[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    for overwrite in (False, True):  # no recipe.yaml: not a run, so it is never touched
        with pytest.raises(InputError, match="it holds no run"):
            run(recipe, tmp_path / "full", overwrite=overwrite)
    assert os.listdir(tmp_path / "full") == ["letter.txt"] and stages == []
    run(recipe, tmp_path / "out")
    with pytest.raises(InputError, match="sentei resume"):
        run(recipe, tmp_path / "out")
    with pytest.raises(InputError, match="holds no run"):
        resume(tmp_path / "full")


def test_bad_input_leaves_nothing(recipe: Recipe, tmp_path: Path, stages: list[str]) -> None:
    with pytest.raises(InputError, match="does not exist"):
        run(recipe.model_copy(update={"data": str(tmp_path / "none.txt")}), tmp_path / "out")
    assert not (tmp_path / "out").exists() and stages == []


def test_an_error_in_a_later_stage_keeps_the_earlier_ones(recipe: Recipe, tmp_path: Path, stages: list[str]) -> None:
    with pytest.raises(InputError, match="broken"):
        run(recipe.model_copy(update={"prune": Prune(method="broken")}), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "stages").iterdir()) == ["01-first"]
    stages.clear()
    run(recipe, tmp_path / "out", overwrite=True)
    assert stages == ["second", "third"]


def test_leftovers_are_swept(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "out")
    leftover = tmp_path / "out" / "stages" / ".02-second.abc"
    leftover.mkdir()
    resume(tmp_path / "out")
    assert not leftover.exists()


def test_work_survives_a_stop_and_goes_when_the_stage_is_done(recipe: Recipe, tmp_path: Path) -> None:
    work = tmp_path / "out" / "work"
    with pytest.raises(InputError, match="broken"):
        run(recipe.model_copy(update={"prune": Prune(method="broken")}), tmp_path / "out")
    (kept,) = work.iterdir()
    assert kept.name.startswith("second-") and (kept / "begun").is_file()
    with pytest.raises(InputError, match="broken"):
        resume(tmp_path / "out")
    assert (kept / "begun").read_text() == "again", "the same key finds what it left"
    (work / "first-0123456789ab").mkdir()
    run(recipe, tmp_path / "out", overwrite=True)  # another method: another key
    assert not work.exists()


def test_what_another_recipe_published_goes(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(recipe, tmp_path / "out")
    for stage in ("SECOND", "THIRD"):
        after = tuple(name for name in getattr(fake_stages, stage).after if name != "second")
        changes = {"after": after} if stage == "THIRD" else {"wanted": lambda recipe: False}
        monkeypatch.setattr(fake_stages, stage, dataclasses.replace(getattr(fake_stages, stage), **changes))
    run(recipe, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "model").exists() and (tmp_path / "out" / "report.json").exists()
    assert sorted(path.name for path in (tmp_path / "out" / "stages").iterdir()) == ["01-first", "02-third"]


def test_a_damaged_record_is_named(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "out")
    (tmp_path / "out" / "stages" / "01-first" / "stage.json").write_text("{")
    with pytest.raises(InputError, match=r"stage\.json:1:2 is not JSON"):
        resume(tmp_path / "out")


def test_two_runs_in_one_directory_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    with locked(tmp_path / "out"), pytest.raises(InputError, match="another sentei is running"):
        engine._Run(recipe, tmp_path / "out", TerminalProgress()).go()


def test_resume_gives_the_seed_of_an_unbroken_run(recipe: Recipe, tmp_path: Path) -> None:
    """Random numbers of a stage do not hang on the stages that ran before it in the same process."""
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "parts")
    engine.shutil.rmtree(tmp_path / "parts" / "stages" / "03-third")
    resume(tmp_path / "parts")
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


SCRIPT = """
import importlib, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from run import fake_stages
engine = importlib.import_module("sentei.run")
engine.STAGES = fake_stages.registry()
out = Path({out!r})
engine.resume(out) if (out / "recipe.yaml").exists() else engine.run(engine.Recipe.load(Path({recipe!r})), out)
"""


def test_killed_at_any_point_the_result_is_the_same(recipe: Recipe, tmp_path: Path) -> None:
    recipe.save(tmp_path / "recipe.yaml")
    run(recipe, tmp_path / "whole")
    out = tmp_path / "out"
    values = {"tests": str(Path(__file__).parents[1]), "out": str(out), "recipe": str(tmp_path / "recipe.yaml")}
    command = [sys.executable, "-c", SCRIPT.format(**values)]
    environment = {**os.environ, "FAKE_SLEEP": "0.1"}
    kills = 0
    for extra in (0.05, 0.25, 0.5, 0.7, 0.85, 1.0, 60.0):  # seconds after it first wrote something
        process = subprocess.Popen(command, env=environment)
        begun = time.monotonic()
        while not out.exists() and time.monotonic() - begun < 60:
            time.sleep(0.01)
        try:
            process.wait(timeout=extra if kills == 0 else extra + 1.5)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills >= 2 and process.returncode == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("1")
    one = fingerprint(str(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert fingerprint(str(tmp_path / "b")) == one
    (tmp_path / "b" / "x.txt").write_text("2")
    assert fingerprint(str(tmp_path / "b")) != one
    assert fingerprint("org/model") == "org/model"


def test_what_a_stage_made_is_at_the_top_when_it_is_done(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(context: Any) -> dict[str, Any]:
        assert (tmp_path / "out" / "model" / "weights.bin").is_file()
        raise InputError("no report")

    monkeypatch.setattr(fake_stages, "THIRD", dataclasses.replace(fake_stages.THIRD, work=broken))
    with pytest.raises(InputError, match="no report"):
        run(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "model" / "weights.bin").is_file()


def test_an_optional_stage_that_fails_ends_the_run_after_the_others(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def last(context: Any) -> dict[str, Any]:
        seen.append((sorted(context.before), dict(context.failed)))
        return fake_stages.third(context)

    broken = recipe.model_copy(update={"prune": Prune(method="broken")})
    monkeypatch.setattr(fake_stages, "SECOND", dataclasses.replace(fake_stages.SECOND, optional=True))
    monkeypatch.setattr(fake_stages, "THIRD", dataclasses.replace(fake_stages.THIRD, work=last))
    with pytest.raises(InputError, match="this method is broken"):
        run(broken, tmp_path / "out")
    assert seen == [(["first"], {"second": "this method is broken"})]
    assert (tmp_path / "out" / "report.json").is_file() and not (tmp_path / "out" / "model").exists()
    with pytest.raises(InputError, match="this method is broken"):
        resume(tmp_path / "out")
    assert len(seen) == 1, "it fails as before, and the report says so already"
    mended = dataclasses.replace(fake_stages.SECOND, work=lambda context: {}, publishes=())
    monkeypatch.setattr(fake_stages, "SECOND", mended)
    resume(tmp_path / "out")
    assert seen[1:] == [(["first", "second"], {})], "a report without a stage is not that of the whole run"


def test_what_the_dense_model_tells_is_asked_before_any_work(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def suits(recipe: Recipe, dense: Any) -> None:
        raise InputError(f"{dense.name} is too small")

    monkeypatch.setattr(engine._Run, "_dense", lambda self: Loaded(None, None, "the model", ""))
    monkeypatch.setattr("sentei.estimate.pace_of", lambda dense: 1.0)
    monkeypatch.setattr("sentei.models.load.context_length", lambda model: 2048)
    monkeypatch.setattr(fake_stages, "THIRD", dataclasses.replace(fake_stages.THIRD, suits=suits))
    with pytest.raises(InputError, match="the model is too small"):
        run(recipe, tmp_path / "out")
    assert not fake_stages.CALLS and not (tmp_path / "out").exists()
