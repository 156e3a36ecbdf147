"""Compensation: how what stays makes up for what went. A row-pruned matrix is refitted in closed form.

With kept inputs `x` (of the already cut model), weights `W` and a target `t`, `argmin ‖(W + ΔW) x + b − t‖² + ridge` is

    ΔW = (G + λ diag(G))⁻¹ B,   G = Σ x xᵀ,   B = Σ x (t − W x)ᵀ

Numerical Pruning's equation 11 (arXiv 2412.12441) without its full inverse, and, with both sums centred, FLAP's bias
(arXiv 2312.11983) fitted jointly. λ is relative to each input's own energy and is chosen on windows held out from it.

The target is the dense part's output, plus, for `residual`, a share of what the residual stream has lost so far: that
part of the upstream error which this part's inputs can predict is mended here, instead of being passed on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sentei.algebra.lowrank import factors
from sentei.errors import SenteiError
from sentei.measure.stream import column_sum, cross, gram
from sentei.registry import Registry

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
RESIDUAL_SHARE = 0.75  # 0.5 to 1 differ by less than 1 % of perplexity (docs/methods.md), 0 costs 7 %
HELD_OUT = 8  # every eighth batch judges the ridge


@dataclass(frozen=True)
class Compensation:
    """What is fitted. `residual`: the share of the residual stream's error that enters the target."""

    name: str
    weights: bool
    bias: bool
    residual: float
    line: str


NONE = Compensation("none", False, False, 0.0, "what stays is left as it is")
# Of dense inputs, as in the paper. Fitted for what already cut blocks feed the part, the mean is that of the first
# position's outputs, which are hundreds of times larger than others': perplexity ×1.61 instead of ×1.49 (FLAP, 20 %).
BIAS = Compensation("bias", False, True, 0.0, "a bias replaces the mean of what went (FLAP, arXiv 2312.11983)")
LEAST_SQUARES = Compensation(
    "least-squares",
    True,
    False,
    0.0,
    "output weights refitted to the dense part (Numerical Pruning, arXiv 2412.12441, eq. 11)",
)
LEAST_SQUARES_BIAS = Compensation("least-squares+bias", True, True, 0.0, "both, fitted jointly")
RESIDUAL = Compensation(
    "residual",
    True,
    False,
    RESIDUAL_SHARE,
    "least squares that also pull the residual stream back to the dense model's",
)
RESIDUAL_BIAS = Compensation("residual+bias", True, True, RESIDUAL_SHARE, "the same, with a bias fitted jointly")

COMPENSATIONS: Registry[Compensation] = Registry(
    "compensation",
    {
        c.name: f"{__name__}:{c.name.upper().replace('-', '_').replace('+', '_')}"
        for c in (NONE, BIAS, LEAST_SQUARES, LEAST_SQUARES_BIAS, RESIDUAL, RESIDUAL_BIAS)
    },
)


