from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from accel_files import dies_in_stage_two
from recover.recovering import by_topic, loaded, pool, small_model, words
from sentei.accel import loop
from sentei.accel.family import Family
from sentei.accel.loop import accel
from sentei.accel.settings import Settings
from sentei.data.pools import read_pool
from sentei.errors import InputError, QualityError
from sentei.families import family_of
from sentei.models.load import Loaded, load
from sentei.plan import Budget, Plan
from sentei.recover.tune import train
from tiny import VARIANTS, tiny_model

SMALL = Settings(
    stages=3,
    tokens=900,
    calibration=256,
    gradient_tokens=64,
    window=32,
    batch_tokens=64,
    length=32,
    learning_rate=1e-3,
)


@pytest.fixture(scope="module")
def dense() -> Loaded:
    return loaded(small_model(intermediate_size=48))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    import numpy as np

    rng = np.random.default_rng(1)
    return [words(rng, "ab"[n % 2], 60) for n in range(40)]


def made(dense: Loaded, texts: list[str], work: Path, budget: Budget | None = None, **changes: Any) -> Family:
    options = {name: changes.pop(name) for name in ("prune", "teacher") if name in changes}
    settings = dataclasses.replace(SMALL, **changes)
    work.mkdir(exist_ok=True)
    return accel(dense, texts, read_pool(pool(120)), budget or Budget(sparsity=0.4), settings, work, **options)


def weights(directory: Path) -> dict[str, Tensor]:
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def same(a: Family, b: Family) -> bool:
    for stage in range(1, len(a.stages) + 1):
        one, other = (weights(family.model(stage)) for family in (a, b))
        if one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one):
            return False
    timeless = [[{k: v for k, v in s.items() if k != "seconds"} for s in family.stages] for family in (a, b)]
    return timeless[0] == timeless[1]


def test_every_stage_is_a_model_of_the_size_that_was_asked_for(dense: Loaded, wanted: Family) -> None:
    family = wanted
    whole = family_of(dense.model.config).shape(dense.model.config).block_params()
    assert family.stopped == "finished" and len(family.stages) == 3
    for number, (record, share) in enumerate(zip(family.stages, (1 - 0.4 / 3, 1 - 0.8 / 3, 0.6), strict=True), 1):
        assert record["block_params"] <= share * whole + 1
        assert record["block_params"] > share * whole - 3 * 42 - 8 * 42 * 6  # less than a unit short of it
        small = load(family.model(number), dtype="float32")
        plan = Plan.load(family.model(number) / "plan.json")
        assert family_of(small.model.config).shape(small.model.config).block_params() == record["block_params"]
        assert plan.model == dense.digest and plan.shape().block_params() == record["block_params"]
        assert len(record["curve"]) >= 2 and record["evidence"]["rows"]["jsd"] > 0
        assert json.loads((family.model(number) / "stage.json").read_text()) == record
    assert family.stages[-1]["tokens_so_far"] == sum(record["tokens"] for record in family.stages)
    assert not list(family.directory.glob("stage-*/cut")) and not list(family.directory.glob("stage-*/checkpoint"))


