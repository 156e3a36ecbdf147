"""A tiny model, its calibration text and its pool as files, and a death between two stages of accel."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sentei.accel import loop
from sentei.models.save import save
from tiny import tiny_model, tiny_tokenizer


def words(rng: np.random.Generator, count: int) -> str:
    """So many words of the tiny tokenizer."""
    return " ".join(f"w{n}" for n in rng.integers(6, 128, count))


def write_files(folder: Path) -> None:
    """Writes model/, text.jsonl and pool.jsonl."""
    rng = np.random.default_rng(0)
    save(tiny_model(), folder / "model", tokenizer=tiny_tokenizer())
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": words(rng, 60)}) + "\n" for _ in range(30)))
    pool = [{"prompt": words(rng, 5), "completion": words(rng, 12)} for _ in range(120)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pool))


@contextlib.contextmanager
def dies_in_stage_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What runs within is stopped when the second stage is cut, and not yet trained."""
    real, calls = loop.load_state, [0]

    def dying(path: Path) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return real(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "load_state", dying)
        yield
