from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sentei.errors import InputError
from sentei.plan import Budget
from sentei.recipe import Measure, Prove, Prune, Recipe, Recover

MINIMAL = "model: smollm2-135m-instruct\nbudget: {sparsity: 0.2}\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_the_smallest_recipe_has_defaults_for_the_rest(tmp_path: Path) -> None:
    recipe = Recipe.load(write(tmp_path, MINIMAL))
    assert (recipe.data, recipe.prune.method, recipe.prove.texts, recipe.seed) == ("demo", "auto", ["demo"], 0)


def test_the_recipe_of_the_design_page(tmp_path: Path) -> None:
    text = "model: smollm2-135m-instruct\ntask: {preset: general}\nbudget: {sparsity: 0.20}\nprune: {method: auto}\n"
    assert Recipe.load(write(tmp_path, text)).task.preset == "general"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "prunne: {method: auto}\n", ["prunne", "did you mean 'prune'?"]),
        (MINIMAL + "prune: {metod: auto}\n", ["prune.metod", "did you mean 'method'?"]),
        ("model: m\nbudget: {sparsity: 1.2}\n", ["budget.sparsity", "less than 1"]),
        ("model: m\nbudget: {sparsity: 0.2, params: 7}\n", ["budget", "exactly one"]),
        ("model: m\n", ["budget", "required"]),
        ("model: m\nbudget: [\n", [":3:1", "not YAML"]),
        ("- a\n- b\n", ["expected keys", "list"]),
        ("", ["expected keys"]),
        (MINIMAL + "measure: {window: 1}\n", ["measure.window"]),
        (MINIMAL + "dtype: int8\n", ["dtype", "bfloat16"]),
        (MINIMAL + "recover: {pol: demo}\n", ["recover.pol", "did you mean 'pool'?"]),
        (MINIMAL + "recover: {loss: kld}\n", ["recover.loss", "'sft', 'kd' or 'both'"]),
        (MINIMAL + "recover: {tokens: 0}\n", ["recover.tokens"]),
        (MINIMAL + "recover: {watts: -3}\n", ["recover.watts", "greater than 0"]),
        (MINIMAL + "recover: demo\n", ["recover"]),
    ],
)
def test_bad_recipes_name_the_place(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        Recipe.load(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_recovery_is_asked_for_or_absent(tmp_path: Path) -> None:
    plain = Recipe.load(write(tmp_path, MINIMAL))
    assert plain.recover is None and "recover" not in plain.dump()
    default = Recipe.load(write(tmp_path, MINIMAL + "recover: {}\n")).recover
    assert default == Recover() and default is not None and (default.pool, default.select) == ("demo", "auto")
    assert Recipe.load(write(tmp_path, MINIMAL + "recover: {}\n"), ["recover=null"]) == plain


def test_recovery_data_are_looked_up_next_to_the_recipe(tmp_path: Path) -> None:
    for name in ("pool.jsonl", "target.jsonl"):
        (tmp_path / name).write_text("{}")
    recover = Recipe.load(write(tmp_path, MINIMAL + "recover: {pool: pool.jsonl, target: target.jsonl}\n")).recover
    assert recover is not None
    assert (recover.pool, recover.target) == (str(tmp_path / "pool.jsonl"), str(tmp_path / "target.jsonl"))


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="is a directory, expected a file"):
        Recipe.load(tmp_path)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"model: \xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8: byte 0xff at 7"):
        Recipe.load(path)


def test_overrides_are_yaml_values(tmp_path: Path) -> None:
    recipe = Recipe.load(
        write(tmp_path, MINIMAL), ["budget.sparsity=0.35", "prove.tasks=[a, b]", "prove.speed=false", "seed=7"]
    )
    assert (recipe.budget.sparsity, recipe.prove.tasks, recipe.prove.speed, recipe.seed) == (0.35, ["a", "b"], False, 7)


def test_an_override_may_replace_a_section(tmp_path: Path) -> None:
    assert Recipe.load(write(tmp_path, MINIMAL), ["budget={params: 1000}"]).budget.params == 1000


@pytest.mark.parametrize("override", ["budget.sparsity", "=3", "budget..x=1", "model.x=1", "seed=[", "sed=1"])
def test_bad_overrides(tmp_path: Path, override: str) -> None:
    with pytest.raises(InputError):
        Recipe.load(write(tmp_path, MINIMAL), [override])


def test_paths_are_looked_up_next_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text")
    (tmp_path / "piqa.jsonl").write_text("{}")
    recipe = Recipe.load(
        write(tmp_path, MINIMAL + "data: text.txt\nprove: {texts: text.txt, tasks: [piqa.jsonl, piqa]}\n")
    )
    assert recipe.data == str(tmp_path / "text.txt")
    assert recipe.prove.texts == [str(tmp_path / "text.txt")]
    assert recipe.prove.tasks == [str(tmp_path / "piqa.jsonl"), "piqa"]


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


@given(
    model=names,
    budget=st.builds(Budget, sparsity=st.floats(0, 0.99)),
    prune=st.builds(Prune, method=names, score=st.none() | names),
    measure=st.builds(Measure, tokens=st.integers(2, 10**9), window=st.integers(2, 10**5)),
    prove=st.builds(Prove, texts=st.lists(names, max_size=3), limit=st.none() | st.integers(1, 1000)),
    recover=st.none()
    | st.builds(
        Recover,
        pool=names,
        budget=st.integers(1, 10**6) | st.floats(0.001, 0.999) | st.just("40000 tokens") | st.just("0.2"),
        learning_rate=st.none() | st.floats(1e-9, 1),
        watts=st.none() | st.floats(1, 1e4),
    ),
    seed=st.integers(0, 2**40),
)
def test_yaml_gives_the_recipe_back(
    model: str, budget: Budget, prune: Prune, measure: Measure, prove: Prove, recover: Recover | None, seed: int
) -> None:
    recipe = Recipe(model=model, budget=budget, prune=prune, measure=measure, prove=prove, recover=recover, seed=seed)
    assert Recipe.model_validate(yaml.safe_load(recipe.dump())) == recipe
