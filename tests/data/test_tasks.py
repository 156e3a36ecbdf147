from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sentei.data.tasks import read_task
from sentei.errors import InputError

GOOD = {"context": "a", "choices": ["b", "c"], "label": 1}
PARTIAL = {"contexts": ["a", "b"], "continuation": "c", "label": 0}


def test_rows_keep_what_is_scored(tmp_path: Path) -> None:
    path = tmp_path / "piqa.val.jsonl"
    path.write_text(json.dumps({"task": "piqa", "id": 3, **GOOD}) + "\n\n")
    task = read_task(path)
    assert (task.name, task.rows, task.partial) == ("piqa.val", [GOOD], False)
    path.write_text(json.dumps({**PARTIAL, "choices": ["x", "y"]}))
    assert read_task(path).rows == [PARTIAL] and read_task(path).partial


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "a", "label": 0}, r"there is no 'choices' \(found: context, label\)"),
        ({**GOOD, "label": 2}, r"label 2 is out of range for 2 options \(0 to 1\)"),
        ({**GOOD, "label": True}, "'label' is bool, expected int"),
        ({**GOOD, "choices": ["a", ""]}, "expected at least two non-empty strings"),
        ({**GOOD, "choices": ["a"]}, "expected at least two non-empty strings"),
        (PARTIAL, "there is no 'context'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"t\.jsonl:2: {message}"):
        read_task(path)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"t\.jsonl is empty"):
        read_task(tmp_path / "t.jsonl")
