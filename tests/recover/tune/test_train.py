from __future__ import annotations

import errno
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recover.recovering import random_samples, small_model
from sentei.data.batches import pad
from sentei.errors import InputError
from sentei.inference.forward import evaluating
from sentei.recover.tune import checkpoint, train
from sentei.recover.tune.loss import SFT
from sentei.recover.tune.train import Trainer, cosine

SAMPLES = random_samples([10, 8, 6, 12, 9, 7, 11, 5], seed=5)
BATCHES = [(sum(len(SAMPLES[i].ids) for i in rows), rows) for rows in ([0, 1], [2, 3], [4, 5], [6, 7])]


def model(dtype: torch.dtype = torch.float32, **sizes: Any) -> Any:
    made = small_model(num_hidden_layers=1, **sizes).to(dtype)
    made.requires_grad_(False)
    made.model.layers.requires_grad_(True)
    return made


def trainer(
    net: Any, directory: Path | None = None, steps: int = 12, held: Any = None, loss: Any = None, **options: Any
) -> Trainer:
    def evaluate() -> float:
        with evaluating(net):
            return float(SFT(net, pad(SAMPLES, [0, 3, 5])))

    batches = [(size, lambda rows=rows: pad(SAMPLES, rows)) for size, rows in (BATCHES * steps)[:steps]]
    usual = {"learning_rate": 1e-3, "evaluations": 4, "patience": None, "directory": directory}
    return Trainer(net, loss or (lambda batch: SFT(net, batch)), batches, held or evaluate, **{**usual, **options})


def state(net: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_lowers_the_loss_and_keeps_the_best_state() -> None:
    net = model()
    made = trainer(net, steps=24)
    history = made.run()
    assert history.stopped == "finished" and len(history.losses) == 24
    assert [point["step"] for point in history.curve] == [0, 6, 12, 18, 24]
    assert history.curve[-1]["tokens"] == sum(size for size, _ in BATCHES) * 6
    assert history.best["heldout"] < 0.95 * history.curve[0]["heldout"]
    assert made.evaluate() == history.best["heldout"]


def test_the_best_state_is_kept_not_the_last() -> None:
    net = model()
    before = state(net)
    values = iter([1.0, 0.5, 2.0, 3.0, 4.0])
    seen = []

    def held() -> float:
        seen.append(state(net))
        return next(values)

    history = trainer(net, held=held).run()
    assert history.best["step"] == 3 and same(state(net), seen[1]) and not same(seen[1], before)


def test_one_step_is_adamw_with_a_clipped_gradient() -> None:
    net, twin = model(), model()
    trainer(net, steps=1, held=iter([2.0, 1.0]).__next__).run()
    params = [p for p in twin.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=train.BETAS, weight_decay=0.0)
    SFT(twin, pad(SAMPLES, [0, 1])).backward()
    nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    for (name, a), b in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [cosine(step, 40) for step in range(40)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[4:])) and 0 < rates[-1] < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("killed_at", [1, 5, 6, 11])
def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path, dtype: torch.dtype, killed_at: int) -> None:
    """A model with dropout, too: what a step draws depends on its number only."""
    options = {"attention_dropout": 0.2}
    whole = model(dtype, **options)
    wanted = trainer(whole, tmp_path / "whole").run()
    net = model(dtype, **options)
    steps = [0]

    def dying(batch: Any) -> Tensor:
        steps[0] += 1
        if steps[0] > killed_at:
            raise KeyboardInterrupt
        return SFT(net, batch)

    with pytest.raises(KeyboardInterrupt):
        trainer(net, tmp_path / "killed", loss=dying).run()
    again = model(dtype, **options)
    torch.randn(17)  # another state of the generator
    resumed = trainer(again, tmp_path / "killed")
    found = resumed.run()
    assert resumed.step == 12 and found == wanted and same(state(again), state(whole))
    assert len(list((tmp_path / "killed").iterdir())) == 2
    done = model(dtype, **options)  # once more, when all is done: nothing is trained
    assert trainer(done, tmp_path / "killed", loss=lambda _: 1 / 0).run() == wanted and same(state(done), state(whole))


def test_a_kill_between_the_two_files_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model()
    trainer(whole).run()
    net = model()
    real, calls = checkpoint.write_json, []

    def dying(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "write_json", dying)
        trainer(net, tmp_path).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "state.json",
        "step-3.safetensors",
        "step-6.safetensors",
    ]
    again = model()
    trainer(again, tmp_path).run()
    assert same(state(again), state(whole))


