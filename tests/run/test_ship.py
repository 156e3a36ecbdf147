"""A recipe that ships: exports beside the model, proven in engines and timed, refused early where they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sentei
from run.stories import write_recipe
from sentei.errors import InputError
from sentei.files import read_json
from sentei.recipe import Recipe
from sentei.report.html import render

SIZES = ["budget.target_engine=gguf", "budget.ffn_multiple=4"]


@pytest.fixture(scope="module")
def recipe(stories_dir: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), stories_dir, data_dir, 2048, 512, windows=2, tasks=[])


def run(recipe: Path, out: Path, *changes: str) -> dict[str, Any]:
    return sentei.run(Recipe.load(recipe, changes), out, overwrite=True)


def test_what_is_shipped_is_proven_and_said(recipe: Path, tmp_path: Path) -> None:
    report = run(recipe, tmp_path / "run", "ship.to=hf", "ship.dtype=F32")
    (shipped,) = report["exports"]
    assert shipped["file"] == "exports/hf" and shipped["parity"]["transformers"]["passed"]
    assert read_json(tmp_path / "run" / "exports" / "hf" / "export.json")["digest"] == shipped["digest"]
    assert [run["export"] for run in shipped["speed"]["runs"]] == ["exports/hf"], "where it is, not where it was made"
    protocol = shipped["speed"]["protocol"]
    assert (protocol["prompt"], protocol["new"]) == (512 - 64 - 1, 64), "the model sees 512 tokens"
    sentei.load(tmp_path / "run" / "exports" / "hf")
    measured = {row["name"]: row for row in report["predictions"]}
    for part in ("prefill", "decode"):
        found = measured[f"{part} speed-up in transformers, F32"]
        assert found["predicted"] > 1 and found["measured"] > 0
    page = render(report)
    assert "Where it runs" in page and "transformers" in page and "max |Δ log p|" in page
    plain = run(recipe, tmp_path / "run")
    assert "exports" not in plain and not (tmp_path / "run" / "exports").exists(), "of another recipe"
    assert "Where it runs" not in render(plain)


@pytest.mark.engine
def test_a_recipe_ends_in_llama_cpp(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    report = run(recipe, tmp_path / "run", *SIZES, "ship.to=[gguf]", "ship.dtype=F32", "ship.speed=false")
    (shipped,) = report["exports"]
    assert shipped["file"] == "exports/model.gguf" and shipped["padding_bytes"] == 0 and shipped["speed"] is None
    assert shipped["parity"]["llama.cpp"]["passed"] and (tmp_path / "run" / "exports" / "model.gguf").is_file()
    assert "llama-server -m exports/model.gguf" in render(report)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["ship.to=gguf"], "ship.to: gguf wants a plan with legal sizes .*'transformers'; set it to 'gguf'"),
        ([*SIZES, "ship.to=nemotron-nas"], "target_engine is 'gguf'; set it to 'mlx'"),
        (["ship.to=guf"], r"unknown export 'guf' \(did you mean 'gguf'\?\)"),
        (["ship.to=hf", "ship.dtype=Q8_0"], "unknown dtype for hf"),
        (["ship.to=[hf, hf]"], "names a route twice"),
        (["ship.to=[]"], "ship.to"),
    ],
)
def test_what_cannot_be_shipped_is_refused_before_any_work(
    recipe: Path, tmp_path: Path, changes: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(recipe, tmp_path / "run", *changes)
    assert not (tmp_path / "run").exists()
