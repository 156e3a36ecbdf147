from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.prove import speed as module
from sentei.prove.memory import memory
from sentei.prove.speed import speed
from tiny import make_plan, random_blocks, tiny_model


def test_models_take_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = tiny_model(), tiny_model("qwen3")
    runs: list[Any] = []

    def run(model: Any, ids: Any, new: int) -> tuple[float, float]:
        runs.append(model)
        warming = len(runs) <= 2
        return (99.0, 99.0) if warming else (1.0, 2.0) if model is fast else (2.0, 2.0)

    monkeypatch.setattr(module, "_run", run)
    found = speed({"fast": fast, "slow": slow}, prompt=10, new=4, batch=3, rounds=3)
    assert runs == [fast, slow] * 4
    assert found["fast"]["prefill_tokens_per_s"] == 30 and found["fast"]["decode_tokens_per_s"] == 6
    assert found["slow"]["prefill_ratio"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert found["fast"]["prefill_ratio"]["median"] == found["slow"]["decode_ratio"]["median"] == 1


def test_real_runs_give_real_figures() -> None:
    found = speed({"a": tiny_model()}, prompt=8, new=2, rounds=2)["a"]
    assert found["prefill_tokens_per_s"] > 0 and found["decode_tokens_per_s"] > 0
    assert (found["prompt"], found["new"], found["batch"], found["rounds"]) == (8, 2, 1, 2)
    with pytest.raises(InputError, match="rounds is 0"):
        speed({"a": tiny_model()}, rounds=0)


@pytest.mark.parametrize("variant", ["llama", "llama-tied", "qwen2"])
def test_memory_is_what_the_plan_predicts(variant: str, tmp_path: Path) -> None:
    dense = tiny_model(variant)
    shape = family_of(dense.config).shape(dense.config)
    plan = make_plan(dense, random_blocks(shape, seed=4))
    (tmp_path / "a.safetensors").write_bytes(b"12345")
    (tmp_path / "tune.json").write_text("times, which differ from run to run")
    for model, size in ((dense, shape), (prune(dense, plan), plan.shape())):
        found = memory(model, batch=2, context=16, directory=tmp_path)
        assert found["weights_bytes"] == 4 * size.params()
        assert found["kv_cache_bytes"] == size.cache_bytes(2, 16, itemsize=4)
        assert found["disk_bytes"] == 5 and found["peak_rss_bytes"] > found["weights_bytes"]
    assert "disk_bytes" not in memory(dense, context=4)
