from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recover.recovering import random_samples, shaken, small_model
from sentei.data.batches import Batch, pad
from sentei.families import family_of
from sentei.inference.forward import evaluating
from sentei.recover.teacher import Present
from sentei.recover.tune import loss as module
from sentei.recover.tune.loss import LOSSES, SFT, Soft, _loss_and_gradient
from tiny import VARIANTS


def reference(z: Tensor, targets: Tensor, soft: Soft | None, kind: str) -> Tensor:
    """Summed loss in float64, as it is written: cross-entropy; KL over the k tokens and one bin for all others."""
    log_q = z.log_softmax(1)
    text = -log_q.gather(1, targets[:, None]).sum()
    if kind == "sft" or soft is None:
        return text
    logp = soft.logp.double()
    taught = log_q.gather(1, soft.ids)
    rest_p, rest_q = 1 - logp.exp().sum(1), 1 - taught.exp().sum(1)
    kl = (logp.exp() * (logp - taught)).sum() + (rest_p * (rest_p.log() - rest_q.log())).sum()
    return kl if kind == "kd" else (text + kl) / 2


def case(n: int = 7, vocabulary: int = 30, k: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Soft]:
    generator = torch.Generator().manual_seed(seed)
    z, teacher = (torch.randn(n, vocabulary, generator=generator) * 2 for _ in range(2))
    top = teacher.log_softmax(1).topk(k)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    targets[0] = top.indices[0, 0]  # the text is among the teacher's tokens, and is not
    return z, targets, Soft(top.indices, top.values)


@pytest.mark.parametrize("kind", ["sft", "kd", "both"])
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_equal_autograd_in_float64(kind: str, seed: int) -> None:
    z, targets, soft = case(seed=seed)
    wide = z.double().requires_grad_()
    wanted = reference(wide, targets, soft, kind)
    (gradient,) = torch.autograd.grad(wanted, wide)
    found, dz = _loss_and_gradient(z.clone(), targets, soft, LOSSES[kind], 0.25)
    assert found.item() == pytest.approx(wanted.item() / 4, rel=1e-5)
    torch.testing.assert_close(dz, gradient.float() / 4, rtol=1e-4, atol=1e-6)


