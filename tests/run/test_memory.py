"""A recipe with `memory`: every stage reads models block by block, and what comes out is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sentei
from run.stories import write_recipe
from sentei.errors import InputError
from sentei.files import read_json
from sentei.recipe import Recipe
from sentei.stages.base import STAGES

PLENTY = "memory=64GB"


@pytest.fixture(scope="module")
def recipe(stories_dir: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rows = (data_dir / "eval" / "piqa.val.jsonl").read_text().splitlines()[:6]
    (folder / "piqa.jsonl").write_text("\n".join(rows))
    return write_recipe(folder, stories_dir, data_dir, 2048, 512, windows=4, tasks=["piqa.jsonl"])


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def evidence(out: Path) -> Any:
    found = read_json(out / "stages" / "04-prove" / "evidence.json")
    for model in found["models"]:
        del model["memory"]["peak_rss_bytes"], model["memory"]["disk_bytes"]  # the latter: of headers of more shards
    return found


def test_the_same_model_evidence_and_exports(recipe: Path, tmp_path: Path) -> None:
    more = ["prune.method=flap", "prune.refine=none", "budget.target_engine=uniform", "ship={to: hf, speed: false}"]
    more.append("measure.own_text=0")  # a model that is read block by block writes none
    one = sentei.run(Recipe.load(recipe, more), tmp_path / "whole")
    other = sentei.run(Recipe.load(recipe, [*more, PLENTY]), tmp_path / "streamed")
    for place in ("model", "exports/hf"):
        a, b = (weights(tmp_path / out / place) for out in ("whole", "streamed"))
        assert a and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a), place
    assert evidence(tmp_path / "whole") == evidence(tmp_path / "streamed")
    assert one["models"]["pruned"]["tasks"] == other["models"]["pruned"]["tasks"]
    assert (
        not list((tmp_path / "streamed").rglob("block-*.safetensors.*")) and not (tmp_path / "streamed/work").exists()
    )
    again = sentei.run(Recipe.load(recipe, more), tmp_path / "streamed", overwrite=True)
    assert again["models"] == other["models"], "nothing hangs on the memory, so nothing is done again"


def test_auto_cannot_try_plans_in_a_model_that_is_not_in_memory(recipe: Path) -> None:
    judged, unjudged, other = (Recipe.load(recipe, more) for more in ([], [PLENTY], ["prune.method=flap", PLENTY]))
    reads, measured = STAGES["plan"].reads, STAGES["measure"].reads
    assert measured(judged) != measured(unjudged), "it writes no text"
    assert reads(judged) != reads(unjudged), "another plan, so the stage is another"
    assert reads(other) == reads(other.model_copy(update={"memory": None}))


def test_training_that_does_not_fit_is_refused_before_the_start(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sentei.recover.tune.memory._PER_PARAMETER", 10**6)
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(f'{{"prompt": "a {i}", "completion": "b {i} c"}}\n' for i in range(64)))
    wanted = Recipe.load(recipe, [PLENTY, f"recover={{pool: {pool}, budget: 0.5, tokens: 512}}"])
    with pytest.raises(InputError, match=r"tune needs about .* --memory allows 64.00 GB; it holds the whole cut model"):
        sentei.run(wanted, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_little_for_the_first_pass_is_refused_before_the_start(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs about .* GB of memory, --memory allows 0.05 GB"):
        sentei.run(Recipe.load(recipe, ["memory=50MB"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["much", "-1GB", "0"])
def test_no_size(recipe: Path, value: str) -> None:
    with pytest.raises(InputError, match=r"memory.*no size of memory; expected one like 4GB"):
        Recipe.load(recipe, [f"memory={value}"])
