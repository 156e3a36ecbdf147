"""`fit` and `frontier` on a real tiny model: everything from a task file to a confirmed, saved model."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from sentei.data.task_file import TaskFile
from sentei.errors import InputError, QualityError
from sentei.fit.begun import claim, settled_dtype
from sentei.fit.fit import fit
from sentei.fit.frontier import frontier
from sentei.fit.healing import healed
from sentei.fit.settings import Settings, search_budget, search_kinds
from sentei.metrics.score import prepare
from sentei.models.load import load
from sentei.plan import Budget


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Which animal was named: a copy task that a tiny story model does well above chance."""
    folder, chance = tmp_path_factory.mktemp("task"), np.random.default_rng(0)
    animals = ["dog", "cat", "bird", "frog"]
    names = ["Tom", "Lily", "Ben", "Sue", "Max", "Mia", "Sam", "Anna", "Tim", "Jane"]
    rows = []
    for i in range(240):
        label, name, other = int(chance.integers(4)), str(chance.choice(names)), str(chance.choice(names))
        animal = animals[label]
        text = f"Once upon a time, {name} had a {animal}. The {animal} was happy. {other} saw the {animal}. {i} The"
        rows.append({"context": text, "choices": animals, "label": label})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = "{calibrate: 80, search: 60, confirm: 50, test: 50}"
    (folder / "task.yaml").write_text(f"name: animal\ndata: rows.jsonl\nmetric: acc\nsplits: {splits}\n")
    return TaskFile.load(folder / "task.yaml")


def test_fit_finds_confirms_and_saves(stories, task, tmp_path):
    made = fit(stories, task, tmp_path / "run", tolerance=0.1, evaluations=20, settings=Settings(heal=2000))
    found = made.report["fit"]
    assert found["verdict"] == "met" and found["removed"] >= 0.05
    assert found["confirmed"] >= 0.9 * found["dense"] > 0.9 * 0.4
    again = load(tmp_path / "run" / "model", dtype="float32")
    assert sum(p.numel() for p in again.model.model.layers.parameters()) == made.plan.predicted["block_params"]
    # the report's figures are those of the saved model, on rows that the search never saw
    splits = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert not set(splits["confirm"]) & (set(splits["search"]) | set(splits["calibrate"]) | set(splits["test"]))
    from sentei.data.splits import Splits
    from sentei.data.task_rows import read_rows

    rows = Splits.load(tmp_path / "run" / "splits.json", read_rows(task)).confirm
    score = prepare(rows, again.tokenizer, "acc").score(again.model).score
    assert np.mean(score) == pytest.approx(found["confirmed"], abs=1e-9)
    # started again, everything is known already and nothing changes
    same = fit(stories, task, tmp_path / "run", tolerance=0.1, evaluations=20, settings=Settings(heal=2000))
    assert same.plan == made.plan and same.report["fit"]["confirmed"] == found["confirmed"]


def test_the_published_searches_are_worse_or_equal_and_honest(stories, task, tmp_path):
    for search in ("uniform", "genetic"):
        try:
            found = fit(
                stories,
                task,
                tmp_path / search,
                tolerance=0.2,
                search=search,
                evaluations=10,
                settings=Settings(heal=0),
            ).report["fit"]
        except QualityError:
            found = json.loads((tmp_path / search / "report.json").read_text())["fit"]
            assert found["verdict"] == "missed"
        assert found["evaluations"] <= 11


def test_a_search_without_time_still_gives_one_cut(stories, task, tmp_path):
    found = fit(stories, task, tmp_path / "run", tolerance=0.5, minutes=1e-4, settings=Settings(heal=0)).report["fit"]
    assert found["cuts"] == 1 and found["verdict"] == "met" and found["removed"] > 0.1


def test_frontier_is_a_curve_of_plans(stories, task, tmp_path):
    report = frontier(stories, task, tmp_path / "f", shares=(0.2, 0.5), latency=False, settings=Settings(heal=0))
    assert [round(p["removed"], 1) for p in report["points"]] == [0.0, 0.2, 0.5]
    assert report["points"][2]["sizes"]["params"] < report["points"][1]["sizes"]["params"]
    assert (tmp_path / "f" / "plans" / "02.json").exists()
    again = frontier(stories, task, tmp_path / "f", shares=(0.2, 0.5), latency=False, settings=Settings(heal=0))
    assert again == report


