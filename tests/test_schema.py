from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from sentei.errors import InputError
from sentei.files import JSONError
from sentei.plan import Budget
from sentei.progress import TerminalProgress
from sentei.recipe import Recipe
from sentei.record import read_record
from sentei.schema import load_yaml, parse


@pytest.mark.parametrize(
    "text, why",
    [
        ("a: 2024-13-45", "a value is not what it looks like"),
        ("a: " + "9" * 5000, "a value is not what it looks like"),
        ("a: !!bool maybe", "a value is not what it looks like"),
        ("a: !!timestamp x", "a value is not what it looks like"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "[" * 200 + "]" * 200, "nested too deeply"),
        ("a: &a [*a]", "nested too deeply"),
        ('a: "\\ud83d"', "half a surrogate pair"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: [1", "expected ',' or ']'"),
    ],
)
def test_yaml_that_nothing_can_use_is_one_error(text: str, why: str) -> None:
    with pytest.raises(JSONError, match=why):
        load_yaml(text)


def test_aliases_do_not_grow_without_bound() -> None:
    names = "abcdefghij"
    values = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    values += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise(names))
    with pytest.raises(JSONError, match="more than 100,000 values"):
        load_yaml(values)
    merged = "a: &a {x: 1}\n"
    merged += "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in itertools.pairwise(names))
    with pytest.raises(JSONError, match="more than 100,000 keys"):
        load_yaml(merged)


def test_anchors_and_dates_are_read() -> None:
    assert load_yaml("a: &a [1, 2]\nb: *a\n") == {"a": [1, 2], "b": [1, 2]}
    assert str(load_yaml("a: 2024-02-29")["a"]) == "2024-02-29"


def test_an_error_names_key_got_and_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"here: sparsity: Input should be a valid number.*; got list of 1; mend it"):
        parse(Budget, {"sparsity": [1]}, "here", "mend it")
    with pytest.raises(InputError, match=r"batch: Input should be less than or equal to 9223372036854775807; got 1000"):
        parse(Budget, {"sparsity": 0.1, "batch": 10**30}, "here")
    path = tmp_path / "r.yaml"
    path.write_text(f"model: m\nbudget: {{sparsity: 0.2}}\nseed: {2**64}\n")
    with pytest.raises(InputError, match=r"r\.yaml: seed: Input should be less than or equal to 9223372036854775807"):
        Recipe.load(path)


def test_a_name_too_long_for_a_file_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"model: {'m' * 300}\nbudget: {{sparsity: 0.2}}\n")
    assert Recipe.load(path).model == "m" * 300


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"seconds": 1}', '{"key": 3, "seconds": 1}', '{"key": "a"}'])
def test_a_stage_record_of_another_type(tmp_path: Path, text: str) -> None:
    (tmp_path / "stage.json").write_text(text)
    with pytest.raises(InputError, match=rf"stage\.json: .*; remove {tmp_path}, and the stage is done again"):
        read_record(tmp_path)


def test_a_directory_where_events_belong(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*events\.jsonl: Is a directory"):
        TerminalProgress(tmp_path / "events.jsonl").event("begin")
