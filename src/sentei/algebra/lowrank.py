"""Low-rank matrices in closed form: the best product of two thin matrices for what a matrix's outputs must be.

For a matrix `W` and the Gram matrix `C` of its inputs, the best `M` of rank R, `argmin E‖W x − M x‖²`, is reduced-rank
regression: with `W C Wᵀ = U diag(λ) Uᵀ`, `M = U_R U_Rᵀ W`, and its error is `Σ_{i≥R} λ_i`. One eigendecomposition holds
every rank: the factors are nested. LLM-Sieve (arXiv 2505.18350) trains this projection anew for each rank by gradient
descent; SVD-LLM (arXiv 2403.07378) reaches the same product through a Cholesky factor of `C`.

Everything here is computed in fp64: `W C Wᵀ` squares the condition of the activations. In fp32, for half of the time,
the squared error of SmolLM2-135M's first q_proj is 2 % above the optimum at rank 215 of 576, and more at higher ranks
(benchmarks/projection.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sentei.algebra.pivot import pivot as pivot
from sentei.algebra.solve import solve
from sentei.algebra.triangle import spans
from sentei.errors import SenteiError
from sentei.plan import Storage
from sentei.plan import stored as stored

RIDGE = 1e-4  # of each input's energy, pulls an anchored fit towards the dense weights
DAMPING = 1e-3  # of the mean output's weight: what a metric that was measured on few gradients does not know


@dataclass
class Factors:
    """`W ≈ u[:, :R] @ v[:R]` for every rank R.

    Attributes:
        u: `[out, K]`. Orthonormal columns, or `G`-orthonormal ones in an output metric `G`.
        v: `[K, in]`.
        values: `[min(out, in)]` in fp64, descending: the squared output error (mean per token) that each component
            carries, in the metric that the factors were made for. Those beyond K are of components that were dropped.
    """

    u: Tensor
    v: Tensor
    values: Tensor

    @property
    def rank(self) -> int:
        """How many components are there: K."""
        return self.u.shape[1]

    def truncated(self, rank: int) -> Factors:
        """A copy of the first `rank` components, so that the rest can be freed."""
        return Factors(self.u[:, :rank].clone(), self.v[:rank].clone(), self.values)

    def product(self, rank: int) -> Tensor:
        """The matrix of that rank: `[out, in]`."""
        return self.u[:, :rank] @ self.v[:rank]


def factors(
    weight: Tensor,
    gram: Tensor,
    *,
    metric: Tensor | None = None,
    target_cross: Tensor | None = None,
    ridge: float = RIDGE,
    damping: float = DAMPING,
) -> Factors:
    """The nested factors with the smallest output error at every rank.

    Args:
        weight: `[out, in]`.
        gram: `[in, in]`, mean over tokens of `x xᵀ`, x the inputs that the factors will see. Weighted means are fine.
        metric: what an output error costs: diagonal `[out]` or full `[out, out]`, positive semi-definite. None: the
            squared norm. In a metric `G` the decomposition is that of `S⊤ W C W⊤ S`, `G = S S⊤`.
        target_cross: `[out, in]`, mean of `t xᵀ` where the targets t are not `weight @ x`: the dense model's outputs
            while x comes from the compressed one (the anchored objective of AA-SVD, arXiv 2604.02119). The factors are
            then those of the best full matrix, and `values` count from its error.
        ridge: of the anchored fit, relative to each input's energy; 0 needs a regular `gram`.
        damping: added to the metric, relative to its mean diagonal.

    Returns:
        Factors of full rank `min(out, in)`, in the weight's dtype but at least fp32.

    Raises:
        SenteiError: the metric is zero, or the Gram matrix of an anchored fit is singular.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    w, c = weight.double(), gram
    if target_cross is not None:
        w, c = _anchored(w, gram.double(), target_cross.double(), ridge)
    if metric is None:
        u, v, values = _decomposed(w, c)
    else:
        scale, basis = _root(metric.double(), damping)
        u, v, values = _decomposed(scale[:, None] * (w if basis is None else basis.T @ w), c)
        u = u / scale[:, None]
        u = u if basis is None else basis @ u
    return Factors(u.to(dtype).contiguous(), v.to(dtype).contiguous(), values)


