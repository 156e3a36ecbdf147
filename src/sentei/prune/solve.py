"""Symmetric positive definite systems, in fp64, with an error that says what failed."""

from __future__ import annotations

import torch
from torch import Tensor

from sentei.errors import SenteiError


def cholesky(matrix: Tensor, what: str = "a Gram matrix") -> Tensor:
    """Lower Cholesky factor, in the matrix's dtype.

    Raises:
        SenteiError: the matrix is not positive definite: its ridge is too small for these data.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed.item():
        raise SenteiError(
            f"{what} of size {matrix.shape[0]} is not positive definite (row {failed.item()}); use more data"
        )
    return factor


def solve(matrix: Tensor, right: Tensor, what: str = "a Gram matrix") -> Tensor:
    """`matrix⁻¹ right`, fp64."""
    return torch.cholesky_solve(right.double(), cholesky(matrix.double(), what))


def inverse(matrix: Tensor, what: str = "a Gram matrix") -> Tensor:
    """`matrix⁻¹`, fp64."""
    return torch.cholesky_inverse(cholesky(matrix.double(), what))


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix, fp64."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
