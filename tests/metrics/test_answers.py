from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentei.data.task_rows import TaskRow
from sentei.errors import InputError
from sentei.metrics.answers import f1, metric_of, normalise


def row(target: str, *aliases: str, **raw: Any) -> TaskRow:
    return TaskRow("0", "q", (), -1, target, aliases, raw, "f:3")


def test_aggregates() -> None:
    score, weight = np.array([0.0, 1.0]), np.array([3.0, 1.0])
    assert metric_of("acc").aggregate(score) == 0.5 and metric_of("f1").aggregate(score, np.ones(2)) == 0.5
    ppl = metric_of("perplexity")
    assert ppl.aggregate(score, weight) == pytest.approx(math.exp(0.25)) and not ppl.higher
    assert ppl.aggregate(np.array([np.inf, 1.0]), weight) == math.inf
    with pytest.raises(InputError, match=r"unknown metric 'ac' \(did you mean 'acc'\?\)"):
        metric_of("ac")


@pytest.mark.parametrize(
    ("said", "asked", "score"),
    [
        ("The cat, sat.", "cat sat", 1.0),
        ("a big cat", "the cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("the", "a", 1.0),
        ("", "cat", 0.0),
        ("cat cat dog", "cat", 0.5),
    ],
)
def test_f1(said: str, asked: str, score: float) -> None:
    assert f1(said, asked) == pytest.approx(score) == f1(asked, said)


@given(st.text("aTx .,!\n"), st.text("aTx .,!\n"))
def test_f1_is_a_share_and_one_for_what_reads_alike(a: str, b: str) -> None:
    assert 0 <= f1(a, b) <= 1
    assert (f1(a, b) == 1) == (sorted(normalise(a).split()) == sorted(normalise(b).split()))


def test_the_best_of_several_answers_counts() -> None:
    rows = [row(" New York", "NYC", "the Big Apple")]
    exact = metric_of("exact_match", rows)
    assert exact.kind == "text" and exact.judge is not None
    assert [exact.judge(said, rows[0]) for said in ("new york", "Big apple!", "York")] == [1, 1, 0]
    judge = metric_of("f1").judge
    assert judge is not None and judge("apple", rows[0]) == pytest.approx(2 / 3)
    assert metric_of("exact_match", [row(" x")]).kind == "target"


SOURCE = """
def half(prediction, row):
    row["seen"] = True
    return 0.5 if row["k"] == prediction else 1
def breaks(prediction, row): raise KeyError("no\\nsuch")
def nan(prediction, row): return float("nan")
def none(prediction, row): return None
def text(prediction, row): return "1"
constant = 3
"""


def test_python_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judging.py").write_text(SOURCE)
    file, one = f"python:{tmp_path / 'judging.py'}:", row(" x", k="yes")
    judge = metric_of(file + "half").judge
    assert judge is not None and judge("yes", one) == 0.5 and judge("no", one) == 1.0
    assert "seen" not in one.raw, "a function gets a copy of the row"
    for name, message in (
        (
            "breaks",
            "f:3: the metric breaks raised KeyError: 'no\\nsuch', for the prediction 'yes'; mend the function",
        ),
        ("nan", "f:3: the metric nan returned nan, expected a finite number, for the prediction 'yes'"),
        ("none", "f:3: the metric none returned None"),
        ("text", "f:3: the metric text returned '1'"),
    ):
        judge = metric_of(file + name).judge
        assert judge is not None
        with pytest.raises(InputError, match=re.escape(message)):
            judge("yes", one)
    monkeypatch.syspath_prepend(tmp_path)
    assert metric_of("python:judging.half").kind == "text"


def test_functions_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "judging.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def f(:")
    for name, message in (
        ("python:no_such_module.f", "no_such_module cannot be imported: ModuleNotFoundError: No module named"),
        (f"python:{tmp_path / 'none.py'}:f", "cannot be imported: FileNotFoundError"),
        (f"python:{tmp_path / 'notes.txt'}:f", "cannot be imported: ImportError: no Python file"),
        (f"python:{tmp_path / 'broken.py'}:f", "cannot be imported: SyntaxError"),
        (f"python:{tmp_path / 'judging.py'}:constant", "has no function 'constant'"),
        ("python:json.lods", "json has no function 'lods'"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            metric_of(name)
