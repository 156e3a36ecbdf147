"""Structured optimal brain surgeon: joint, greedy, with inverse-Hessian downdates.

Removing the inputs P of `Y = W X` and refitting the rest by least squares raises the squared error by
`tr(W_P (H⁻¹_PP)⁻¹ W_Pᵀ)` with `H = X Xᵀ` (OBS, Hassibi & Stork 1993, for columns; SparseGPT, ZipLM). After each removal
the rest is updated, `W ← W − W_P (H⁻¹_PP)⁻¹ H⁻¹_P,:` and `H⁻¹ ← H⁻¹ − H⁻¹_:,P (H⁻¹_PP)⁻¹ H⁻¹_P,:`, so the losses along
the order are those of the joint least-squares refit. `obs-fisher` measures the error in the metric of the output
gradients `F = mean(g gᵀ)`: half of `tr(F ΔW H ΔWᵀ)` is the second-order growth of the loss under a Kronecker-factored
empirical Fisher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sentei.algebra.solve import inverse, symmetric_root
from sentei.errors import InputError
from sentei.measure.profile import PartStats
from sentei.measure.scores.base import Score

RIDGE = 1e-4  # of the mean diagonal: only keeps the inverse finite, the cut chooses its own ridge on held-out data


class Obs:
    """A remover that refits after every removal; removed inputs are dropped from the matrices."""

    def __init__(self, weight: Tensor, gram: Tensor) -> None:
        """`weight`: `[out, n]`, `gram`: `[n, n]`, mean over tokens."""
        hessian = gram.double().clone()
        hessian.diagonal().add_(RIDGE * hessian.diagonal().mean() + torch.finfo(torch.float64).tiny)
        # with inputs of unit energy the downdates are safe in fp32, which is several times faster than fp64
        scale = hessian.diagonal().rsqrt()
        self.inverse = inverse(hessian * scale[:, None] * scale).float()
        self.weight = (weight.double() / scale).float()
        self.alive = torch.arange(weight.shape[1])

    def _positions(self, units: Tensor) -> Tensor:
        return torch.searchsorted(self.alive, units)

    @staticmethod
    def _inner(block: Tensor) -> Tensor:
        """`(H⁻¹_PP)⁻¹`: a Schur complement of H, whose diagonal is at most 1, so that `|P|` bounds its eigenvalues."""
        return inverse(block, least=1 / block.shape[-1]).float()

    def losses(self, units: Tensor) -> Tensor:
        """`tr(W_P (H⁻¹_PP)⁻¹ W_Pᵀ)` of each unit P."""
        at = self._positions(units)
        if at.shape[1] == 1:  # the common case, channels: no small inverses
            return self.weight[:, at[:, 0]].square().sum(0) / self.inverse.diagonal()[at[:, 0]]
        inner = self._inner(self.inverse[at[:, :, None], at[:, None, :]])  # [k, size, size]
        columns = self.weight[:, at].transpose(0, 1)  # [k, out, size]
        return ((columns @ inner) * columns).sum((1, 2))

    def remove(self, units: Tensor) -> float:
        """Removes the inputs of all units jointly and refits the rest."""
        at = self._positions(units.flatten())
        inner = self._inner(self.inverse[at][:, at])
        rows = self.inverse[at]  # [p, n]
        columns = self.weight[:, at]  # [out, p]
        loss = ((columns @ inner) * columns).sum().item()
        keep = torch.ones(len(self.alive), dtype=torch.bool)
        keep[at] = False
        update = inner @ rows[:, keep]
        self.weight = self.weight[:, keep] - columns @ update
        self.inverse = self.inverse[keep][:, keep] - rows[:, keep].T @ update
        self.alive = self.alive[keep]
        return loss


def _obs(part: PartStats, _: torch.Generator) -> Obs:
    return Obs(part.weight, part.gram)


def _obs_fisher(part: PartStats, _: torch.Generator) -> Obs:
    if part.output_grad is None:
        raise InputError("score 'obs-fisher' needs gradients; measure again with --gradient-tokens 8192")
    root = symmetric_root(part.output_grad / 2)
    return Obs(root @ part.weight.double(), part.gram)


OBS = Score(
    "obs",
    _obs,
    "output",
    "structured optimal brain surgeon: greedy, refitted after every removal (Hassibi & Stork 1993; ZipLM)",
)
OBS_FISHER = Score(
    "obs-fisher",
    _obs_fisher,
    "nats",
    "structured OBS whose error is measured by the output gradients (Kronecker-factored Fisher)",
    needs_gradients=True,
)
