"""What a run says about its time and memory before it works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sentei import estimate
from sentei.models.load import Loaded
from sentei.recipe import Recipe
from sentei.stages.base import STAGES
from tiny import tiny_model


def recipe(tmp_path: Path, **more: Any) -> Recipe:
    (tmp_path / "text.txt").write_text("word " * 8000)  # 40,000 letters
    (tmp_path / "rows.jsonl").write_text('{"context": "12345678", "choices": ["1234", "5678"], "label": 0}\n' * 30)
    values = {"model": "m", "data": "text.txt", "budget": {"sparsity": 0.2}, **more}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return Recipe.load(tmp_path / "recipe.yaml")


def test_stages_count_what_they_read(tmp_path: Path) -> None:
    prove = {"texts": ["text.txt"], "tasks": ["rows.jsonl"], "windows": 2, "window": 100, "limit": 10, "speed": False}
    measure = {"tokens": 1000, "window": 128, "gradient_tokens": 100}
    short = recipe(tmp_path, prove=prove, measure=measure, prune={"method": "numerical"})
    graded = estimate.GRADIENT * 100
    read = 2 * 1000  # as much is the model's own
    assert STAGES["measure"].tokens(short) == estimate.MEASURE * read + graded + estimate.WRITE * 1000
    assert STAGES["cut"].tokens(short) == estimate.CUT * read
    none = recipe(tmp_path, measure={**measure, "own_text": 0})
    assert STAGES["measure"].tokens(none) == estimate.MEASURE * 1000 + graded
    streamed = recipe(tmp_path, measure=measure, memory="4GB")
    assert STAGES["measure"].tokens(streamed) == estimate.MEASURE * 1000 + graded, "read block by block it writes none"
    assert STAGES["plan"].tokens(short) == 0, "only auto reads text to decide"
    assert STAGES["prove"].tokens(short) == 2 * (200 + 10 * 16 / estimate.LETTERS), "dense and pruned"
    long = recipe(tmp_path, prove={**prove, "windows": None}, recover={"pool": "rows.jsonl", "tokens": 5000})
    assert STAGES["cut"].tokens(long) == estimate.CUT * 2 * 10_000, "there is no more text"
    assert STAGES["tune"].tokens(long) == estimate.TUNE * 5000
    timed = recipe(tmp_path, prove={**prove, "speed": True}, ship={"to": "hf"})
    assert STAGES["prove"].tokens(timed) == STAGES["prove"].tokens(short) + 2 * 6 * (512 + 32 * estimate.DECODE)
    assert STAGES["ship"].tokens(timed) > 2 * 6 * (512 + 64 * estimate.DECODE)
    assert STAGES["prove"].tokens(long) == 3 * (10_000 + 10 * 16 / estimate.LETTERS)


def test_the_sentence_names_time_by_stage_and_memory() -> None:
    model = tiny_model("llama", num_hidden_layers=2)
    said = estimate.estimate(Loaded(model, None, "tiny", ""), {"measure": 1e9, "plan": 0.0, "cut": 3e9}, 500.0)
    assert re.match(r"about .+ at 500 tokens/s \(measure .+, cut .+\), and at least 0.0 GB", said)
    assert "plan" not in said
    weights = 4 * sum(p.numel() for p in model.parameters())
    grams = 4 * 4 * 42**2 + (4 + 13) * 48**2  # of one block: no other is in memory with it
    assert estimate._memory(Loaded(model, None, "tiny", "")) == pytest.approx(2 * weights + grams)


def test_ranking_grows_with_the_cube_of_the_widest_part() -> None:
    narrow, wide = (
        Loaded(tiny_model("llama", num_hidden_layers=2, intermediate_size=width), None, "tiny", "")
        for width in (400, 1600)
    )
    assert 0 < 20 * estimate.inversions(narrow) < estimate.inversions(wide)


def test_the_pace_is_measured() -> None:
    assert estimate.pace_of(Loaded(tiny_model("llama", num_hidden_layers=2), None, "tiny", "")) > 100
