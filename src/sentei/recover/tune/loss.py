"""What training minimises: which positions, how much of the text and of a teacher, fused with the gradient.

A training step that makes fp32 logits of every token spends half its time on them where the vocabulary is large. Here
the logits of a few rows are made, turned into loss and gradient while they are in cache, and dropped: what is kept from
forward to backward is the gradient of the hidden states, [N, D].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sentei.data.batches import Batch
from sentei.inference.forward import final_hidden, logits

CHUNK = 64  # rows of logits at a time; measured: 64 and 128 are equally quick, 16 and 512 slower


@dataclass(frozen=True)
class Soft:
    """A teacher's likeliest tokens at N positions: token ids int64 [N, k], log-probabilities fp32 [N, k]."""

    ids: Tensor
    logp: Tensor

    def part(self, where: slice) -> Soft:
        """Some of the positions."""
        return Soft(self.ids[where], self.logp[where])


@dataclass(frozen=True)
class Whole:
    """All that a teacher says at N positions: its hidden states [N, D], of which it makes logits when they are due."""

    model: Any
    hidden: Tensor

    @torch.no_grad()
    def part(self, where: slice) -> Tensor:
        """Log-probabilities at some of the positions, fp32 [n, V]."""
        return logits(self.model, self.hidden[where]).log_softmax(1)


Taught = Soft | Whole


@dataclass(frozen=True)
class Loss:
    """Mean loss per target of a batch.

    Attributes:
        text: share of the cross-entropy with the text; the rest is the Kullback–Leibler divergence from a teacher.
        teacher: what of it is needed: its "likeliest" tokens (the divergence is over these and one bin for all others,
            a lower bound), or the "model", which reads every batch (the divergence is over the whole vocabulary).
        positions: the targets: the "answers", or "all" tokens of a row but the first.
        line: for people.
    """

    name: str
    text: float
    teacher: Literal["likeliest", "model"] | None
    line: str
    positions: Literal["answers", "all"] = "answers"

    def __call__(self, model: Any, batch: Batch, taught: Taught | None = None) -> Tensor:
        """fp32 scalar; differentiable with respect to the model's body.

        Args:
            model: a causal language model; its output embeddings are taken as fixed (pruning leaves them alone).
            batch: on the model's device.
            taught: what the teacher says at the targets of the batch, where one is needed.
        """
        hidden, _ = final_hidden(model, batch.ids)
        loss: Tensor = _Fused.apply(hidden[batch.sources], model, batch.targets, taught, self)
        return loss


SFT = Loss("sft", 1.0, None, "cross-entropy with the answers")
LOSSES = {
    loss.name: loss
    for loss in (
        SFT,
        Loss("kd", 0.0, "likeliest", "the teacher's likeliest tokens at answers"),
        Loss("both", 0.5, "likeliest", "the mean of sft and kd"),
        Loss("kl", 0.0, "model", "the teacher's whole distribution at answers; it reads every batch"),
        Loss("kl-all", 0.0, "model", "the same at every token, of questions too", "all"),
        Loss("sft-all", 1.0, None, "cross-entropy with every token, of questions too", "all"),
    )
}


class _Fused(torch.autograd.Function):
    """Mean loss of hidden states [N, D]; the gradient is made with the loss, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, model: Any, targets: Tensor, taught: Taught | None, kind: Loss) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            with torch.set_grad_enabled(wanted):
                h = hidden[part].detach().requires_grad_(wanted)
                z = logits(model, h)
            said = None if taught is None else taught.part(part)
            loss, dz = _loss_and_gradient(z.detach(), targets[part], said, kind, 1 / len(hidden))
            total += loss
            if gradient is not None:
                gradient[part] = torch.autograd.grad(z, h, dz)[0]
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.gradient * grads[0], None, None, None, None


def _loss_and_gradient(
    z: Tensor, targets: Tensor, taught: Soft | Tensor | None, kind: Loss, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Scaled, summed loss of logits [n, V] and its gradient with respect to them, in their place: one exponential.

    `taught`: the teacher's likeliest tokens, or its log-probabilities [n, V].
    """
    share = kind.text  # of the text; the rest is the teacher's
    if share < 1 and taught is None:
        raise ValueError(f"the {kind.name} loss needs the teacher's tokens")
    soft = taught if isinstance(taught, Soft) and share < 1 else None
    whole = taught if isinstance(taught, Tensor) and share < 1 else None
    z.sub_(z.amax(1, keepdim=True))
    at_target = z.gather(1, targets[:, None])[:, 0]
    at_soft = None if soft is None else z.gather(1, soft.ids)
    p_whole = None if whole is None else whole.exp()
    # Σ p (log p − z): the divergence but for the student's normaliser
    apart = None if whole is None or p_whole is None else (p_whole * (whole - z)).sum(1)
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
    elif apart is not None and p_whole is not None:  # dL/dz is q - p
        loss = loss + (1 - share) * (apart + lse).sum()
        q.mul_((scale / total)[:, None]).sub_(p_whole, alpha=scale * (1 - share))
    else:
        q.mul_((scale * factor / total)[:, None])
    q.scatter_add_(1, targets[:, None], torch.full_like(lse, -scale * share)[:, None])
    return loss * scale, q
