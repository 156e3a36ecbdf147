"""A recipe that is made to fit: numbers within its minutes, windows within the context, the same when it goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import sentei
from run.stories import write_recipe
from sentei.errors import InfeasibleError
from sentei.recipe import Recipe
from sentei.scaling import FLOORS, SHARE, known_scaling, within_context, within_minutes


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "text.txt").write_text("word " * 400_000)  # 500,000 tokens by the letters
    row = {"context": "12345678", "choices": ["1234", "5678"], "label": 0}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 500)
    (tmp_path / "pool.jsonl").write_text('{"prompt": "what is it", "completion": "this"}\n' * 1000)
    value: dict[str, Any] = {
        "model": "m",
        "data": "text.txt",
        "budget": {"sparsity": 0.2},
        "measure": {"tokens": 100_000, "window": 512},
        "prove": {"texts": ["text.txt"], "tasks": ["rows.jsonl"], "window": 512},
        "recover": {"pool": "pool.jsonl", "budget": 500, "tokens": 50_000},
        "minutes": 10,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(value))
    return Recipe.load(tmp_path / "recipe.yaml")


def tokens(recipe: Recipe) -> dict[str, float]:
    """As the stages count, with a whole text for each window and a token for each row."""
    assert recipe.recover is not None
    windows, limit, rows = recipe.prove.windows or 977, recipe.prove.limit or 500, recipe.recover.rows or 1000
    return {
        "measure": 3.0 * recipe.measure.tokens + 3 * recipe.measure.gradient_tokens,
        "prove": windows * recipe.prove.window + limit,
        "recover": 100.0 * rows + 5 * recipe.recover.tokens,
    }


def test_numbers_are_scaled_to_the_minutes_by_one_factor_and_recovery_by_its_root(recipe: Recipe) -> None:
    said: list[str] = []
    made = within_minutes(recipe, tokens, 800.0, said.append)
    allowed = SHARE * 600 * 800
    assert 0.9 * allowed < sum(tokens(made).values()) <= allowed < sum(tokens(recipe).values())
    assert made.recover is not None and made.recover.rows is not None and made.recover.tokens >= 4000
    root = made.recover.rows / 1000
    factor = root**2
    assert made.prove.limit == pytest.approx(factor * 500, abs=2)
    assert made.recover.budget == pytest.approx(root * 500, abs=1)
    assert made.measure.tokens % 512 == 0 and abs(made.measure.tokens - factor * 100_000) < 600
    assert "measure.tokens 100,000 → " in said[0] and "recover.rows 1,000 → " in said[0]
    assert made.fitted is not None and made.fitted.wanted["recover.tokens"] == 50_000


def test_what_is_fitted_stays_and_other_minutes_begin_with_what_was_wanted(recipe: Recipe, tmp_path: Path) -> None:
    made = within_minutes(recipe, tokens, 800.0, lambda text: None)
    made.save(tmp_path / "resolved.yaml")
    again = Recipe.load(tmp_path / "resolved.yaml")
    assert again == made and within_minutes(again, tokens, 100.0, lambda text: None) == made, "on a slower machine too"
    longer = within_minutes(Recipe.load(tmp_path / "resolved.yaml", ["minutes=1000"]), tokens, 800.0, lambda text: None)
    assert longer.measure.tokens == 100_000 and longer.fitted is not None and not longer.fitted.wanted
    open_ = within_minutes(Recipe.load(tmp_path / "resolved.yaml", ["minutes=null"]), tokens, 800.0, lambda text: None)
    assert open_.fitted is None and open_.recover is not None and open_.recover.tokens == 50_000


def test_too_few_minutes_are_refused_with_those_that_suffice(recipe: Recipe) -> None:
    with pytest.raises(InfeasibleError, match="minutes: 10 is too little at 20 tokens/s") as caught:
        within_minutes(recipe, tokens, 20.0, print)
    found = re.search(r"takes ([\d.]+)$", str(caught.value))
    assert found is not None
    enough = recipe.model_copy(update={"minutes": float(found[1])})
    made = within_minutes(enough, tokens, 20.0, print)
    assert made.prove.windows == FLOORS["prove.windows"] and made.measure.tokens == FLOORS["measure.tokens"]


def test_the_same_recipe_in_the_same_directory_keeps_its_numbers(recipe: Recipe) -> None:
    from sentei.scaling import digest_of

    made = within_minutes(recipe, tokens, 800.0, print, digest_of(recipe))
    assert known_scaling(recipe, made) == made
    other = recipe.model_copy(update={"seed": 1})
    assert known_scaling(other, made) == other


def test_windows_longer_than_the_context_are_shortened_with_a_word(recipe: Recipe) -> None:
    said: list[str] = []
    made = within_context(recipe, 256, said.append)
    assert made.measure.window == made.prove.window == 256 and len(said) == 2
    assert within_context(recipe, 512, said.append) == recipe and len(said) == 2


def test_a_run_with_minutes_says_what_it_scaled_and_goes_on_with_it(
    stories_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path, stories_dir, data_dir, 20_000, 512, windows=64, tasks=[])
    monkeypatch.setattr("sentei.estimate.pace_of", lambda dense: 1000.0)
    report = sentei.run(Recipe.load(path, ["minutes=1.5"]), tmp_path / "run")
    fitted = report["recipe"]["fitted"]
    assert fitted["wanted"]["measure.tokens"] == 20_000 > report["recipe"]["measure"]["tokens"] >= 4096
    monkeypatch.setattr("sentei.estimate.pace_of", lambda dense: 400.0)
    kept = (tmp_path / "run" / "stages" / "01-measure" / "stage.json").read_bytes()
    assert sentei.resume(tmp_path / "run") == report
    assert sentei.run(Recipe.load(path, ["minutes=1.5"]), tmp_path / "run", overwrite=True) == report
    assert (tmp_path / "run" / "stages" / "01-measure" / "stage.json").read_bytes() == kept
