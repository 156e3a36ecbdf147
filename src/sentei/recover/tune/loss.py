"""The loss on response tokens: logits only where the loss is, in chunks, fused with their gradient.

A training step that makes fp32 logits of every token spends half its time on them where the vocabulary is large. Here
the logits of a few rows are made, turned into loss and gradient while they are in cache, and dropped: what is kept from
forward to backward is the gradient of the hidden states, [N, D].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sentei.data.batches import Batch
from sentei.inference.forward import final_hidden, logits

LOSSES = ("sft", "kd", "both")
CHUNK = 64  # rows of logits at a time; measured: 64 and 128 are equally quick, 16 and 512 slower


@dataclass(frozen=True)
class Soft:
    """A teacher's likeliest tokens at N positions: token ids int64 [N, k], log-probabilities fp32 [N, k]."""

    ids: Tensor
    logp: Tensor


def response_loss(model: Any, batch: Batch, *, soft: Soft | None = None, kind: str = "sft") -> Tensor:
    """Mean loss per response token of a batch, fp32 scalar; differentiable with respect to the model's body.

    Args:
        model: a causal language model; its output embeddings are taken as fixed (they are what pruning leaves alone).
        batch: on the model's device.
        soft: the teacher's likeliest tokens at the targets of the batch; needed for "kd" and "both".
        kind: "sft": cross-entropy with the text. "kd": Kullback–Leibler divergence from the teacher, over its likeliest
            tokens and one bin for all others. "both": their mean.
    """
    hidden, _ = final_hidden(model, batch.ids)
    loss: Tensor = _Fused.apply(hidden[batch.sources], model, batch.targets, soft, kind)
    return loss


class _Fused(torch.autograd.Function):
    """Mean loss of hidden states [N, D]; the gradient is made with the loss, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, model: Any, targets: Tensor, soft: Soft | None, kind: str) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            taught = None if soft is None else Soft(soft.ids[part], soft.logp[part])
            with torch.set_grad_enabled(wanted):
                h = hidden[part].detach().requires_grad_(wanted)
                z = logits(model, h)
            loss, dz = _loss_and_gradient(z.detach(), targets[part], taught, kind, 1 / len(hidden))
            total += loss
            if gradient is not None:
                gradient[part] = torch.autograd.grad(z, h, dz)[0]
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.gradient * grads[0], None, None, None, None


def _loss_and_gradient(
    z: Tensor, targets: Tensor, soft: Soft | None, kind: str, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Scaled, summed loss of logits [n, V] and its gradient with respect to them, in their place: one exponential."""
    if kind != "sft" and soft is None:
        raise ValueError(f"the {kind} loss needs the teacher's tokens")
    share = {"sft": 1.0, "kd": 0.0, "both": 0.5}[kind]  # of the text; the rest is the teacher's
    z.sub_(z.amax(1, keepdim=True))
    at_target = z.gather(1, targets[:, None])[:, 0]
    at_soft = None if soft is None or share == 1 else z.gather(1, soft.ids)
    q = z.exp_()
    total = q.sum(1)
    lse = total.log()
    loss = share * (lse - at_target).sum()
    factor = torch.full_like(lse, share)  # of q in the gradient
    if soft is not None and at_soft is not None:
        # KL over the teacher's k tokens and one bin for the rest: with P, Q their mass under teacher and student,
        # dL/dz_j is q_j - p_j for the k tokens and q_j (P - (1-P) Q / (1-Q)) for all others.
        log_q = at_soft - lse[:, None]
        p, q_soft = soft.logp.exp(), log_q.exp()
        rest_p = (1 - p.sum(1)).clamp_min(0)
        rest_q = (1 - q_soft.sum(1)).clamp_min(1e-6)
        kl = (p * (soft.logp - log_q)).sum(1) + torch.xlogy(rest_p, rest_p) - rest_p * rest_q.log()
        loss = loss + (1 - share) * kl.sum()
        factor = factor + (1 - share) * (p.sum(1) - rest_p * q_soft.sum(1) / rest_q)
        q.mul_((scale * factor / total)[:, None])
        q.scatter_(1, soft.ids, scale * (share * q_soft + (1 - share) * (q_soft - p)))
    else:
        q.mul_((scale * factor / total)[:, None])
    q.scatter_add_(1, targets[:, None], torch.full_like(lse, -scale * share)[:, None])
    return loss * scale, q
