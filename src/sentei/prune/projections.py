"""Other low-rank projections, to compare the closed form with: `name -> (weight, gram, rank) -> (u, v)`.

Each approximates `W ≈ u @ v`, u `[out, R]`, v `[R, in]`, and is judged by `lowrank.relative_error`. The published
methods are reduced to what they say about one matrix; SliceGPT, for one, shares its basis among matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sentei.algebra.lowrank import factors
from sentei.algebra.solve import cholesky
from sentei.registry import Registry

ASVD_ALPHA = 0.5  # the paper's
LEARNING_RATE = 1e-3  # Adam's, in LLM-Sieve
STEPS = 80  # LLM-Sieve's: two epochs of about 200,000 tokens in batches of 5,000

Projection = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def closed_form(weight: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Ours: see `lowrank.factors`."""
    found = factors(weight.double(), gram)
    return found.u[:, :rank], found.v[:rank]


def svd(weight: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The weights alone, as in LASER (arXiv 2312.13558)."""
    return _svd(weight.double(), rank)


def asvd(weight: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """ASVD (arXiv 2312.05821): columns scaled by their inputs' size to the power α; its size is the RMS here."""
    energy = gram.double().diagonal()
    scale = torch.where(energy > 0, energy, torch.ones_like(energy)) ** (ASVD_ALPHA / 2)
    u, v = _svd(weight.double() * scale, rank)
    return u, v / scale


def input_pca(weight: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Inputs projected on their principal components, as in SliceGPT (arXiv 2401.15024)."""
    basis = _principal(gram.double(), rank)
    return weight.double() @ basis, basis.T


def svd_llm(weight: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """SVD-LLM (arXiv 2403.07378): truncates `W L`, `C = L Lᵀ`. A singular `C` is shifted until it has a factor."""
    c = gram.double()
    lower = cholesky(c, 1e-6 * c.diagonal().mean())
    u, v = _svd(weight.double() @ lower, rank)
    return u, torch.linalg.solve_triangular(lower, v, upper=False, left=False)


@dataclass(frozen=True)
class Trained:
    """LLM-Sieve's projection (arXiv 2505.18350), trained by Adam on the output error.

    On the input side (q, k, v, gate, up) `M = (W A) A†`, A `[in, R]`; on the output side (o, down) `M = A† (A W)`. It
    is trained on the exact error of all tokens, from the Gram matrix, in fp32: without the noise and, where there are
    more tokens than inputs, at less than the cost of the paper's batches of 5,000 tokens.

    Attributes:
        tied: `A† = Aᵀ`; else A† is trained too and starts there.
        start: random, or the principal components of the inputs (input side) or outputs (output side, which is where
            the optimum is).
        side: of the projection.
        steps: of Adam.
        seed: of the random start.
    """

    tied: bool = True
    start: Literal["random", "pca"] = "random"
    side: Literal["input", "output"] = "input"
    steps: int = STEPS
    seed: int = 0

    def __call__(self, weight: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """`u`, `v` in fp32."""
        w, c = weight.double(), gram.double()
        outputs = w @ c @ w.T
        # on the output side: ‖(I − M) W X‖, so `outputs` for the Gram matrix and the identity for the weights
        reduced, c = (_triangle(w), c) if self.side == "input" else (torch.eye(len(w), dtype=w.dtype), outputs)
        c = (c / outputs.trace()).float()
        with torch.enable_grad():
            a, b = self._fit(reduced.float(), c, self._first(c, rank))
        return (weight.float() @ a, b) if self.side == "input" else (a, b @ weight.float())

    def _first(self, c: Tensor, rank: int) -> Tensor:
        if self.start == "pca":
            return _principal(c.double(), rank).float()
        return torch.randn(len(c), rank, generator=torch.Generator().manual_seed(self.seed)) / len(c) ** 0.5

    def _fit(self, w: Tensor, c: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Minimises `tr(E C Eᵀ)`, `E = W − W a b`, over `a` `[n, R]` and `b` `[R, n]` (`aᵀ` where tied)."""
        a = a.clone().requires_grad_()
        free = a.detach().T.clone().requires_grad_()
        adam = torch.optim.Adam([a] if self.tied else [a, free], lr=LEARNING_RATE)
        for _ in range(self.steps):
            error = w - (w @ a) @ (a.T if self.tied else free)
            loss = ((error @ c) * error).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
        return a.detach(), (a.T if self.tied else free).detach()


TRAINED = Trained()
TRAINED_FREE = Trained(tied=False)

PROJECTIONS: Registry[Projection] = Registry(
    "projection",
    {
        "closed-form": f"{__name__}:closed_form",
        "svd": f"{__name__}:svd",
        "asvd": f"{__name__}:asvd",
        "input-pca": f"{__name__}:input_pca",
        "svd-llm": f"{__name__}:svd_llm",
        "trained": f"{__name__}:TRAINED",
        "trained-free": f"{__name__}:TRAINED_FREE",
    },
)


def _svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], s[:rank, None] * v[:rank]


def _principal(c: Tensor, rank: int) -> Tensor:
    """The leading eigenvectors of a symmetric matrix: `[n, rank]`."""
    return torch.linalg.eigh(c)[1].flip(1)[:, :rank]


def _triangle(w: Tensor) -> Tensor:
    """`R` of `W = Q R` for a tall `W`: the same error for every projection of the inputs, from a smaller matrix."""
    return torch.linalg.qr(w, mode="r")[1] if w.shape[0] > w.shape[1] else w
