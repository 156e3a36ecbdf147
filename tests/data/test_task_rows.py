from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sentei.data.splits import split
from sentei.data.task_file import PRESETS, TaskFile
from sentei.data.task_rows import chance, read_rows
from sentei.errors import InputError


def task(folder: Path, rows: list[dict[str, Any]], **more: Any) -> TaskFile:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TaskFile(name="t", data=str(path), **more)


QUIZ = [{"context": "q", "choices": ["no", "yes"], "label": 1}, {"context": "r", "choices": ["a", "b"], "label": 0}]
UTTERANCES = [{"text": f"say {i}", "intent": name} for i, name in enumerate(["stop", "go", "stop"])]
FORM = {"input": "{text}\nIntent:", "target": " {intent}"}


def test_rows_with_choices(tmp_path: Path) -> None:
    first, second = read_rows(task(tmp_path, QUIZ, metric="acc_norm"))
    assert (first.context, first.choices, first.label, first.target) == ("q", (" no", " yes"), 1, " yes")
    assert (first.id, second.id, second.place) == ("0", "1", f"{tmp_path / 'rows.jsonl'}:2")
    assert first.raw == QUIZ[0]
    written = read_rows(task(tmp_path, QUIZ, metric="exact_match"))[0]
    assert (written.choices, written.label, written.target) == ((), -1, " yes")


def test_templates_with_a_choice_metric_choose_among_the_targets(tmp_path: Path) -> None:
    rows = read_rows(task(tmp_path, UTTERANCES, **FORM))
    assert {row.choices for row in rows} == {(" go", " stop")} and [row.label for row in rows] == [1, 0, 1]
    assert rows[0].context == "say 0\nIntent:" and rows[0].target == " stop"
    assert chance(rows) == pytest.approx(2 / 3)


def test_templates_with_another_metric_ask_for_an_answer(tmp_path: Path) -> None:
    data = [{**row, "also": ["halt", "wait"]} for row in UTTERANCES]
    rows = read_rows(task(tmp_path, data, **FORM, metric="exact_match", aliases="also[*]"))
    assert rows[0].choices == () and rows[0].label == -1 and rows[0].aliases == ("halt", "wait")


def test_ids_are_the_rows_own_where_they_differ(tmp_path: Path) -> None:
    named = [{**row, "id": name} for row, name in zip(QUIZ, ("x", 7), strict=True)]
    assert [row.id for row in read_rows(task(tmp_path, named))] == ["x", "7"]
    assert [row.id for row in read_rows(task(tmp_path, [{**row, "id": 7} for row in QUIZ]))] == ["0", "1"]
    assert [row.id for row in read_rows(task(tmp_path, [named[1], QUIZ[0]]))] == ["0", "1"]


def test_chance_of_different_choices(tmp_path: Path) -> None:
    more = {"context": "s", "choices": ["a", "b", "c", "d"], "label": 0}
    assert chance(read_rows(task(tmp_path, [QUIZ[0], QUIZ[1], more]))) == pytest.approx((0.5 + 0.5 + 0.25) / 3)


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{**QUIZ[0], "label": 2}], {}, "rows.jsonl:1: label 2 is out of range for 2 options (0 to 1)"),
        ([{"contexts": ["a", "b"], "continuation": "c", "label": 0}], {}, "'context' (found: contexts, continuation"),
        ([{"context": "a", "choices": ["b", 3], "label": 0}], {}, "expected at least two non-empty strings"),
        ([{"text": "a"}], {}, "or `input:` and `target:` in the task file"),
        (
            [*UTTERANCES, {"text": "a", "intnt": "b"}],
            FORM,
            "rows.jsonl:4: there is no 'intent' (did you mean 'intnt'?)",
        ),
        ([{"text": "a", "intent": " "}], FORM, "rows.jsonl:1: the target ' {intent}' is empty here"),
        (UTTERANCES[:1], FORM, "all 1 rows have the target ' stop', so there is nothing to choose"),
        ([{"text": "a", "intent": i} for i in range(300)], FORM, "300 rows have 300 of them, expected at most 256"),
        ([], {}, "rows.jsonl is empty: there is no row in it"),
    ],
)
def test_bad_rows_are_named(rows: Any, more: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read_rows(task(tmp_path, rows, **more))


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_rows(TaskFile(name="t", data=str(tmp_path / "no.jsonl")))


FILES = {
    "intent": "bitext_support.train.jsonl",
    "pubmedqa": "pubmedqa_labeled.jsonl.gz",
    "hotpotqa": "hotpotqa.dev.jsonl.gz",
    "rte": "rte.train.jsonl",
    "arc": "arc_challenge.train.jsonl",
    "openbookqa": "openbookqa.train.jsonl",
    "sentiment": "amazon_polarity_200.jsonl",
}
CHANCE = {"intent": 252 / 6480, "pubmedqa": 0.552, "rte": 1249 / 2490, "openbookqa": 0.25, "sentiment": 0.555}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_read_the_public_files(preset: str, data_dir: Path) -> None:
    path = data_dir / "tasks" / FILES[preset]
    if not path.exists():
        pytest.skip(f"needs {path}")
    made = TaskFile(preset=preset, data=str(path))  # type: ignore[call-arg]
    rows = read_rows(made)
    parts = split(made, rows)
    assert [len(parts.calibrate), len(parts.search), len(parts.confirm), len(parts.test)] == list(
        made.splits.as_dict().values()
    )
    assert all(row.target.startswith(" ") and not row.context.endswith(" ") for row in rows)
    assert chance(rows) == pytest.approx(CHANCE.get(preset, chance(rows)))
    assert (preset == "hotpotqa") == (not rows[0].choices)
