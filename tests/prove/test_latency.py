from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.surgery import skeleton
from sentei.inference.forward import evaluating, final_hidden, logits
from sentei.plan import BlockShape, ModelShape
from sentei.prove import latency
from sentei.prove import latency_probes as probes
from sentei.prove.latency import build, table_for
from sentei.prove.latency_table import Grid, LatencyTable, Times
from tiny import tiny_model

PROMPT, BATCH = 12, 2


def operations(call: Callable[[], object]) -> float:
    """A stopwatch that no machine disturbs: floating-point operations of matrix products."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def plain_model(variant: str = "llama") -> Any:
    model = tiny_model(variant)
    model.set_attn_implementation("eager")  # counted, where the fused one is not on CPUs
    return model


def reshaped(shape: ModelShape, *blocks: dict[str, Any], storage: Any = "factors") -> ModelShape:
    """The shape with its first blocks changed."""
    changed = [b.model_copy(update=dict(new)) for b, new in zip(shape.blocks, blocks, strict=False)]
    return shape.model_copy(update={"blocks": (*changed, *shape.blocks[len(changed) :]), "storage": storage})


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return build(plain_model(), batch=BATCH, prompt=PROMPT, rounds=1, stopwatch=operations)


def counted(model: Any) -> dict[str, float]:
    """What the stopwatch says of a real model: a prefill, and a decoding step after it."""
    ids, cache = torch.ones(BATCH, PROMPT, dtype=torch.long), [None]

    def run(part: torch.Tensor) -> None:
        hidden, cache[0] = final_hidden(model, part, cache[0], use_cache=True)
        logits(model, hidden[:, -1])

    with evaluating(model):
        return {"prefill_seconds": operations(lambda: run(ids)), "decode_seconds": operations(lambda: run(ids[:, :1]))}


SHAPES = {
    "dense": {},
    "fewer groups": {"kv_groups": 2},
    "fewer heads": {"heads_per_group": 1},
    "an odd width": {"ffn": 17},
    "no attention": {"kv_groups": 0, "heads_per_group": 0},
    "no FFN": {"ffn": 0},
    "ranks": {"ffn": 33, "ranks": {"q_proj": 5, "o_proj": 9, "up_proj": 11, "down_proj": 7}},
}


@pytest.mark.parametrize("storage", ["factors", "pivoted"])
@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_the_sum_of_parts_is_the_whole_model(table: LatencyTable, change: dict[str, Any], storage: str) -> None:
    """In operations nothing is noisy, overlaps or is cached: the prediction is exact, but for the growing cache.

    The probe's decoding steps are the first four after the prompt, the model's is the first: at most 3 of 13 tokens
    more are attended to, a small share of a step's work.
    """
    dense = plain_model()
    shape = reshaped(table.protocol.dense, {}, change, storage=storage)
    found = table.predict(shape)
    wanted = counted(skeleton(dense, shape))
    assert found["prefill_seconds"] == pytest.approx(wanted["prefill_seconds"], rel=1e-9)
    assert found["decode_seconds"] == pytest.approx(wanted["decode_seconds"], rel=0.02)


@pytest.mark.parametrize("variant", ["qwen2-window", "mistral", "qwen3-biases"])
def test_every_family_has_a_table(variant: str) -> None:
    model = plain_model(variant)
    made = build(model, batch=BATCH, prompt=PROMPT, rounds=1, stopwatch=operations)
    shape = reshaped(made.protocol.dense, {"ffn": 9}, {"kv_groups": 1})
    wanted = counted(skeleton(model, shape))
    assert made.predict(shape)["prefill_seconds"] == pytest.approx(wanted["prefill_seconds"], rel=1e-9)


def test_probes_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def probe(name: str) -> Any:
        return probes._Probe(lambda: calls.append(name), lambda: calls.append(name.upper()), 0.5 if name == "b" else 1)

    def stopwatch(call: Callable[[], object]) -> float:
        call()
        return 100.0 if len(calls) <= 2 + 2 * probes.DECODES else {"a": 1.0, "b": 2.0, "A": 3.0, "B": 4.0}[calls[-1]]

    from sentei.progress import Progress

    found = probes._take_turns({"a": probe("a"), "b": probe("b")}, 3, stopwatch, Progress())
    assert calls == (["a", "b"] + ["A", "B"] * probes.DECODES) * 4
    assert found == {"a": Times(prefill=1, decode=3), "b": Times(prefill=1, decode=2)}


def test_the_dense_model_is_predicted_as_measured_whatever_the_parts_say(table: LatencyTable) -> None:
    """Parts that are all slower alone than together: the scale takes it back, for the whole and for what is cut."""
    values = json.loads(table.model_dump_json())
    for cell in values["attention"]["cells"] + values["ffn"]["cells"]:
        cell["prefill"] *= 2
    slower = LatencyTable.model_validate(values)
    shape = table.protocol.dense
    half = reshaped(shape, *[{"ffn": 20}] * 4)
    assert slower.predict(shape)["prefill_seconds"] == pytest.approx(table.whole.prefill, rel=1e-9)
    assert slower.predict(half) == pytest.approx(table.predict(half))


@examples(max_examples=50, deadline=None)
@given(data=st.data())
def test_interpolation_is_exact_on_the_grid_and_between_its_neighbours(data: st.DataObject) -> None:
    axes = tuple(tuple(sorted(data.draw(st.sets(st.integers(1, 60), min_size=1, max_size=4)))) for _ in range(2))
    times = st.floats(0, 1e3)
    cells = {at: data.draw(times) for at in itertools.product(*axes)}
    grid = Grid(axes=axes, cells=tuple(Times(prefill=v, decode=2 * v) for v in cells.values()))
    for at, value in cells.items():
        assert grid.at("prefill", *at) == pytest.approx(value, abs=1e-9)
    point = tuple(data.draw(st.integers(axis[0], axis[-1])) for axis in axes)
    corners = [
        {max(v for v in axis if v <= p), min(v for v in axis if v >= p)} for axis, p in zip(axes, point, strict=True)
    ]
    around = [cells[at] for at in itertools.product(*corners)]
    assert min(around) - 1e-9 <= grid.at("prefill", *point) <= max(around) + 1e-9
    assert grid.at("decode", *point) == pytest.approx(2 * grid.at("prefill", *point), abs=1e-9)


@given(largest=st.integers(1, 5000), count=st.integers(3, 8))
def test_a_grid_covers_one_to_the_largest(largest: int, count: int) -> None:
    sizes = probes._spread(largest, count)
    assert sizes[0] == 1 and sizes[-1] == largest and len(sizes) <= count
    assert list(sizes) == sorted(set(sizes))


def test_tables_are_kept_and_reused_only_for_the_same_machine_model_and_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    built: list[tuple[int, str]] = []
    original = probes.measure_table

    def measured(model: Any, batch: int, prompt: int, rounds: int, *_rest: Any) -> LatencyTable:
        built.append((batch, probes.processor()))
        return original(model, batch, prompt, rounds, lambda call: float(call() is not None), None)

    monkeypatch.setattr(latency, "measure_table", measured)
    load = {"prompt": 4, "rounds": 1}
    first = table_for(model, tmp_path / "new", **load)
    assert table_for(model, tmp_path / "new", **load) == first and len(built) == 1
    table_for(model, tmp_path / "new", batch=2, **load)
    assert len(built) == 2
    monkeypatch.setattr(probes, "processor", lambda: "another machine")
    other = table_for(model, tmp_path / "new", **load)
    assert len(built) == 3 and other.protocol.machine == "another machine"
    torn = next((tmp_path / "new").iterdir())
    torn.write_text(torn.read_text()[:50])
    with pytest.raises(InputError, match="is not JSON"):
        LatencyTable.load(torn)


def test_real_seconds_are_positive_and_the_model_is_left_alone() -> None:
    model = tiny_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    table = build(model, prompt=8, rounds=1)
    for phase in ("prefill", "decode"):
        times = [getattr(cell, phase) for grid in (table.attention, table.ffn, table.products) for cell in grid.cells]
        assert all(math.isfinite(t) and t > 0 for t in times)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert family_of(model.config).shape(model.config) == table.protocol.dense
    assert (table.protocol.dtype, table.protocol.prompt, table.protocol.torch) == ("float32", 8, torch.__version__)


def test_what_cannot_be_predicted_is_said(table: LatencyTable) -> None:
    wide = reshaped(table.protocol.dense, {"ffn": 4096})
    with pytest.raises(InputError, match="covers sizes 1 to 40, not 4096"):
        table.predict(wide)
    noisy = table.model_copy(update={"around": Times(prefill=1e12, decode=1e12)})
    with pytest.raises(InputError, match="quiet machine"):
        noisy.predict(table.protocol.dense)
    with pytest.raises(InputError, match="prompt is 0"):
        build(None, prompt=0)


def test_unused_shape_needs_no_part(table: LatencyTable) -> None:
    """A model of empty blocks but for the first attention costs what stands around, and that attention."""
    first = BlockShape(kv_groups=3, heads_per_group=2, ffn=0)
    empty = BlockShape(kv_groups=0, heads_per_group=0, ffn=0)
    shape = table.protocol.dense.model_copy(update={"blocks": (first, empty, empty, empty)})
    expected = table.around.prefill + table._scale("prefill") * table.attention.at("prefill", 3, 2)
    assert table.predict(shape)["prefill_seconds"] == pytest.approx(expected)
