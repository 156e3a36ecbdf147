from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from sentei.data.task_file import PRESETS, TaskFile
from sentei.errors import InputError


def write(folder: Path, text: str) -> Path:
    (folder / "task.yaml").write_text(text)
    return folder / "task.yaml"


def test_a_file_is_read_and_its_paths_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "rows.jsonl").touch()
    monkeypatch.chdir(tmp_path / "sub")
    task = TaskFile.load(
        write(
            tmp_path,
            "name: support\ndata: rows.jsonl\ninput: \"{text}\\nIntent:\"\ntarget: ' {intent}'\n"
            "metric: python:judge.py:score\nsplits: {search: 30}\nseed: 4\n",
        )
    )
    assert Path(task.data) == tmp_path / "rows.jsonl" and task.metric == f"python:{tmp_path / 'judge.py'}:score"
    assert task.splits.as_dict() == {"calibrate": 500, "search": 30, "confirm": 300, "test": 300}
    assert task.input == "{text}\nIntent:" and task.templates is not None and task.max_new_tokens is None
    assert pickle.loads(pickle.dumps(task)) == task, "workers get it"
    (tmp_path / "sub" / "here.jsonl").touch()
    assert Path(TaskFile.load(write(tmp_path, "name: x\ndata: here.jsonl")).data) == tmp_path / "sub" / "here.jsonl"
    assert TaskFile.load(write(tmp_path, "name: x\ndata: hf:a:b:c")).data == "hf:a:b:c"
    assert TaskFile.load(write(tmp_path, "name: x\ndata: a\nmetric: python:json.loads")).metric == "python:json.loads"


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_needs_data_only_and_can_be_changed(preset: str, tmp_path: Path) -> None:
    task = TaskFile.load(write(tmp_path, f"preset: {preset}\ndata: x.jsonl"))
    assert task.name == preset and TaskFile.model_validate(task.model_dump()) == task
    changed = TaskFile.load(write(tmp_path, f"preset: {preset}\ndata: x.jsonl\nname: y\nsplits: {{test: 7}}"))
    assert changed.splits == task.splits.model_copy(update={"test": 7})
    assert changed == task.model_copy(update={"name": "y", "splits": changed.splits})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "task.yaml: expected keys like `name:` and `data:`, got list"),
        ("name: [", "task.yaml:1:8: not YAML"),
        ("name: x", "task.yaml: data: Field required"),
        ("name: x\ndata: y\nmetrik: acc", "task.yaml: metrik: unknown key (did you mean 'metric'?)"),
        ("name: x\ndata: y\nsplits: {serch: 3}", "splits.serch: unknown key (did you mean 'search'?)"),
        ("name: x\ndata: y\nsplits: {search: 0}", "splits.search: Input should be greater than or equal to 1"),
        (
            "name: x\ndata: y\nmetric: acc_nrm",
            "metric: unknown metric 'acc_nrm' (did you mean 'acc_norm'?); known: acc,",
        ),
        ("name: x\ndata: y\nmetric: python:score", "metric: 'python:score' is no function; expected python:module.f"),
        ("name: x\ndata: y\ntarget: ' {a}'", "there is 'target' but no 'input'"),
        ("name: x\ndata: y\ninput: '{a'\ntarget: ' {a}'", "input: there is a single '{' at character 1"),
        ("name: x\ndata: y\ninput: '{a}'\ntarget: ' {a[b]}'", "target: {a[b]} is not understood"),
        ("name: x\ndata: y\naliases: a[*]\nmetric: f1", "'aliases' needs templates and a metric that judges an answer"),
        ("preset: [rte]\ndata: y", "unknown preset \"['rte']\""),
        ("preset: rtee\ndata: y", "unknown preset 'rtee' (did you mean 'rte'?); known: intent, pubmedqa"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        TaskFile.load(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.yaml does not exist"):
        TaskFile.load(tmp_path / "no.yaml")
    with pytest.raises(InputError, match="is a directory, expected a file"):
        TaskFile.load(tmp_path)
