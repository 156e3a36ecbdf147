"""Structured optimal brain surgeon: joint, greedy, with inverse-Hessian downdates.

Removing the inputs P of `Y = W X` and refitting the rest by least squares raises the squared error by
`tr(W_P (H⁻¹_PP)⁻¹ W_Pᵀ)` with `H = X Xᵀ` (OBS, Hassibi & Stork 1993, for columns; SparseGPT, ZipLM). After each removal
the rest is updated, `W ← W − W_P (H⁻¹_PP)⁻¹ H⁻¹_P,:` and `H⁻¹ ← H⁻¹ − H⁻¹_:,P (H⁻¹_PP)⁻¹ H⁻¹_P,:`, so the losses along
the order are those of the joint least-squares refit. `obs-fisher` measures the error in the metric of the output
gradients `F = mean(g gᵀ)`: half of `tr(F ΔW H ΔWᵀ)` is the second-order growth of the loss under a Kronecker-factored
empirical Fisher.

One downdate per input would read `H⁻¹` n times. An order is made in batches instead: of the inputs that are cheapest
now, some go one after another with exact downdates among these few, and then the whole is downdated for all of them at
once. The order is that of one at a time but where an input that was no candidate became cheaper than all that were.
Taking the cheapest together is no substitute: of two inputs that say the same, each is cheap, and both are not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sentei.algebra.solve import inverse, root
from sentei.errors import InputError
from sentei.measure.scores.base import Score
from sentei.measure.statistics import PartStats

RIDGE = 1e-4  # of the mean diagonal: only keeps the inverse finite, the cut chooses its own ridge on held-out data
BATCH = 64  # inputs between two downdates of the whole, at most; and at most this part of all
CANDIDATES = 4  # times as many are looked at for a batch
SPARSE = 7 / 8  # of the rows are still there: rows that are not are dropped


class Obs:
    """A remover that refits after every removal. It computes where the statistics are, in fp64 and fp32.

    Beside the statistics its memory is at most 12 n² bytes, and 8 · n · out.
    """

    def __init__(self, weight: Tensor, gram: Tensor) -> None:
        """`weight`: `[out, n]`, `gram`: `[n, n]`, mean over tokens."""
        self.inverse, scale = _unit_inverse(gram)
        self.columns = (weight.T / scale[:, None]).float()  # [n, out]
        self.inputs = torch.arange(len(scale), device=gram.device)  # whose each row is
        self.there = torch.ones_like(self.inputs, dtype=torch.bool)

    def _rows(self, units: Tensor) -> Tensor:
        return torch.searchsorted(self.inputs, units.to(self.inputs.device))

    @staticmethod
    def _inner(block: Tensor) -> Tensor:
        """`(H⁻¹_PP)⁻¹`: a Schur complement of H, whose diagonal is at most 1, so that `|P|` bounds its eigenvalues."""
        return inverse(block, least=1 / block.shape[-1]).float()

    def _alone(self) -> Tensor:
        """The loss of every row's input, infinite where it is gone: `[rows]`."""
        losses = torch.linalg.vector_norm(self.columns, dim=1).square() / self.inverse.diagonal().clamp_min(1)
        return losses.masked_fill(~self.there, torch.inf)

    def losses(self, units: Tensor) -> Tensor:
        """`tr(W_P (H⁻¹_PP)⁻¹ W_Pᵀ)` of each unit P."""
        at = self._rows(units)
        if at.shape[1] == 1:  # channels: no small inverses
            return self._alone()[at[:, 0]]
        inner = self._inner(self.inverse[at[:, :, None], at[:, None, :]])  # [k, size, size]
        columns = self.columns[at]  # [k, size, out]
        return ((inner @ columns) * columns).sum((1, 2))

    def remove(self, units: Tensor) -> float:
        """Removes the inputs of all units jointly and refits the rest."""
        return self._remove(self._rows(units.flatten())).item()

    def _remove(self, at: Tensor) -> Tensor:
        inner = self._inner(self.inverse[at][:, at])
        rows, columns = self.inverse[at], self.columns[at]  # [p, rows], [p, out]
        update = inner @ rows
        self.columns.addmm_(update.T, columns, alpha=-1)
        self.inverse.addmm_(rows.T, update, alpha=-1)
        self.there[at] = False
        left = self.there.nonzero()[:, 0]
        if len(left) < SPARSE * len(self.there):
            self.inverse, self.columns = self.inverse[left][:, left], self.columns[left]
            self.inputs, self.there = self.inputs[left], self.there[left]
        return ((inner @ columns) * columns).sum()

    def order(self) -> tuple[Tensor, Tensor]:
        """Removes one input after another, always the cheapest, until none is left."""
        left = len(self.inputs)
        size = min(BATCH, -(-left // BATCH))
        inputs, losses = [], []
        while left:
            at, batch = self._cheapest(min(size, left), min(CANDIDATES * size, left))
            inputs.append(self.inputs[at])
            losses.append(batch)
            self._remove(at)
            left -= len(at)
        return torch.cat(inputs), torch.cat(losses)

    def _cheapest(self, count: int, candidates: int) -> tuple[Tensor, Tensor]:
        """Rows of the `count` inputs that go next, and the loss of each after those before it; changes nothing."""
        among = self._alone().argsort(stable=True)[:candidates]
        inverse, columns = self.inverse[among][:, among].double(), self.columns[among]
        products = (columns @ columns.T).double()
        gone = inverse.new_zeros(candidates)
        picked, losses = [], []
        for _ in range(count):
            losses_now = products.diagonal() / inverse.diagonal().clamp_min(1) + gone
            next_ = losses_now.argmin(keepdim=True)
            picked.append(next_)
            losses.append(losses_now[next_])
            row = inverse[next_[0]].clone()
            step = row / row[next_]
            # W ← W − w stepᵀ, w the column that goes: WᵀW ← WᵀW − mixed stepᵀ − step mixedᵀ
            product = products[next_[0]]
            mixed = product - product[next_] / 2 * step
            products.addr_(mixed, step, alpha=-1).addr_(step, mixed, alpha=-1)
            inverse.addr_(step, row, alpha=-1)
            gone[next_] = torch.inf
        return among[torch.cat(picked)], torch.cat(losses)


def _unit_inverse(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse for inputs of unit energy, whose downdates are safe in fp32, and what scales inputs to it: `[n]`."""
    hessian = gram.to(torch.float64, copy=True)
    hessian.diagonal().add_(RIDGE * hessian.diagonal().mean() + torch.finfo(torch.float64).tiny)
    scale = hessian.diagonal().rsqrt()
    hessian.mul_(scale[:, None]).mul_(scale)
    return inverse(hessian, overwrite=True).float(), scale


def _obs(part: PartStats, _: torch.Generator) -> Obs:
    return Obs(part.weight, part.gram)


def _obs_fisher(part: PartStats, _: torch.Generator) -> Obs:
    if part.grad_energy is None:
        raise InputError("score 'obs-fisher' needs gradients; measure again with --gradient-tokens 8192")
    assert part.output_grad is not None  # gradients have both
    return Obs((root(part.output_grad / 2) @ part.weight.double()).float(), part.gram)


OBS = Score(
    "obs",
    _obs,
    "output",
    "structured optimal brain surgeon: greedy, refitted after every removal (Hassibi & Stork 1993; ZipLM)",
    needs_gram=True,
)
OBS_FISHER = Score(
    "obs-fisher",
    _obs_fisher,
    "nats",
    "structured OBS whose error is measured by the output gradients (Kronecker-factored Fisher)",
    needs_gradients=True,
    needs_gram=True,
)
