from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentei.data.pools import read_pool
from sentei.models.load import as_loaded
from sentei.recover.capabilities import FEW, came_back, compare, held_out
from sentei.recover.select.damage import score
from sentei.recover.select.selection import Selection
from tiny import tiny_model, tiny_tokenizer


def row(cluster: int, decision: str = "left out", jsd: float | None = 0.2, tokens: int = 10) -> dict[str, Any]:
    return {"cluster": cluster, "decision": decision, "jsd": jsd, "tokens": tokens}


rows = st.builds(
    row, st.integers(0, 3), st.sampled_from(["left out", "selected", "rejected"]), st.none() | st.floats(0, 0.69)
)


@given(table=st.lists(rows, max_size=60), count=st.integers(0, 40), seed=st.integers(0, 9))
def test_the_sample_is_of_free_rows_and_even(table: list[dict[str, Any]], count: int, seed: int) -> None:
    chosen = held_out(table, 4, count, seed)
    free = Counter(r["cluster"] for r in table if r["decision"] == "left out" and r["jsd"] is not None)
    assert all(table[at]["decision"] == "left out" and table[at]["jsd"] is not None for at in chosen)
    assert len(set(chosen)) == len(chosen) == min(count, free.total())
    taken = Counter(table[at]["cluster"] for at in chosen)
    for a in free:
        for b in free:  # a cluster has less than another only where it has no more to give
            assert taken[a] >= taken[b] - 1 or taken[a] == free[a]
    assert chosen == held_out(table, 4, count, seed)


def test_a_known_part_of_the_damage_came_back() -> None:
    rng = np.random.default_rng(0)
    before = rng.uniform(0.1, 0.5, 120)
    left = np.where(np.arange(120) % 2, 0.25, 1.0)  # cluster 1 gets three quarters back, cluster 0 nothing
    after = before * left * rng.uniform(0.95, 1.05, 120)
    table = [row(n % 2, jsd=before[n]) for n in range(120)] + [row(0, "selected")] * 3 + [row(1, "selected")]
    found = came_back(table, ["none", "most"], range(120), after.tolist())
    cells = {c["name"]: c for c in found["capabilities"]}
    assert cells["most"]["came_back"] == pytest.approx(0.75, abs=0.01)
    assert 0.7 < cells["most"]["interval"][0] < cells["most"]["interval"][1] < 0.8
    assert cells["none"]["interval"][0] < 0 < cells["none"]["interval"][1]
    assert (cells["none"]["selected"], cells["none"]["share"]) == (3, 0.75)
    assert found["overall"]["rows"] == 120 and 0.3 < found["overall"]["came_back"] < 0.45
    assert found["overall"]["came_back"] == pytest.approx(1 - after.sum() / before.sum())


def test_more_damage_than_before_is_negative_and_shares_may_be_of_tokens() -> None:
    table = [row(0, jsd=0.1)] * 6 + [row(0, "selected", tokens=30), row(1, "selected", tokens=10)]
    found = came_back(table, ["a", "b"], range(6), [0.2] * 6, in_tokens=True)
    assert found["overall"]["came_back"] == pytest.approx(-1) and found["overall"]["interval"] == pytest.approx(
        [-1, -1]
    )
    assert [c["share"] for c in found["capabilities"]] == [0.75, 0.25]


def test_what_cannot_be_said_is_none() -> None:
    few = FEW - 1
    table = [row(0, jsd=0.1)] * few + [row(1, jsd=0.0)] * 6 + [row(2, "rejected")] + [row(3)] * 6
    after = [0.05] * few + [0.0] * 6 + [float("nan")] * 6
    positions = [at for at, r in enumerate(table) if r["decision"] == "left out"]
    cells = {
        c["name"]: c for c in came_back(table, ["few", "unhurt", "gone", "broken"], positions, after)["capabilities"]
    }
    assert cells["few"]["came_back"] is None and cells["few"]["interval"] is None, "so few may be anything"
    assert cells["unhurt"]["came_back"] is None and cells["unhurt"]["before"]["value"] == 0
    assert cells["gone"]["rows"] == 0 and cells["gone"]["before"]["value"] is None
    assert cells["broken"]["came_back"] is None and cells["broken"]["after"] == {"value": None, "interval": None}
    json.dumps(cells, allow_nan=False)


class Made(Selection):
    """A selection of rows in memory."""

    def scored(self) -> Any:
        return type("Scored", (), {"pool": self.about["rows"]})


def selection(folder: Path, decisions: list[str]) -> Made:
    rng = np.random.default_rng(0)
    raw = [
        {"prompt": "w5 w6", "completion": " ".join(f"w{n}" for n in rng.integers(7, 128, 9))}
        for _ in range(len(decisions))
    ]
    lines = [json.dumps(row(n % 2, decision, 0.3)) for n, decision in enumerate(decisions)]
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    about = {
        "clusters": {"names": ["a", "b"]},
        "scoring": {"length": 64},
        "budget": {"unit": "rows"},
        "rows": read_pool(raw),
    }
    return Made(folder, about, [])


def test_the_damage_after_is_scored_on_the_rows_that_were_left_out(tmp_path: Path) -> None:
    dense, other = (as_loaded(tiny_model(v), tiny_tokenizer(), name=v) for v in ("llama", "llama-tied"))
    made = selection(tmp_path, ["left out", "selected", "rejected", "left out"] * 6)
    same = compare(lambda: dense, lambda: dense, made, tmp_path / "same")
    assert same["overall"]["rows"] == 12 and same["overall"]["after"]["value"] == pytest.approx(0, abs=1e-6)
    assert same["overall"]["came_back"] == pytest.approx(1) and same["notes"] == []
    found = compare(lambda: dense, lambda: other, made, tmp_path / "other")
    from sentei.data.chat import encode

    left = [n for n in range(24) if n % 4 in (0, 3)]
    samples = encode([made.about["rows"].rows[n] for n in left], dense.tokenizer, length=64)
    expected = score(dense.model, other.model, samples, tmp_path / "expected", top=0).jsd
    assert found["overall"]["after"]["value"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert found["overall"]["before"]["value"] == pytest.approx(0.3)


def test_no_row_is_left_and_no_model_is_loaded(tmp_path: Path) -> None:
    def never() -> Any:
        raise AssertionError

    found = compare(never, never, selection(tmp_path, ["selected"] * 8), tmp_path / "work")
    assert found["overall"]["came_back"] is None and "0 rows of the pool were neither" in found["notes"][0]


def test_too_few_rows_are_said(tmp_path: Path) -> None:
    dense = as_loaded(tiny_model(), tiny_tokenizer(), name="tiny")
    made = selection(tmp_path, ["left out"] + ["selected"] * 8)
    (note,) = compare(lambda: dense, lambda: dense, made, tmp_path / "work")["notes"]
    assert note.startswith("1 row of the pool was neither selected nor rejected, too few to say for each of 2")
