"""`sentei report` on what runs, fits and frontiers leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.calling import Result
from report import example, task_example
from sentei.report.build import build

Sentei = Callable[..., Result]


def test_a_fit_and_a_frontier_are_shown_again(sentei: Sentei, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(task_example.fit()))
    shown = sentei("report", tmp_path)
    assert shown.code == 0 and "tiny keeps acc within 1.0 % of the dense model's" in shown.out
    assert f"{tmp_path / 'report.html'} shows it" in shown.out and (tmp_path / "report.html").exists()
    (tmp_path / "report.json").rename(tmp_path / "kept")
    (tmp_path / "frontier.json").write_text(json.dumps(task_example.frontier()))
    shown = sentei("report", tmp_path)
    assert shown.code == 0 and "5 smaller models cut and measured" in shown.out
    assert "<title>" in (tmp_path / "frontier.html").read_text()
    assert sentei("report", tmp_path, "--format", "json").json()["kind"] == "frontier"


def test_a_run_is_shown_again(sentei: Sentei, tmp_path: Path) -> None:
    made = {"recipe": example.recipe(), "profile": example.profile(), "plan": example.plan()}
    report = build(**made, evidence=example.evidence(), seconds={"measure": 1.0})
    (tmp_path / "report.json").write_text(json.dumps(report | {"of a later version": [1]}))
    shown = sentei("report", tmp_path)
    assert shown.code == 0 and "lost 20" in shown.out


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "is no report of run or fit or frontier"),
        ('{"kind": "photo"}', "kind is 'photo'"),
        ('{"schema_version": 1}', "Field required; found: schema_version"),
        ('{"kind": "fit", "fit": NaN}', "expected a finite number, got nan"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_report_is_one_line(sentei: Sentei, tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "report.json").write_text(text)
    shown = sentei("report", tmp_path)
    assert shown.code == 2 and shown.err.count("\n") == 1 and why in shown.err
    assert not (tmp_path / "report.html").exists()


def test_a_directory_with_nothing_to_show(sentei: Sentei, tmp_path: Path) -> None:
    assert "it holds no run, fit or frontier" in sentei("report", tmp_path).err
    (tmp_path / "report.json").mkdir()
    shown = sentei("report", tmp_path)
    assert shown.code == 2 and "report.json is a directory, expected a file" in shown.err


def test_numbers_that_no_library_holds(sentei: Sentei, tmp_path: Path) -> None:
    wanted = "--seed is a number that does not fit in 64 bits; expected at most 9223372036854775807"
    shown = sentei("plan", tmp_path, "--sparsity", "0.2", "--seed", 2**64, "--out", tmp_path / "p.json")
    assert shown.code == 2 and wanted in shown.err
    shown = sentei("fit", "m", "--task", "t.yaml", "--tolerance", "nan", "--out", tmp_path / "run")
    assert shown.code == 2 and "--tolerance is nan, expected a finite number" in shown.err