def test_a_task_at_chance_is_refused(stories, task, tmp_path):
    rows = [json.loads(line) for line in Path(task.data).read_text().splitlines()]
    chance = np.random.default_rng(1)
    for row in rows:
        row["label"] = int(chance.integers(4))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wrong = task.model_copy(update={"data": str(tmp_path / "rows.jsonl")})
    with pytest.raises(InputError, match="at chance"):
        fit(stories, wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # so that the next try is not refused for its remains


def test_bad_settings_name_themselves(stories, task, tmp_path):
    with pytest.raises(InputError, match="tolerance"):
        fit(stories, task, tmp_path / "a", tolerance=0.0)
    with pytest.raises(InputError, match="minutes"):
        fit(stories, task, tmp_path / "b", minutes=-1)
    with pytest.raises(InputError, match="unknown search 'evolv'"):
        fit(stories, task, tmp_path / "c", search="evolv")
    with pytest.raises(InputError, match="unknown objective"):
        search_budget("watts", "transformers")
    with pytest.raises(InputError, match="kind of removal"):
        search_kinds("magic", Budget(sparsity=0.2))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        claim(tmp_path / "d")


def test_another_setting_does_not_share_a_directory(stories, task, tmp_path):
    frontier(stories, task, tmp_path / "f", shares=(0.3,), latency=False, settings=Settings(heal=0))
    with pytest.raises(InputError, match="another model, dtype, task or setting"):
        frontier(stories, task, tmp_path / "f", shares=(0.3,), latency=False, settings=Settings(heal=0, length=64))
    with pytest.raises(InputError, match="another model, dtype, task or setting"):
        frontier(stories, task, tmp_path / "f", shares=(0.3,), settings=Settings(heal=0, phase="prefill"))


def test_size_can_be_time_on_this_machine(stories, task, tmp_path):
    report = frontier(
        stories, task, tmp_path / "f", shares=(0.3,), latency=True, settings=Settings(heal=0, phase="prefill")
    )
    dense, cut_ = report["points"]
    assert cut_["latency"]["prefill_seconds"] <= 0.75 * dense["latency"]["prefill_seconds"]
    with pytest.raises(InputError, match="evolve or path"):
        fit(stories, task, tmp_path / "g", search="uniform", settings=Settings(phase="decode"))
    assert search_budget("decode", "transformers")[1] == "decode"


def test_workers_find_what_one_process_finds(stories, task, tmp_path):
    """Outcomes come back in order, so that the search takes the same way."""
    found = [
        fit(
            stories, task, tmp_path / str(n), tolerance=0.2, search="path", settings=Settings(heal=0), workers=n
        ).report["fit"]
        for n in (1, 2)
    ]
    assert found[0]["removed_in_place"] == found[1]["removed_in_place"]
    assert found[0]["removed"] == found[1]["removed"]


def test_the_commands_of_a_point_make_the_model_that_was_measured(stories, task, tmp_path):
    """Cut and heal as the page says, from the command line: the same figure on the same rows."""
    from sentei.cli.app import app
    from sentei.data.splits import Splits
    from sentei.data.task_rows import read_rows
    from sentei.report.frontier import command

    source = Path(task.data).with_name("task.yaml")
    report = frontier(stories, task, tmp_path / "run", shares=[0.3], latency=False, settings=Settings(heal=1500))
    report["given"] = {
        "model": str(stories.model.name_or_path),
        "task": str(source),
        "out": str(tmp_path / "run"),
        "options": ["--dtype", "float32"],
    }
    words = [shlex.split(text)[1:] for text in command(report, report["points"][1]).split(" && ")]
    monkey = [[str(tmp_path / word) if word.endswith(("-30", "-30-cut")) else word for word in line] for line in words]
    for line in monkey:
        app(args=line, standalone_mode=False)
    rows = Splits.load(tmp_path / "run" / "splits.json", read_rows(task)).search
    again = load(monkey[-1][-1], dtype="float32")
    score = prepare(rows, again.tokenizer, "acc").score(again.model).score
    assert np.mean(score) == pytest.approx(report["points"][1]["value"], abs=1e-9)
    assert report["dense_trained"]["value"] >= report["points"][0]["value"], "training on a task does not hurt it"


def test_a_fit_goes_on_in_the_dtype_that_it_was_begun_in(stories, task, tmp_path, monkeypatch):
    out, said = tmp_path / "run", []
    fit(stories, task, out, tolerance=0.3, evaluations=2, settings=Settings(heal=0))
    monkeypatch.setattr("sentei.machine.fast_dtype", lambda device: "bfloat16")
    assert settled_dtype(out, "auto", "cpu", said.append, overwrite=False) == "float32"
    assert len(said) == 1 and said[0].startswith("goes on in float32, as it began; bfloat16 is fast on ")
    monkeypatch.setattr("sentei.machine.fast_dtype", lambda device: "float32")
    assert settled_dtype(out, "auto", "cpu", said.append, overwrite=False) == "float32" and len(said) == 1
    for asked, where, overwrite in (("bfloat16", out, False), ("auto", out, True), ("auto", tmp_path / "x", False)):
        assert settled_dtype(where, asked, "cpu", said.append, overwrite=overwrite) == asked
    half = load(stories.model.name_or_path, dtype="bfloat16", device="cpu")
    with pytest.raises(InputError, match="holds a run of another model, dtype, task or setting"):
        fit(half, task, out, tolerance=0.3, evaluations=2, settings=Settings(heal=0))


def test_rows_are_healed_on_as_long_as_they_are_calibrated_on(stories, task):
    with pytest.raises(InputError, match=r"the answer has 3 tokens, expected 1 to 2: .* in 3 tokens"):
        healed(stories.model, stories, "", task, Settings(length=3), None)