def _decomposed(w: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`U`, `Uᵀ W` and the eigenvalues, descending, of `W C Wᵀ`, on its smaller side: `W = Q R` needs only `R C Rᵀ`."""
    tall = w.shape[0] > w.shape[1]
    q, r = torch.linalg.qr(w) if tall else (None, w)
    inner = torch.cat([r @ c[:, columns].double() for columns in spans(len(c))], 1)  # never the whole of C in fp64
    values, vectors = torch.linalg.eigh(inner @ r.T)
    vectors = vectors.flip(1)
    return vectors if q is None else q @ vectors, vectors.T @ r, values.flip(0).clamp_min(0)


def _anchored(w: Tensor, c: Tensor, cross: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The best full matrix for the targets, and the Gram matrix with its ridge.

    `argmin ‖t − M x‖² + ridge ‖M − W‖²` is `(T + λ W D) (C + λ D)⁻¹`, `D = diag(C)`: `W` itself where `t = W x`.
    """
    energy = c.diagonal()
    prior = ridge * torch.where(energy > 0, energy, torch.ones_like(energy))  # an input that is always zero stays
    c = c + prior.diag()
    return solve(c, (cross + w * prior).T).T, c


def _root(metric: Tensor, damping: float) -> tuple[Tensor, Tensor | None]:
    """`scale`, `basis` with `metric + damping = S Sᵀ`, `S = basis diag(scale)`; no basis for a diagonal metric."""
    values, basis = (metric, None) if metric.ndim == 1 else torch.linalg.eigh(metric)
    mean = values.mean()
    if not mean > 0:
        raise SenteiError("the output metric of a matrix is zero: no gradient reached it; measure with more tokens")
    return (values.clamp_min(0) + damping * mean).sqrt(), basis


def tail(values: Tensor) -> Tensor:
    """Error that is left after keeping the first R components, for R = 0 … K: `[K + 1]`, the last one 0."""
    left = values.double().flip(0).cumsum(0).flip(0)
    return torch.cat([left, left.new_zeros(1)])


def expected_loss(factors: Factors, gradient: Tensor) -> Tensor:
    """Nats per token that keeping R components costs, for R = 0 … K: `[K + 1]`, never rising.

    Second order, with the empirical Fisher for the Hessian and errors independent of gradients:
    `½ tr(G E[e eᵀ]) = ½ Σ_{i≥R} value_i uᵢᵀ G uᵢ`. The components' errors do not correlate (`vᵢ C vⱼᵀ = 0`), so the
    sum is exact for factors that were made in another metric, too.

    Args:
        factors: of full rank: each component's direction is needed.
        gradient: mean of `g gᵀ`, g the gradient of a token's loss at the matrix's output: full `[out, out]`, or its
            diagonal `[out]`.
    """
    if factors.rank != len(factors.values):
        raise ValueError(f"expected_loss needs all {len(factors.values)} components, got {factors.rank}")
    u, g = factors.u.double(), gradient.double()
    weights = (u.square() * g[:, None] if g.ndim == 1 else u * (g @ u)).sum(0)
    return tail(0.5 * factors.values * weights.clamp_min(0))


def relative_error(weight: Tensor, approx: Tensor, gram: Tensor) -> float:
    """`‖(W − M) X‖ / ‖W X‖` (Frobenius) from the inputs' Gram matrix `[in, in]`; 0 where the outputs are zero."""
    w, c = weight.double(), gram.double()
    difference = w - approx.double()
    error, whole = (((m @ c) * m).sum().clamp_min(0) for m in (difference, w))
    return (error / whole).sqrt().item() if whole > 0 else 0.0


def break_even(out: int, into: int, storage: Storage = "factors") -> int:
    """The largest rank that saves parameters, 0 where none does: `R (H + D) < H D`, or `R < min(H, D)` pivoted."""
    return (out * into - 1) // (out + into) if storage == "factors" else min(out, into) - 1
