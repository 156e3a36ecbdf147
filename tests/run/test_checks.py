"""What can be known before the first stage is refused before it, for every stage and every value of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sentei
from run.stories import write_recipe
from sentei.errors import InfeasibleError, InputError
from sentei.recipe import Recipe

POOL = "recover={pool: POOL, tokens: 500}"


@pytest.fixture(scope="module")
def recipe(stories_dir: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rows = [{"prompt": f"what is {n}", "completion": "a number"} for n in range(40)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "short.txt").write_text("a few words")
    (folder / "quiz.jsonl").write_text('{"context": "a", "choices": ["b", "c"], "label": 0}\n')
    return write_recipe(folder, stories_dir, data_dir, 2048, 512, windows=2, tasks=[])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data=short.txt"], "one window needs 128"),
        (["measure.gradient_tokens=0"], "measure.gradient_tokens is 0, and score 'obs-fisher' needs gradients"),
        (
            ["prune.method=low-rank", "budget.target_engine=gguf"],
            "low-rank matrices, which engine",
        ),
        (["prune.score=block-influence", "prune.method=flap"], "is about whole blocks"),
        (["prune.allocation=adaptive"], "prune.allocation: 'adaptive' knows no ranks"),
        (["budget={params: 9000000000}"], "fewer than the 9,000,000,000 asked for"),
        ([POOL, "recover.budget_params=zz"], "--budget-params 'zz': expected a share"),
        ([POOL, "recover.budget_params=900000000"], "--budget-params 900000000: expected"),
        ([POOL, "recover.budget=41"], "the budget is 41 rows, the pool has 40"),
        ([POOL, "recover.budget=0.01"], "is one row, at least 2"),
        ([POOL, "recover.budget='900000 tokens'"], "the budget is 900,000 tokens, the pool has"),
        ([POOL, "recover.mask=grow", "recover.tune=lora"], "grow"),
        (["prove.texts=[short.txt]"], "prove.texts, short: the text has"),
        (["prove.texts=[short.txt, short.txt]"], "two texts are called 'short'"),
        (["prove.tasks=[quiz.jsonl, quiz.jsonl]"], "two tasks are called 'quiz'"),
        (["prove.tasks=[helaswag]"], r"unknown task 'helaswag'"),
        (["ship.to=gguf", "ship.dtype=Q4_K_M", "budget.target_engine=gguf"], "llama-quantize, which is not on PATH"),
        (["ship={to: onnx, dtype: INT8}"], "this export needs onnx"),
    ],
)
def test_it_is_refused_before_any_work(
    recipe: Path, changes: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sentei.recover.select.embed.find_embedder", lambda: Path())
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("sentei.ship.graph.importlib.util.find_spec", lambda name: None)
    changes = [change.replace("POOL", "pool.jsonl") for change in changes]
    with pytest.raises((InputError, InfeasibleError), match=message):
        sentei.run(Recipe.load(recipe, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [".inf", ".nan", "0", "-1"])
def test_learning_rates_that_are_none(recipe: Path, value: str) -> None:
    with pytest.raises(InputError, match=r"recover\.learning_rate"):
        Recipe.load(recipe, [f"recover.learning_rate={value}"])
