from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recover.recovering import by_topic, damaged, loaded, pool, shaken, small_model
from sentei.data.chat import encode
from sentei.data.pools import read_pool
from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.models.load import Loaded, load
from sentei.models.save import save
from sentei.progress import Progress
from sentei.recover.select.damage import score
from sentei.recover.select.select import select
from sentei.recover.tune import train
from sentei.recover.tune.adapters import ADAPTERS
from sentei.recover.tune.adapters.files import load_adapter
from sentei.recover.tune.tune import parameter_budget, tune
from tiny import make_plan, random_blocks

USUAL: dict[str, Any] = {"tokens": 600, "batch_tokens": 128, "evaluations": 3, "patience": None, "budget_params": "5%"}
IDS = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentei.recover.select.select._embedded", by_topic)


@pytest.fixture(scope="module")
def dense() -> Loaded:
    return loaded(small_model(), "dense")


def hurt(dense: Loaded) -> Loaded:
    return loaded(shaken(dense.model, 0.1), "hurt")


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def spoken(dense: Loaded, rows: int = 60) -> list[dict[str, Any]]:
    """Text that the dense model itself would write."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 128, (rows, 3), generator=generator)
    with torch.no_grad():
        for _ in range(12):
            p = dense.model(ids).logits[:, -1, 3:].softmax(1)
            ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator) + 3], 1)
    texts = dense.tokenizer.batch_decode(ids)
    return [{"prompt": " ".join(t.split()[:3]), "completion": " ".join(t.split()[3:])} for t in texts]


@pytest.mark.parametrize(("loss", "share"), [("kd", 0.85), ("both", 0.92), ("kl", 0.85), ("kl-all", 0.85)])
def test_distillation_brings_the_model_nearer_to_its_teacher(
    dense: Loaded, tmp_path: Path, loss: str, share: float
) -> None:
    rows, pruned = spoken(dense, 150), hurt(dense)
    samples = encode(read_pool(rows[120:]).rows, dense.tokenizer, length=64)
    before = score(dense.model, pruned.model, samples, tmp_path / "before").jsd.mean()
    options = {"adapter": "full", "learning_rate": 1e-2, **USUAL, "tokens": 7000}
    tuned = tune(pruned, rows[:120], teacher=dense, loss=loss, **options)
    tuned.save(tmp_path / "healed")
    healed = load(tmp_path / "healed", dtype="float32")
    after = score(dense.model, healed.model, samples, tmp_path / "after").jsd.mean()
    assert after < share * before, (before, after)  # of rows that it never saw
    assert tuned.record["curve"][-1]["heldout"] < tuned.record["curve"][0]["heldout"] and tuned.record["loss"] == loss


@pytest.mark.parametrize("adapter", ["lora+sparse", "lora", "full"])
@pytest.mark.parametrize("kind", ["stock", "per layer"])
def test_healed_loads_like_pruned(tmp_path: Path, adapter: str, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    model = small_model(num_attention_heads=6, num_hidden_layers=3)
    if kind == "per layer":
        model = prune(model, make_plan(model, random_blocks(family_of(model.config).shape(model.config), 3)))
    save(model, tmp_path / "pruned", tokenizer=loaded(model).tokenizer)
    assert (tmp_path / "pruned" / "modeling_sentei.py").exists() is (kind == "per layer")
    pruned = load(tmp_path / "pruned", dtype="float32")
    before = logits(pruned.model)
    tuned = tune(pruned, spoken(loaded(small_model())), adapter=adapter, learning_rate=2e-3, **USUAL)
    tuned.save(tmp_path / "healed")
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path / "healed", trust_remote_code=kind == "per layer", dtype=torch.float32
    )
    healed = logits(plain)
    assert (healed - before).abs().max() > 1e-3, "something was learnt"
    torch.testing.assert_close(logits(load(tmp_path / "healed", dtype="float32").model), healed, rtol=1e-4, atol=1e-4)
    record = json.loads((tmp_path / "healed" / "tune.json").read_text())
    assert record == tuned.record and record["stopped"] == "finished" and record["model"] == "pruned"
    expected = {"config.json", "model.safetensors", "README.md", "tokenizer.json", "tune.json"}
    assert expected <= {path.name for path in (tmp_path / "healed").iterdir()}
    if adapter == "full":
        assert not (tmp_path / "healed" / "adapter").exists()
        return
    base = load(tmp_path / "pruned", dtype="float32").model
    adapted = load_adapter(base, tmp_path / "healed" / "adapter")
    torch.testing.assert_close(logits(adapted), healed, rtol=1e-3, atol=1e-3)
    assert adapter == "lora" or record["trainable_params"] <= record["budget_params"]  # lora has at least rank 1


@pytest.mark.parametrize("adapter", list(ADAPTERS))
def test_a_killed_tuning_ends_with_the_same_bits(
    dense: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    options = {**USUAL, "adapter": adapter, "teacher": dense, "learning_rate": 1e-3}
    whole = tune(hurt(dense), pool(), work=tmp_path / "a", **options)
    whole.save(tmp_path / "whole")
    real, calls = train.Trainer._train, []

    def killed(self: Any, batch: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(self, batch)

    monkeypatch.setattr(train.Trainer, "_train", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(hurt(dense), pool(), work=tmp_path / "b", **options)
    again = tune(hurt(dense), pool(), work=tmp_path / "b", **options)
    again.save(tmp_path / "again")
    assert len(calls) < 4 + whole.record["steps"], "what was trained is not trained again"
    assert {**again.record, "seconds": 0} == {**whole.record, "seconds": 0}
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        if (tmp_path / "whole" / file).exists():
            assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_selection_is_its_own_teacher_wherever_it_is(dense: Loaded, tmp_path: Path) -> None:
    pruned = loaded(damaged(dense.model), "pruned")
    select(dense, pruned, pool(), tmp_path / "sel", budget=30, filters=[], clusters=2)
    shutil.copytree(tmp_path / "sel", tmp_path / "far" / "away")  # copies, not links
    shutil.rmtree(tmp_path / "sel")
    chosen = [json.loads(line) for line in (tmp_path / "far" / "away" / "selected.jsonl").read_text().splitlines()]
    first = tune(copy.deepcopy(pruned), tmp_path / "far" / "away", **USUAL)
    asked = tune(copy.deepcopy(pruned), chosen, teacher=dense, length=256, **USUAL)
    assert first.record["loss"] == "both" and first.record["rows"] == 23 and first.record["heldout_rows"] == 7
    assert first.record["curve"] == asked.record["curve"], "the teacher says the same as when it is asked"
    said = Said()
    other = loaded(shaken(dense.model, 0.2), "other")
    told = tune(copy.deepcopy(pruned), tmp_path / "far" / "away", teacher=other, progress=said, **USUAL)
    assert any("other is not the dense model of the selection" in line for line in said.lines)
    assert told.record["curve"] != first.record["curve"]
    assert tune(copy.deepcopy(pruned), tmp_path / "far" / "away", loss="sft", **USUAL).record["loss"] == "sft"


def test_a_selection_for_another_tokenizer_teaches_nothing(dense: Loaded, tmp_path: Path) -> None:
    select(dense, hurt(dense), pool(), tmp_path / "sel", budget=30, filters=[], clusters=2)
    model = hurt(dense)
    model.tokenizer.chat_template = "{% for m in messages %}w3 {{ m['content'] }} {% endfor %}"
    with pytest.raises(InputError, match=r"another tokenizer or chat template.*; use --loss sft, or select"):
        tune(model, tmp_path / "sel", **USUAL)


def test_the_held_out_rows_are_not_trained_on_and_tokens_are_kept(dense: Loaded) -> None:
    tuned = tune(hurt(dense), pool(30), **USUAL)
    record = tuned.record
    assert (record["rows"], record["heldout_rows"], record["loss"]) == (23, 7, "sft")
    assert 600 - 64 < record["tokens"] <= 600 and record["curve"][-1]["step"] == record["steps"]
    assert record["kept_tokens"] in [point["tokens"] for point in record["curve"]]
    assert tune(hurt(dense), pool(30), **USUAL).record["curve"] == record["curve"]
    assert tune(hurt(dense), pool(30), seed=1, **USUAL).record["curve"] != record["curve"]


def test_a_diverged_tuning_gives_the_model_before(
    dense: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train.Trainer._train

    def broken(self: Any, batch: Any) -> None:
        loss = self.loss
        if self.step >= 2:
            self.loss = lambda batch: loss(batch) * float("nan")
        real(self, batch)
        self.loss = loss

    monkeypatch.setattr(train.Trainer, "_train", broken)
    model = hurt(dense)
    before = logits(model.model)
    tuned = tune(model, pool(), **{**USUAL, "evaluations": 1})
    assert tuned.record["stopped"] == "diverged" and "the loss is not a number at step 3" in tuned.record["note"]
    tuned.save(tmp_path / "healed")
    torch.testing.assert_close(logits(load(tmp_path / "healed", dtype="float32").model), before, rtol=1e-5, atol=1e-5)


def test_a_full_disk_at_the_end_leaves_the_checkpoint(
    dense: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tuned = tune(hurt(dense), pool(), work=tmp_path / "work", **USUAL)
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"cannot write .*: No space left on device"):
        patch.setattr("sentei.recover.tune.result.write_json", full)
        tuned.save(tmp_path / "healed")
    assert not (tmp_path / "healed").exists()
    calls: list[int] = []
    monkeypatch.setattr(train.Trainer, "_train", lambda *_: calls.append(1))
    again = tune(hurt(dense), pool(), work=tmp_path / "work", **USUAL)
    again.save(tmp_path / "healed")
    assert not calls and again.record["curve"] == tuned.record["curve"]


def test_what_cannot_be_tuned_is_refused(dense: Loaded, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, unk_token="x")))
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pool()))
    for message, options in (
        (r"unknown loss 'skd' \(did you mean 'kd'\?\)", {"loss": "skd"}),
        (r"unknown adapter 'lorra' \(did you mean 'lora'\?\)", {"adapter": "lorra"}),
        ("distillation needs a teacher: give the dense model with --teacher, or use --loss sft", {"loss": "kd"}),
        ("dense have different|different tokenizers", {"teacher": Loaded(dense.model, other, "other", "")}),
        ("--learning-rate 0: expected a finite number above 0", {"learning_rate": 0}),
        ("--budget-params '0%'", {"budget_params": "0%"}),
        ("none does not exist", {"data": tmp_path / "none"}),
        (
            "1 rows of .* have a response to learn from, at least 2",
            {"data": [pool()[0], {**pool()[1], "prompt": "w3 " * 40}]},
        ),
    ):
        call = {"data": tmp_path / "pool.jsonl", "length": 30, **USUAL, **options}
        with pytest.raises(InputError, match=message):
            tune(hurt(dense), **call)
    with pytest.raises(InputError, match="has no tokenizer, which is needed to read the data"):
        tune(Loaded(dense.model, None, "x", ""), pool())


def test_rows_longer_than_the_context_are_cut_there(dense: Loaded) -> None:
    said = Said()
    short = loaded(small_model(max_position_embeddings=9), "short")
    tune(short, pool(), progress=said, **USUAL)
    assert any("are longer than 9 tokens and were cut there" in line for line in said.lines)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1%", 100),
        ("0.5%", 50),
        ("100%", 10_000),
        (0.01, 100),
        (".2", 2000),
        (500, 500),
        ("5_000", 5000),
        ("7,000", 7000),
    ],
)
def test_budgets_of_parameters(text: Any, found: int) -> None:
    assert parameter_budget(text, 10_000) == found


@pytest.mark.parametrize("text", ["", "0", "101%", "20000", "-5", "many", "1.5", "0.0", "nan", "0.00001"])
def test_budgets_of_parameters_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"expected a share .* or a number of parameters from 1 to 10,000"):
        parameter_budget(text, 10_000)


def test_pools_of_all_lengths_make_steps() -> None:
    from sentei.recover.tune.data import TrainingData, plan_steps

    rng = np.random.default_rng(0)
    samples = encode(read_pool(pool(25)).rows, loaded(small_model()).tokenizer, length=64)
    data = TrainingData(samples, sorted(rng.permutation(25)[:20].tolist()), [])
    steps = plan_steps(data, 5000, 100, 0)
    sizes = [sum(len(samples[row].ids) for row in rows) for rows in steps]
    assert 5000 - max(len(sample.ids) for sample in samples) < sum(sizes) <= 5000, "at most what was asked for"
    assert [len(rows) for rows in plan_steps(data, 1, 100, 0)] == [1], "there is always one row to read"
    epoch = [row for rows in steps for row in rows][:20]
    assert sorted(epoch) == data.train
    with pytest.raises(InputError, match="tokens is 0"):
        plan_steps(data, 0, 100, 0)


def test_text_of_another_kind_is_watched_and_forgetting_is_said(dense: Loaded) -> None:
    narrow = [{"prompt": "t5", "completion": "t7 t7 t7 t7"}] * 40
    other = [" ".join(row["completion"] for row in spoken(dense, 100))]
    words: dict[str, Any] = {"adapter": "full", "learning_rate": 2e-2, "loss": "sft", **USUAL, "tokens": 2000}
    record = tune(loaded(copy.deepcopy(dense.model), "dense"), narrow, other_text=other, **words).record
    watched = [point["other_perplexity"] for point in record["curve"]]
    assert len(watched) == 4 and watched[-1] > 1.2 * watched[0], "one answer for ever is no language"
    assert record["curve"][-1]["heldout"] < record["curve"][0]["heldout"], "the held-out rows do not show it"
    kept = min(record["curve"], key=lambda point: point["heldout"])["other_perplexity"]
    assert f"went from {watched[0]:.2f} to {kept:.2f}: it forgets" in record["recommendation"]
    plain = tune(loaded(copy.deepcopy(dense.model), "dense"), narrow, **words).record
    assert [p["heldout"] for p in plain["curve"]] == [p["heldout"] for p in record["curve"]], "watching changes nothing"
    assert "other_perplexity" not in plain["curve"][0] and "forgets" not in plain["recommendation"]


def test_nothing_is_said_from_a_held_out_row_or_two(dense: Loaded) -> None:
    record = tune(hurt(dense), pool(8), **USUAL).record
    assert record["heldout_rows"] == 2 and "2 held-out rows are too few to say" in record["recommendation"]
