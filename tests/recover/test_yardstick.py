"""Which model is kept: by rows of the pool and other text together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sentei.models.load import as_loaded
from sentei.progress import Progress
from sentei.recover.capabilities import change
from sentei.recover.yardstick import ENOUGH, WINDOWS, judge, on_text
from tiny import tiny_model, tiny_tokenizer


def pairs(ratio: float, count: int = 64, spread: float = 0.02) -> list[tuple[float, float]]:
    rng = np.random.default_rng(0)
    before = rng.uniform(0.1, 0.3, count)
    return list(
        zip(before.tolist(), (before * ratio * rng.uniform(1 - spread, 1 + spread, count)).tolist(), strict=True)
    )


@pytest.mark.parametrize(
    ("rows", "text", "kept"),
    [
        (0.8, 0.9, "recovered"),
        (0.7, 1.2, "pruned"),  # forgets, however much nearer it is on the pool
        (1.2, 0.7, "pruned"),
        (1.06, 1.01, "pruned"),
    ],
)
def test_the_better_one_is_kept(rows: float, text: float, kept: str) -> None:
    verdict = judge(change(pairs(rows)), change(pairs(text)))
    assert verdict["kept"] == kept
    assert (
        f"{'fell' if rows < 1 else 'grew'} by" in verdict["reason"] and "held-out rows of the pool" in verdict["reason"]
    )


def test_few_samples_decide_nothing() -> None:
    few = change(pairs(1.5, ENOUGH - 1))
    assert judge(few, change(pairs(0.9)))["kept"] == "recovered", "the text alone decides"
    assert judge(few, change(pairs(1.1)))["kept"] == "pruned"
    assert "other text" in judge(few, change(pairs(1.1)))["reason"] and "held-out" not in judge(few, few)["reason"]
    unknown = judge(few, few)
    assert unknown["kept"] == "recovered" and unknown["reason"].startswith("too few rows to say")


def test_predictions_that_are_no_numbers_are_not_kept() -> None:
    assert judge(change([(0.1, float("nan"))] * 20), change(pairs(0.5)))["kept"] == "pruned"


def test_the_distance_on_text_is_of_windows_behind_the_calibration(tmp_path: Path) -> None:
    dense, near, far = (as_loaded(tiny_model(), tiny_tokenizer()) for _ in range(3))
    with torch.no_grad():
        far.model.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    words = [" ".join(f"w{n}" for n in np.random.default_rng(0).integers(6, 128, 6000))]
    found = on_text(lambda: dense, lambda: far, lambda: near, words, tmp_path, skip=512, progress=Progress())
    assert found["rows"] == WINDOWS and found["before"]["value"] > 0.01 and found["after"]["value"] < 1e-6
    assert found["came_back"] == pytest.approx(1, abs=1e-3) and judge(found, found)["kept"] == "recovered"
