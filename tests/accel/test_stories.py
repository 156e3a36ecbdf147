"""What holds on a trained model and real text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sentei.accel.loop import accel
from sentei.accel.settings import Settings
from sentei.data.pools import Pool, read_pool
from sentei.data.text import read_texts
from sentei.models.load import Loaded, load
from sentei.plan import Budget


@pytest.fixture(scope="module")
def dense(stories_dir: Path) -> Loaded:
    return load(stories_dir, dtype="float32")


@pytest.fixture(scope="module")
def pool(data_dir: Path) -> Pool:
    with gzip.open(data_dir / "instruct" / "alpaca_52k.part3.jsonl.gz", "rt") as file:
        return read_pool([json.loads(next(file)) for _ in range(300)])


@pytest.mark.parametrize(("train", "rate"), [("full", 3e-4), ("lora+sparse", 2e-3)])
def test_training_brings_the_model_nearer_after_every_cut(
    dense: Loaded, pool: Pool, data_dir: Path, tmp_path: Path, train: str, rate: float
) -> None:
    settings: dict[str, Any] = {"stages": 2, "tokens": 20_000, "train": train, "learning_rate": rate}
    small = {"batch_tokens": 256, "calibration": 2048, "gradient_tokens": 512, "budget_params": "5%"}
    texts = read_texts(str(data_dir / "lm" / "c4_demo.jsonl"))
    family = accel(dense, texts, pool, Budget(sparsity=0.3), Settings(**settings, **small), tmp_path)
    for record in family.stages:
        first, last = record["curve"][0]["heldout"], record["curve"][-1]["heldout"]
        if record["stage"] > 1:  # before that, the optimiser has few steps behind it
            assert last < 0.9 * first, (first, last)
    assert family.stages[-1]["kv_groups"][0] < family.stages[-1]["kv_groups"][1]
