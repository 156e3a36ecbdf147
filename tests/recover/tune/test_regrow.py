from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor, nn

from recover.recovering import loaded, pool, shaken, small_model
from sentei.errors import InputError
from sentei.models.load import Loaded, load
from sentei.recover.tune import regrow, train
from sentei.recover.tune.adapters import ADAPTERS
from sentei.recover.tune.adapters.files import load_adapter
from sentei.recover.tune.adapters.layer import SparseLoraLinear, attach
from sentei.recover.tune.allocate import Share
from sentei.recover.tune.effective import effective_linear
from sentei.recover.tune.regrow import Regrow
from sentei.recover.tune.train import BETAS, Trainer
from sentei.recover.tune.tune import tune

SPARSE = [name for name in ADAPTERS if ADAPTERS[name].sparse]
USUAL: dict[str, Any] = {
    "tokens": 3000,
    "batch_tokens": 128,
    "evaluations": 4,
    "patience": None,
    "budget_params": "5%",
    "learning_rate": 5e-3,
    "loss": "kd",
}
IDS = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(1))


def one_linear(indices: Tensor, shape: tuple[int, int] = (24, 32)) -> tuple[nn.Module, SparseLoraLinear]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
    wrapped = attach(model, LoraConfig(), {"0": Share(0, indices)}, seed=0)
    (layer,) = (m for m in wrapped.modules() if isinstance(m, SparseLoraLinear))
    return wrapped, layer


def entries(layer: SparseLoraLinear) -> tuple[Tensor, Tensor]:
    return layer.parts("default")[3:]


@pytest.fixture(scope="module")
def dense() -> Loaded:
    return loaded(small_model(), "dense")


def hurt() -> Loaded:
    return loaded(shaken(small_model(), 0.1), "hurt")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regrow, "REGROW", 4)
    monkeypatch.setattr(regrow, "WATCH", 3)


def test_the_gradient_that_is_watched_is_that_of_the_weight() -> None:
    torch.manual_seed(0)
    x, weight, values = torch.randn(2, 5, 6), torch.randn(4, 6), torch.randn(3, requires_grad=True)
    A, B, indices, seen = torch.randn(1, 6), torch.randn(4, 1), torch.tensor([1, 7, 20]), []
    effective_linear(
        x, weight, None, A, B, 0.5, values, indices, lambda d: seen.append(d.clone())
    ).square().sum().backward()
    dense = (weight + 0.5 * B @ A).view(-1).index_add(0, indices, values.detach()).view(4, 6).requires_grad_()
    (x @ dense.T).square().sum().backward()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], dense.grad)
    torch.testing.assert_close(values.grad, dense.grad.view(-1)[indices])


def test_when_entries_move() -> None:
    layer = one_linear(torch.arange(9))[0]
    assert (
        Regrow(layer, 100).due() == [20, 40] and Regrow(layer, 80).due() == [20, 40] and Regrow(layer, 39).due() == []
    )
    made, seen = Regrow(layer, 100), []
    (net,) = made.layers.values()
    for step in range(100):
        with made.watching(step):
            seen += [step] if net.watch else []
        assert net.watch is None
    assert seen == [15, 16, 17, 18, 19, 35, 36, 37, 38, 39]
    with pytest.raises(KeyboardInterrupt), made.watching(15):
        raise KeyboardInterrupt
    assert net.watch is None, "nothing stays behind"


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 48),
    steps=st.sampled_from([40, 41, 100]),
    zeros=st.floats(0, 1),
)
def test_one_move(seed: int, k: int, steps: int, zeros: float) -> None:
    """Against a plain statement of the rule, on integers: ties, full weights and absent gradients included."""
    rng = torch.Generator().manual_seed(seed)
    start = torch.randperm(48, generator=rng)[:k].sort().values
    model, layer = one_linear(start, (6, 8))
    values, indices = entries(layer)
    optimizer = torch.optim.AdamW([values], betas=BETAS)
    before = torch.randint(-4, 5, (k,), generator=rng).float()
    values.data.copy_(before)
    moments = torch.rand(2, k, generator=rng) + 1
    optimizer.state[values] = {
        "step": torch.tensor(20.0),
        "exp_avg": moments[0].clone(),
        "exp_avg_sq": moments[1].clone(),
    }
    gradients = [torch.randint(-9, 10, (6, 8), generator=rng).float() for _ in range(2)]
    gradients[0] *= torch.rand(6, 8, generator=rng) >= zeros
    made = Regrow(model, steps)
    (name,) = made.layers
    for gradient in gradients:
        made._watch(name, gradient)
    made.move(19, optimizer)
    assert torch.equal(values, before), "not yet"
    made.move(20, optimizer)

    first = gradients[0].view(-1).abs()
    inactive = [i for i in range(48) if i not in start.tolist() and first[i] > 0]
    candidates = sorted(inactive, key=lambda i: -first[i])[:k]
    count = min(round(0.2 * (1 - 20 / steps) * k), len(candidates))
    assert len(values) == len(indices) == k and made.moved() == count and not made.seen
    assert (indices.diff() > 0).all() and indices.dtype == torch.int32
    was, now = dict(zip(start.tolist(), range(k), strict=True)), indices.tolist()
    state = optimizer.state[values]
    for at, i in enumerate(now):
        expected = [before[was[i]], moments[0][was[i]], moments[1][was[i]]] if i in was else [0, 0, 0]
        assert [values[at], state["exp_avg"][at], state["exp_avg_sq"][at]] == expected
    gone, new = set(was) - set(now), set(now) - set(was)
    assert sorted(abs(float(before[was[i]])) for i in gone) == sorted(before.abs().tolist())[:count]
    total = (gradients[0] + gradients[1]).view(-1).abs()
    if len(inactive) <= k:  # otherwise ties decide who is a candidate
        assert (
            sorted(float(total[i]) for i in new)
            == sorted(float(total[i]) for i in candidates)[len(candidates) - count :]
        )
    assert state["step"] == 20
    assert entries(layer)[0] is values and entries(layer)[1] is indices, "the tensors that others hold"