def test_indices_of_an_adapter_come_back_with_its_values(tmp_path: Path) -> None:
    class Sparse(nn.Module):
        def __init__(self, indices: list[int]) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.zeros(2))
            self.register_buffer("indices", torch.tensor(indices))

    def some(net: Any) -> Trainer:
        def loss(_: Any) -> Tensor:
            return (net.values - 3).square().sum()

        return trainer(net, tmp_path, steps=4, loss=loss, held=lambda: loss(None).item())

    some(Sparse([1, 2])).run()
    again = Sparse([7, 8])
    some(again).run()
    assert again.indices.tolist() == [1, 2] and (again.values > 0).all()


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        if "step-6" in str(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"cannot write .*step-6.*No space left"):
        patch.setattr(checkpoint, "save_file", full)
        trainer(model(), tmp_path).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "step-3.safetensors"]
    whole, again = model(), model()
    trainer(whole).run()
    trainer(again, tmp_path).run()
    assert same(state(again), state(whole))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_no_number_is_not_stepped_on(where: str) -> None:
    net, steps, best = model(), [0], []

    def broken(batch: Any) -> Tensor:
        steps[0] += 1
        value = SFT(net, batch)
        if steps[0] < 8:
            return value
        if where == "loss":
            return value * float("nan")
        bad = value * 1.0
        bad.register_hook(lambda grad: grad * float("inf"))
        return bad

    def held() -> float:
        best.append(state(net))
        return 5.0 - len(best)

    history = trainer(net, loss=broken, held=held).run()
    assert history.stopped == "diverged" and len(history.losses) == 7 and steps[0] == 8
    assert f"the {where} is not a number at step 8" in history.note and "lower --learning-rate" in history.note
    assert same(state(net), best[-1]) and history.best["step"] == 6
    assert all(torch.isfinite(value).all() for value in net.state_dict().values())


def test_a_rising_loss_is_a_divergence() -> None:
    net, steps = model(), [0]

    def rising(batch: Any) -> Tensor:
        steps[0] += 1
        return SFT(net, batch) * 0 + steps[0] * 0.2

    before = state(net)
    history = trainer(net, loss=rising, steps=80, held=iter([1.0, 2.6]).__next__).run()
    assert history.stopped == "diverged" and len(history.losses) == 16, "four steps before the next evaluation"
    assert "the held-out loss has risen by 1.6 nats after step 16" in history.note and same(state(net), before)


def test_a_rise_that_the_held_out_rows_do_not_share_is_none() -> None:
    """Batches of short rows have a higher loss than those of long ones; that is asked, and not for ever."""
    net, steps, looks = model(), [0], []

    def sorted_by_length(batch: Any) -> Tensor:
        steps[0] += 1
        return SFT(net, batch) * 0 + (1.0 if steps[0] <= 20 else 5.0)

    def held() -> float:
        looks.append(steps[0])
        return 1.0

    history = trainer(net, loss=sorted_by_length, steps=80, held=held, evaluations=2).run()
    assert history.stopped == "finished" and len(history.losses) == 80
    assert looks == [0, 23, 31, 40, 80], "at 3 of 8 steps of 5 nats, and once more when all 8 are"
    assert [point["step"] for point in history.curve] == looks
    assert history.curve[1]["train"] == pytest.approx((20 * 1.0 + 3 * 5.0) / 23) and history.curve[3]["train"] == 5.0


@pytest.mark.parametrize("rate", [1e-9, 3.0])
def test_rows_sorted_by_length_diverge_only_where_the_model_does(rate: float) -> None:
    """Long easy rows first, short hard ones last: their losses differ by nats before any training."""
    net = model()
    trainer(net, steps=40, learning_rate=3e-3).run()

    def loss(batch: Any) -> Tensor:
        return SFT(net, batch) + (4.0 if batch.ids.shape[1] < 10 else 0.0)

    made = trainer(net, loss=loss, learning_rate=rate, evaluations=2)
    rows = sorted(range(len(SAMPLES)), key=lambda row: -len(SAMPLES[row].ids))
    made.batches = [(1, lambda row=row: pad(SAMPLES, [row])) for row in rows for _ in range(5)]
    made.every = 20
    history = made.run()
    if rate < 1:
        first, last = sum(history.losses[:8]) / 8, sum(history.losses[-8:]) / 8
        assert last - first > 2, "the trap that this is about"
        assert history.stopped == "finished" and len(history.losses) == 40
    else:
        assert history.stopped == "diverged" and "held-out loss has risen" in history.note


def test_a_huge_learning_rate_ends_no_worse_than_it_began() -> None:
    net = model()
    trainer(net, steps=40, learning_rate=3e-3).run()
    made = trainer(net, steps=40, learning_rate=3.0)
    before = made.evaluate()
    history = made.run()
    assert history.stopped == "diverged" and len(history.losses) < 40
    assert made.evaluate() <= before and history.best["heldout"] <= before


def test_a_held_out_loss_that_is_no_number() -> None:
    with pytest.raises(InputError, match="not a number before any training: the model is broken, or float16 overflows"):
        trainer(model(), held=lambda: math.nan).run()
    net = model()
    for worse, words in ((math.inf, "is not a number after step 6"), (2.1, "has risen by 1.1 nats after step 6")):
        history = trainer(net, held=iter([1.0, 0.9, worse]).__next__).run()
        assert history.stopped == "diverged" and history.best["step"] == 3 and words in history.note


def test_early_stop(tmp_path: Path) -> None:
    values = [1.0, 0.8, 0.9, 0.8, 0.7]
    history = trainer(model(), tmp_path, held=iter(values).__next__, patience=2).run()
    assert history.stopped == "early stop" and history.best["step"] == 3 and len(history.curve) == 4
    assert "has not fallen for 2 evaluations" in history.note
    assert trainer(model(), tmp_path, held=lambda: 1 / 0, patience=2).run() == history
    patient = trainer(model(), held=iter(values).__next__).run()
    assert patient.stopped == "finished" and len(patient.curve) == 5
