"""The figures of README.md are those of the results and of docs/benchmarks.md."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def readme(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("readme")
    for name in set(sys.modules) - before:  # `common`, `tables`: names that others may want
        if getattr(sys.modules[name], "__file__", None) and "benchmarks" in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_figures_are_written_from_the_results(readme: Any) -> None:
    assert readme.written(README) == README, "run python benchmarks/readme.py"
    assert README.count(readme.BEGIN) == README.count(readme.END) == 1


def test_every_ratio_stands_in_the_benchmarks(readme: Any) -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    ratios = re.findall(r"×\d+\.\d\d", readme.figures())
    assert len(ratios) == 8 and all(ratio in page for ratio in ratios)
