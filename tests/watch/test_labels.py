"""Labels: what is read, what is refused, and when they show harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sentei.errors import InputError
from sentei.watch.labels import Labels, groups_of, harm, read_labels, told


def read(folder: Path, *rows: Any, strict: bool = False) -> Labels:
    path = folder / "feedback.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_labels(path, ["a", "b", "1"], strict=strict)


def test_what_is_read(tmp_path: Path) -> None:
    bad = [{"id": "b"}, {"label": 1}, {"id": "b", "label": 2}, {"id": "b", "score": "good"}, "{"]
    found = read(tmp_path, {"id": "a", "label": True}, {"id": 1, "score": 0.25}, {"id": "a", "label": False}, *bad)
    assert found.values == {"a": 1.0, "1": 0.25} and found.duplicates == 1 and found.skipped.count == 5
    assert found.of(["1", "z", "a"]).tolist()[::2] == [0.25, 1.0] and np.isnan(found.of(["z"])).all()
    assert any("labels of an id that has one: 1, dropped" in note for note in found.notes())
    assert "feedback.jsonl:4 has no label or score" in found.skipped.examples[0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "has no label: it is empty"),
        ([{"id": "a"}], "has no label: .*feedback.jsonl:1 has no label or score; found: id"),
        ([{"label": 1}], "feedback.jsonl:1 has no id"),
        ([{"id": "a", "label": -1}], "is -1, expected true, false, or a number from 0 to 1"),
        ([{"id": "z", "label": 1}], "none of 1 labels is of a request that is judged .*'z'"),
    ],
)
def test_what_is_refused(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(tmp_path, *rows)
    with pytest.raises(InputError, match="has no label or score"):
        read(tmp_path, {"id": "a", "label": 1}, {"id": "b"}, strict=True)


def test_harm_is_told_where_it_is_clear() -> None:
    rng = np.random.default_rng(0)
    new = np.arange(400) < 80
    groups = groups_of(True, new, [1], np.arange(400) % 2, ["x", "y"])
    assert list(groups) == ["the new requests", "the requests of 'y'"]
    worse = np.where(new, rng.random(400) < 0.4, rng.random(400) < 0.8).astype(float)
    assert [action for action, _ in harm(worse, groups)] == ["re-tune", "nothing"]
    few = np.where(np.arange(400) % 40 == 0, worse, np.nan)
    assert [action for action, _ in harm(few, groups)] == ["nothing", "nothing"] and "too few" in harm(few, groups)[0][
        1
    ]
    alarms = sum(harm((rng.random(400) < 0.8).astype(float), groups)[0][0] == "re-tune" for _ in range(200))
    assert alarms <= 16, "binomial of 200 at 2.5 %, for there are two groups: above 16 in less than 0.01 %"


def test_means_have_intervals_from_ten_labels_on() -> None:
    assert told(np.full(4, np.nan)) is None
    assert told(np.array([1.0, np.nan, 0.0])) == {"count": 2, "mean": 0.5, "interval": None}
    found = told(np.repeat([0.0, 1.0], 20))
    assert found is not None and found["interval"] == pytest.approx([0.3520, 0.6480], abs=1e-4)
