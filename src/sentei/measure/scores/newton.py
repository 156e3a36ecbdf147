"""Numerical Pruning's score (arXiv 2412.12441, eq. 3 to 7), solved exactly.

The relaxed mask `z` minimises `½ (1−z)ᵀ A (1−z) + ½ λ (1ᵀz − r)²` with `A = (WᵀW) ∘ (XᵀX)`. The objective is quadratic
with a constant Hessian, so the paper's 50 Newton steps are one: `z* = 1 − c·u` with `u = A⁻¹ 1`. Inside a part the
order is that of `−u`, whatever λ and r are. As a loss we use `1/u`: for a diagonal A that is exactly Wanda-sp's, and it
compares units of different parts, which the paper's score times 4·head_dim/3 does not (docs/methods.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sentei.algebra.solve import cholesky
from sentei.algebra.triangle import spans
from sentei.measure.scores.base import Additive, Score
from sentei.measure.statistics import PartStats


def relaxed_system(part: PartStats) -> Tensor:
    """`A = (WᵀW) ∘ (XᵀX)`, the Hessian of the masking loss: `[n, n]`, fp64."""
    weight = part.weight.double()
    system = weight.T @ weight
    for rows in spans(len(system)):  # never the whole of the Gram matrix in fp64
        system[rows] *= part.gram[rows]
    return system


def exact_direction(part: PartStats, ridge: float = 1e-4) -> Tensor:
    """`u = A⁻¹ 1` by one Cholesky solve: `[n]`; `z* = 1 − c u`. `ridge` is relative to A's mean diagonal."""
    system = relaxed_system(part)
    system.diagonal().add_(ridge * system.diagonal().mean())
    factor = cholesky(system, overwrite=True)
    half = torch.linalg.solve_triangular(factor, system.new_ones(len(system), 1), upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True).squeeze(1)


class _Newton(Additive):
    """`per_input` is `u`."""

    def losses(self, units: Tensor) -> Tensor:
        """`size / mean(u)` of each unit; a unit that the relaxed mask would strengthen (`u <= 0`) never goes first."""
        mean = self.per_input[units].mean(1)
        floor = self.per_input.abs().mean() * 1e-6
        # beyond the floor the order goes on with the sign: the more negative u, the later
        return units.shape[1] / mean.clamp_min(floor) + (floor - mean).clamp_min(0) / floor**2


def _newton(part: PartStats, _: torch.Generator) -> _Newton:
    return _Newton(exact_direction(part).float())


NEWTON = Score(
    "newton",
    _newton,
    "output",
    "the relaxed mask's exact minimiser, one Cholesky solve (Numerical Pruning, arXiv 2412.12441)",
    needs_gram=True,
)