def test_gradients_pass_a_numerical_check() -> None:
    z, targets, soft = case(n=2, vocabulary=9, k=3)
    z = z.double()
    for kind in ("sft", "kd", "both"):
        _, dz = _loss_and_gradient(z.clone(), targets, soft, LOSSES[kind])
        for i in range(z.numel()):
            step = torch.zeros(z.numel(), dtype=torch.float64)
            step[i] = 1e-5
            ends = [_loss_and_gradient(z + s * step.view_as(z), targets, soft, LOSSES[kind])[0] for s in (1, -1)]
            assert (ends[0] - ends[1]).item() / 2e-5 == pytest.approx(dz.flatten()[i].item(), abs=1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    z = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 3
    for k in (1, 8, 40):
        top = z.log_softmax(1).topk(k)
        found, dz = _loss_and_gradient(
            z.clone(), torch.zeros(6, dtype=torch.long), Soft(top.indices, top.values), LOSSES["kd"]
        )
        assert abs(found.item()) < 1e-4 and dz.abs().max() < 1e-5


def test_certain_predictions_stay_finite() -> None:
    z = torch.zeros(1, 9)
    z[0, 0] = 200.0
    for at in (0, 1):
        soft = Soft(torch.tensor([[at, 2]]), torch.tensor([[0.0, -65000.0]]))
        for kind in ("sft", "kd", "both"):
            found, dz = _loss_and_gradient(z.clone(), torch.tensor([at]), soft, LOSSES[kind])
            assert torch.isfinite(found) and torch.isfinite(dz).all() and found.item() == pytest.approx(200 * at, abs=1)


def batch() -> Batch:
    samples = random_samples([9, 4, 14])
    return pad(samples, [2, 0, 1])


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_the_fused_loss_is_the_plain_one_of_transformers(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 5)  # many chunks, the last one not full
    model, some = small_model(variant), batch()
    blocks = {name: p for name, p in model.named_parameters() if name.startswith(family_of(model.config).blocks_at)}
    labels = some.ids.masked_fill(~some.response, -100)
    labels[:, 0] = -100
    plain = model(some.ids, labels=labels).loss
    wanted = torch.autograd.grad(plain, list(blocks.values()))
    ours = SFT(model, some)
    found = torch.autograd.grad(ours, list(blocks.values()))
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    for name, a, b in zip(blocks, found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-4 * max(1e-2, float(b.abs().max())), name


@pytest.mark.parametrize("kind", ["kd", "both"])
def test_distillation_through_the_model_equals_autograd(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 5)
    model, some = small_model(), batch()
    generator = torch.Generator().manual_seed(3)
    top = torch.randn(len(some.targets), 128, generator=generator).log_softmax(1).topk(6)
    soft = Soft(top.indices, top.values)
    params = [p for name, p in model.named_parameters() if ".layers." in name]
    z = model(some.ids).logits[some.sources].double()
    plain = reference(z, some.targets, soft, kind) / len(some.targets)
    ours = LOSSES[kind](model, some, soft)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(2 * ours, params), torch.autograd.grad(2 * plain, params), strict=True):
        assert (a - b).abs().max() < 1e-4 * max(1e-2, float(b.abs().max()))
    with pytest.raises(ValueError, match=f"the {kind} loss needs the teacher's tokens"):
        LOSSES[kind](model, some)


def test_without_gradients_nothing_is_kept() -> None:
    model, some = small_model(), batch()
    with evaluating(model):
        value = SFT(model, some)
    assert not value.requires_grad and value.item() == pytest.approx(SFT(model, some).item())


def test_bf16_is_near_fp32() -> None:
    some = batch()
    wide, narrow = (SFT(small_model().to(dtype), some) for dtype in (torch.float32, torch.bfloat16))
    assert narrow.dtype == torch.float32 and narrow.item() == pytest.approx(wide.item(), rel=0.05)
    z = small_model().to(torch.bfloat16)(some.ids).logits[some.sources].float()
    assert narrow.item() == pytest.approx(F.cross_entropy(z, some.targets).item(), rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_divergence_over_the_whole_vocabulary_and_its_gradient(seed: int) -> None:
    z, targets, _ = case(seed=seed)
    log_p = case(seed=seed + 10)[0].log_softmax(1)
    wide = z.double().requires_grad_()
    wanted = F.kl_div(wide.log_softmax(1), log_p.double(), log_target=True, reduction="sum")
    (gradient,) = torch.autograd.grad(wanted, wide)
    found, dz = _loss_and_gradient(z.clone(), targets, log_p, LOSSES["kl"], 0.25)
    assert found.item() == pytest.approx(wanted.item() / 4, rel=1e-5)
    torch.testing.assert_close(dz, gradient.float() / 4, rtol=1e-4, atol=1e-6)
    top = log_p.topk(5)
    bound, _ = _loss_and_gradient(z.clone(), targets, Soft(top.indices, top.values), LOSSES["kd"], 0.25)
    assert bound.item() < found.item(), "that of the likeliest tokens and one bin is a lower bound"


def test_a_teacher_in_the_loop_reads_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 5)
    model, dense, some = small_model(), shaken(small_model()), batch()
    params = [p for name, p in model.named_parameters() if ".layers." in name]
    log_p, z = (net(some.ids).logits[some.sources].double().log_softmax(1) for net in (dense, model))
    plain = F.kl_div(z, log_p.detach(), log_target=True, reduction="sum") / len(some.targets)
    ours = LOSSES["kl"](model, some, Present(dense).says(some))
    assert ours.item() == pytest.approx(plain.item(), rel=1e-4)
    for a, b in zip(torch.autograd.grad(ours, params), torch.autograd.grad(plain, params), strict=True):
        assert (a - b).abs().max() < 1e-4 * max(1e-2, float(b.abs().max()))
    itself = LOSSES["kl"](model, some, Present(model).says(some))
    assert abs(itself.item()) < 1e-6