def test_moments_that_start_at_zero_never_step_far() -> None:
    """The bound in the module's text, and that it is tight."""
    a, b = BETAS
    bound = (1 - a) / math.sqrt(1 - b) / math.sqrt(1 - a * a / b)
    assert 1.16 < bound < 1.17
    worst = 0.0
    for history in (torch.ones(60), (a / b) ** torch.arange(60.0).flip(0)):
        values = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([values], lr=1.0, betas=BETAS, weight_decay=0.0)
        optimizer.state[values] = {
            "step": torch.tensor(1000.0),
            "exp_avg": torch.zeros(1),
            "exp_avg_sq": torch.zeros(1),
        }
        for gradient in history:
            last, values.grad = values.detach().clone(), gradient.view(1)
            optimizer.step()
            worst = max(worst, (values.detach() - last).abs().item())
    assert 0.99 * bound < worst <= bound + 1e-4


def planted(grow: bool, start: Tensor, support: Tensor, steps: int = 200) -> tuple[Trainer, SparseLoraLinear]:
    """Trains entries at `start` towards a change that is at `support`, from noisy batches."""
    model, layer = one_linear(start)
    change = torch.zeros(layer.get_base_layer().weight.numel())
    change[support] = torch.where(torch.arange(len(support)) % 2 == 0, 1.0, -1.0)
    goal = layer.get_base_layer().weight.detach() + change.view(24, 32)
    rng = torch.Generator().manual_seed(5)
    xs = torch.randn(steps + 1, 64, 32, generator=rng)

    def loss(x: Any) -> Tensor:
        noise = torch.randn(64, 24) * 0.5 if torch.is_grad_enabled() else 0.0
        return (model(x) - x @ goal.T + noise).square().mean()

    def held() -> float:
        with torch.no_grad():
            return float(loss(xs[-1]))

    made = Trainer(
        model,
        loss,
        [(1, lambda x=x: x) for x in xs[:-1]],
        held,
        learning_rate=3e-2,
        patience=None,
        regrow=Regrow(model, steps) if grow else None,
    )
    return made, layer


def test_a_better_support_is_found() -> None:
    support = torch.randperm(24 * 32, generator=torch.Generator().manual_seed(7))[:60]
    others = torch.tensor([i for i in range(24 * 32) if i not in support.tolist()])
    start = torch.cat(
        [support[:15], others[torch.randperm(len(others), generator=torch.Generator().manual_seed(8))[:45]]]
    )
    found = {}
    for grow in (False, True):
        trainer, layer = planted(grow, start.sort().values, support)
        best = trainer.run().best["heldout"]
        overlap = int(torch.isin(entries(layer)[1], support).sum())
        found[grow] = best, overlap
        assert trainer.evaluate() == best, "the state that is kept has the indices that belong to its values"
    assert found[False][1] == 15, "static stays where it was"
    moves = sum(round(0.2 * (1 - t / 200) * 60) for t in (20, 40, 60, 80, 100))
    assert moves == 42 and found[True][1] >= 15 + 0.9 * 42, found
    assert found[True][0] < 0.3 * found[False][0], found