@pytest.fixture(scope="module")
def wanted(dense: Loaded, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Family:
    return made(dense, texts, tmp_path_factory.mktemp("accel") / "whole")


@pytest.mark.parametrize("killed_at", [0, 1, 2, 4, 5, 8, 11])
def test_killed_anywhere_it_ends_with_the_same_bits(
    dense: Loaded, texts: list[str], wanted: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """At the n-th of: a cut that begins, one that is done, a fifth step, a stage whose directory is being written."""
    calls = [0]

    def dying(real: Any, every: int = 1) -> Any:
        count = [0]

        def call(*args: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] % every == 0:
                calls[0] += 1
                if calls[0] == killed_at + 1:
                    raise KeyboardInterrupt
            return real(*args, **options)

        return call

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Cutting, "cut", dying(loop.Cutting.cut))
        patch.setattr(loop, "load_state", dying(loop.load_state))
        patch.setattr(train.Trainer, "_train", dying(train.Trainer._train, 5))
        patch.setattr(loop, "save", dying(loop.save))
        made(dense, texts, tmp_path / "killed")
        raise AssertionError("it was not killed")
    torch.randn(17)  # another state of the generator
    assert same(made(dense, texts, tmp_path / "killed"), wanted)


@pytest.mark.parametrize("name", ["lora+sparse", "rslora"])
def test_an_adapter_goes_through_the_stages(
    dense: Loaded, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options = {"train": name, "budget_params": "10%", "stages": 2}
    whole = made(dense, texts, tmp_path / "whole", **options)
    assert not same(whole, made(dense, texts, tmp_path / "idle", **options, learning_rate=1e-12)), "it is trained"
    for number in (1, 2):
        assert not (whole.model(number) / "adapter").exists()
        assert all(torch.isfinite(value).all() for value in weights(whole.model(number)).values())
    with dies_in_stage_two(monkeypatch):
        made(dense, texts, tmp_path / "killed", **options)
    assert same(made(dense, texts, tmp_path / "killed", **options), whole)


@pytest.mark.parametrize("loss", ["sft", "both", "kl-all"])
def test_every_loss_gets_its_teacher(dense: Loaded, texts: list[str], tmp_path: Path, loss: str) -> None:
    family = made(dense, texts, tmp_path / "work", loss=loss, stages=2)
    assert [len(record["curve"]) >= 2 for record in family.stages] == [True, True]
    assert (tmp_path / "work" / "teacher").exists() is (loss == "both")


@pytest.mark.skipif("qwen3_moe" not in VARIANTS, reason="the installed transformers has no such class")
def test_a_mixture_of_experts_goes_through_the_stages(texts: list[str], tmp_path: Path) -> None:
    mixture = loaded(tiny_model("qwen3_moe", vocab_size=128))
    family = made(mixture, texts, tmp_path / "work", stages=2)
    assert family.stages[-1]["share"] == pytest.approx(0.6, abs=0.02)
    assert load(family.model(2), dtype="float32").model.config.model_type == "sentei_qwen3_moe"
    with pytest.raises(InputError, match="'lora' does not go through cuts of experts"):
        made(mixture, texts, tmp_path / "work", train="lora")


def test_moments_that_are_carried_make_another_training(dense: Loaded, texts: list[str], tmp_path: Path) -> None:
    options: dict[str, Any] = {"prune": {"method": "structural", "compensation": "none"}}
    carried, anew = (made(dense, texts, tmp_path / how, moments=how, **options) for how in ("carry", "restart"))
    assert same(Family(carried.directory, carried.stages[:1]), Family(anew.directory, anew.stages[:1]))
    assert not same(carried, anew)


def test_kv_groups_go_though_a_stage_is_less_than_one(texts: list[str], tmp_path: Path) -> None:
    """A group is 24 % of a block: rounding at each of ten stages of 5 % would keep all of them."""
    dense = loaded(small_model(num_hidden_layers=2, intermediate_size=24))
    family = made(dense, texts, tmp_path / "work", Budget(sparsity=0.5), stages=10, tokens=1500, batch_tokens=32)
    (kept, there), whole = family.stages[-1]["kv_groups"], family.stages[-1]["ffn"]
    assert kept < there and whole[0] < whole[1]
    shape = family_of(dense.model.config).shape(dense.model.config)
    step = 0.05 * shape.block_params()
    group = shape.attention_params(shape.blocks[0]) / shape.blocks[0].kv_groups
    assert group > step, "the trap that this is about"


def test_a_divergence_keeps_the_last_good_stage(
    dense: Loaded, texts: list[str], wanted: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stages = train.Trainer.run, [0]

    def broken(self: Any) -> Any:
        stages[0] += 1
        if stages[0] == 2:
            self.loss = lambda batch: torch.tensor(float("nan"), requires_grad=True)
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "run", broken)
        family = made(dense, texts, tmp_path / "broken")
    assert family.stopped == "diverged" and len(family.stages) == 1
    assert "stage 2 of 3: training diverged: the loss is not a number at step 1" in family.note
    assert family.note.endswith("kept is the model of stage 1") and "best state" not in family.note
    assert same(Family(family.directory, family.stages), Family(wanted.directory, wanted.stages[:1]))
    stages[0] = 1
    with monkeypatch.context() as patch, pytest.raises(QualityError, match=r"stage 1 of 3: .*nothing is kept"):
        patch.setattr(train.Trainer, "run", broken)
        made(dense, texts, tmp_path / "first")


def test_what_cannot_be_is_refused(dense: Loaded, texts: list[str], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, unk_token="x")))
    for message, changes in (
        (r"the pool has [\d,]+ tokens to train on, 3 stages want 100,000: .*epochs: \d+", {"tokens": 100_000}),
        (r"stage 1 of 400 goes from [\d,]+ to [\d,]+ and removes nothing", {"stages": 400}),
        ("stage 1 of 3 would train on .* less than a step", {"batch_tokens": 4096, "tokens": 1200}),
        ("have different tokenizers", {"teacher": Loaded(dense.model, other, "other", "")}),
    ):
        with pytest.raises(InputError, match=message):
            made(dense, texts, tmp_path / "work", **changes)
        assert not list((tmp_path / "work").iterdir())
    assert made(dense, texts, tmp_path / "twice", tokens=2500, epochs=2).stages[-1]["tokens_so_far"] > 2300


def test_data_go_to_what_the_cut_has_damaged(
    dense: Loaded, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Topic b is planted to be damaged: its questions get the tokens, no row twice, and a kill changes nothing."""
    from sentei.accel import feed
    from sentei.files import read_json

    def scored(model: Any, other: Any, samples: Any, *args: Any, **options: Any) -> Any:
        asked = [int(sample.ids[1]) for sample in samples]
        return dataclasses.make_dataclass("Scores", ["jsd"])(torch.tensor([0.3 if n >= 64 else 0.1 for n in asked]))

    monkeypatch.setattr(feed, "embed", by_topic)
    monkeypatch.setattr(feed, "score", scored)
    options: dict[str, Any] = {"select": "damage", "stages": 2}
    family = made(dense, texts, tmp_path / "whole", **options)
    for record in family.stages:
        least, most = sorted(record["selection"], key=lambda one: one["damage"])
        assert most["tokens"] == pytest.approx(3 * least["tokens"], abs=40) and most["damage"] > least["damage"]
    chosen = [read_json(tmp_path / "whole" / f"stage-0{n}" / "steps.json")["steps"] for n in (1, 2)]
    rows = [row for steps in chosen for step in steps for row in step]
    assert len(rows) == len(set(rows)) and family.stages[-1]["tokens_so_far"] == pytest.approx(900, abs=60)
    real, calls = train.Trainer._train, [0]

    def dying(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Trainer, "_train", dying)
        made(dense, texts, tmp_path / "killed", **options)
    assert same(made(dense, texts, tmp_path / "killed", **options), family)