@dataclass
class _Sums:
    """Sufficient statistics of one share of the data, in fp32: no row is kept."""

    count: float = 0.0
    gram: Tensor | float = 0.0  # Σ x xᵀ: [n, n]
    cross: Tensor | float = 0.0  # Σ x tᵀ: [n, out]
    inputs: Tensor | float = 0.0
    targets: Tensor | float = 0.0

    def add(self, x: Tensor, target: Tensor, weight: Tensor | None, squares: bool) -> None:
        self.count += len(x) if weight is None else weight.sum().item()
        if squares:
            self.gram = self.gram + gram(x, weight)
            self.cross = self.cross + cross(x, target, weight)
        self.inputs = self.inputs + column_sum(x, weight)
        self.targets = self.targets + column_sum(target, weight)

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, f) + getattr(other, f) for f in ("count", "gram", "cross", "inputs", "targets")))

    def system(self, weight: Tensor, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
        """`G`, `B = Σ x (t − W x)ᵀ` and each input's energy in fp64. `weight`: `[out, n]`, fp64.

        `G` and `B` are centred where a bias is fitted jointly. The energy never is: that of an input which
        hardly varies would be rounding errors.
        """
        g, c = torch.as_tensor(self.gram).double(), torch.as_tensor(self.cross).double()
        energy = g.diagonal().clone()
        if centred:
            x, t = (torch.as_tensor(v).double() for v in (self.inputs, self.targets))
            g, c = g - torch.outer(x, x) / self.count, c - torch.outer(x, t) / self.count
        return g, c - g @ weight.T, energy


@dataclass(frozen=True)
class Solution:
    """A refitted matrix `[out, n]`, its factors where it has a rank, a bias `[out]` where one is fitted, the ridge."""

    weight: Tensor
    product: tuple[Tensor, Tensor] | None
    bias: Tensor | None
    ridge: float


@dataclass
class Fit:
    """Accumulates one part's least squares over batches, then solves.

    Usage: `add` every batch in the same order, then `solve`. Without `squares` only means are summed, which is all that
    a bias alone needs.
    """

    compensation: Compensation
    weight: Tensor  # [out, n], the kept columns
    squares: bool = True
    sums: tuple[_Sums, _Sums] = field(default_factory=lambda: (_Sums(), _Sums()))  # fitted, held out
    seen: int = 0

    def add(self, x: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """`x`: `[tokens, n]` inputs of the kept columns, `target`: `[tokens, out]`, `weight`: `[tokens]` or None."""
        self.sums[self.seen % HELD_OUT == HELD_OUT - 1].add(x, target, weight, self.squares)
        self.seen += 1

    def solve(self, rank: int | None = None) -> Solution:
        """The refit; with a rank, the best product of that rank: the refit projected on its main outputs."""
        fitted, held = self.sums
        whole = fitted.plus(held) if held.count else fitted
        weight = self.weight.double()
        ridge = 0.0
        if self.compensation.weights:
            ridge = self._choose_ridge()
            delta = _ridge_solution(*whole.system(weight, self.compensation.bias), ridge)
            if delta is None:
                raise SenteiError("the refit's Gram matrix is not positive definite; use more calibration data")
            weight = weight + delta.T
        product = None
        if rank is not None:
            found = factors(weight, torch.as_tensor(whole.gram).double())
            product = found.u[:, :rank], found.v[:rank]
            weight = product[0].double() @ product[1].double()
        bias = None
        if self.compensation.bias:
            x, t = (torch.as_tensor(v).double() for v in (whole.inputs, whole.targets))
            bias = (t - weight @ x) / whole.count
        return Solution(weight, product, bias, ridge)

    def _choose_ridge(self) -> float:
        """The ridge with the smallest held-out error; the middle one where too few batches held any out."""
        fitted, held = self.sums
        if not held.count:
            return RIDGES[len(RIDGES) // 2]
        weight = self.weight.double()
        # fp32 is enough to compare ridges, and several times faster; one too small for fp32 is no candidate
        g, b, energy = (m.float() for m in fitted.system(weight, self.compensation.bias))
        held_g, held_b, _ = (m.float() for m in held.system(weight, self.compensation.bias))
        errors = []
        for ridge in RIDGES:
            delta = _ridge_solution(g, b, energy, ridge)
            if delta is None:
                errors.append(float("inf"))
                continue
            # ‖t − (W+Δ)x‖² = const − 2 tr(Δᵀ B) + tr(Δᵀ G Δ)
            errors.append((delta * (held_g @ delta - 2 * held_b)).sum(dtype=torch.float64).item())
        return RIDGES[errors.index(min(errors))]


def _ridge_solution(g: Tensor, b: Tensor, energy: Tensor, ridge: float) -> Tensor | None:
    """`(G + λ diag(energy))⁻¹ B` in `G`'s dtype, None where singular. An input that is always zero stays."""
    scale = torch.where(energy > 0, energy, torch.ones_like(energy)).rsqrt()
    system = g * scale[:, None] * scale
    system.diagonal().add_(torch.where(energy > 0, ridge, 1.0).to(g.dtype))
    factor, failed = torch.linalg.cholesky_ex(system)
    return None if failed.item() else scale[:, None] * torch.cholesky_solve(scale[:, None] * b, factor)