def test_the_best_state_has_its_own_indices() -> None:
    """Best before the first move, so the entries go back to where they were."""
    start = torch.arange(30)
    trainer, layer = planted(True, start, torch.arange(40, 70), steps=40)
    values = iter([5.0, 4.0, 3.0, *[4.0] * 20])
    trainer.evaluate = values.__next__
    assert trainer.run().best["step"] == 8
    assert entries(layer)[1].tolist() == start.tolist() and trainer.regrow.moved() == 0
    moved, layer = planted(True, start, torch.arange(40, 70), steps=40)
    moved.run()
    assert moved.regrow.moved() == round(0.2 * 0.5 * 30) == int((entries(layer)[1] >= 30).sum())


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("adapter", SPARSE)
def test_a_killed_tuning_ends_with_the_same_bits(
    dense: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    """Killed again and again; checkpoints lie before, within and after the steps that are watched."""
    options = {**USUAL, "adapter": adapter, "mask": "grow", "teacher": dense, "evaluations": 15}
    whole = tune(hurt(), pool(), work=tmp_path / "a", **options)
    real, calls, resumed = train.Trainer._train, [0], []

    def dying(self: Any, batch: Any) -> None:
        calls[0] += 1
        if calls[0] % 4 == 0:
            raise KeyboardInterrupt
        if calls[0] % 4 == 1:
            resumed.append(bool(self.regrow.seen))
        real(self, batch)

    monkeypatch.setattr(train.Trainer, "_train", dying)
    for _ in range(20):
        try:
            again = tune(hurt(), pool(), work=tmp_path / "b", **options)
            break
        except KeyboardInterrupt:
            pass
    assert calls[0] > whole.record["steps"] and whole.record["moved_entries"] > 0
    assert {*resumed} == {True, False}, "from checkpoints between moves and from others"
    assert {**again.record, "seconds": 0} == {**whole.record, "seconds": 0}
    a, b = whole.adapted.state_dict(), again.adapted.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("adapter", SPARSE)
def test_a_grown_adapter_is_saved_and_merged(dense: Loaded, tmp_path: Path, adapter: str) -> None:
    from sentei.models.save import save

    counts, found = {}, {}
    for mask in ("static", "grow"):
        model = hurt()
        save(model.model, tmp_path / mask / "hurt", tokenizer=model.tokenizer)
        tuned = tune(model, pool(), adapter=adapter, mask=mask, teacher=dense, **USUAL)
        layers = [m for m in tuned.adapted.modules() if isinstance(m, SparseLoraLinear)]
        counts[mask] = [(len(m.parts("default")[0]), len(entries(m)[0])) for m in layers]
        indices = [entries(m)[1] for m in layers]
        assert all((i.diff() > 0).all() for i in indices), "ascending, none twice"
        with torch.no_grad():
            wanted = tuned.adapted(IDS).logits
        tuned.save(tmp_path / mask / "healed")
        healed = load(tmp_path / mask / "healed", dtype="float32").model
        adapted = load_adapter(
            load(tmp_path / mask / "hurt", dtype="float32").model, tmp_path / mask / "healed/adapter"
        )
        with torch.no_grad():
            assert torch.equal(healed(IDS).logits, wanted) and torch.equal(adapted(IDS).logits, wanted)
        found[mask] = tuned.record
    assert counts["static"] == counts["grow"]
    assert found["static"]["trainable_params"] == found["grow"]["trainable_params"]
    assert found["static"]["moved_entries"] == 0 < found["grow"]["moved_entries"]
    assert found["grow"]["mask"] == "grow" and found["grow"]["curve"] != found["static"]["curve"]


def test_masks_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for adapter in sorted({*ADAPTERS} - {*SPARSE}):
        words = rf"--mask grow moves sparse entries, and adapter '{adapter}' has none; use one of lora\+sparse, shira,"
        with pytest.raises(InputError, match=words):
            tune(hurt(), pool(), adapter=adapter, mask="grow", **USUAL)
    with pytest.raises(InputError, match=r"unknown mask 'grown' \(did you mean 'grow'\?\); known: static, grow"):
        tune(hurt(), pool(), mask="grown", **USUAL)


def test_too_few_steps_are_named(dense: Loaded) -> None:
    from sentei.progress import Progress

    lines: list[str] = []

    class Said(Progress):
        def say(self, text: str) -> None:
            lines.append(text)

    tuned = tune(
        hurt(), pool(), adapter="shira", mask="grow", teacher=dense, progress=Said(), **{**USUAL, "tokens": 300}
    )
    assert tuned.record["moved_entries"] == 0
    assert any("steps: none, they are too few; give more --tokens" in line for line in lines)
