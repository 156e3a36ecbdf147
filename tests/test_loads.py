"""What `sentei.files.loads` lets through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sentei.errors import InputError
from sentei.files import DEPTH, JSONError, check_value, loads, read_json


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' + "9" * 5000 + "}", "thousands of digits"),
        (nested(DEPTH + 1), "nested too deeply, expected at most 100 levels"),
        (nested(100_000), "nested too deeply"),
        ('{"a":' * 200 + "1" + "}" * 200, "nested too deeply"),
        (r'{"a": ["x\ud83d"]}', r"half a surrogate pair \(\\ud83d\)"),
        (r'{"\udC00": 1}', r"half a surrogate pair \(\\udc00\)"),
        ('"\ud800"', "half a surrogate pair"),
    ],
)
def test_values_that_would_fail_later_are_refused(text: str, message: str) -> None:
    with pytest.raises(JSONError, match=message):
        loads(text)


def test_the_place_of_a_mistake_is_told() -> None:
    with pytest.raises(JSONError, match="Expecting value") as error:
        loads('{\n "a": }')
    assert (error.value.line, error.value.column) == (2, 7)


@pytest.mark.parametrize(
    "value",
    ["😀", "\\ud83d", {"a": [1, 2.5, None, True, "x" * 5000]}, [[]] * 1000, json.loads(nested(DEPTH)), 10**18],
)
def test_what_is_data_comes_back(value: Any) -> None:
    assert loads(json.dumps(value)) == value
    check_value(value)


def test_files_are_read_by_the_same_rules(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": ' + "9" * 5000 + "}")
    with pytest.raises(InputError, match=r"x\.json cannot be used: a number has thousands of digits"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{\n "a": }')
    with pytest.raises(InputError, match=r"x\.json:2:7 is not JSON: Expecting value"):
        read_json(tmp_path / "x.json")
