"""Symmetric positive definite systems, in fp64, with an error that says what failed."""

from __future__ import annotations

import torch
from torch import Tensor

from sentei.errors import SenteiError


def _cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor, fp64.

    Raises:
        SenteiError: the matrix is not positive definite: its ridge is too small for these data.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix.double())
    if failed.item():
        raise SenteiError(
            f"a Gram matrix of size {matrix.shape[0]} is not positive definite (row {failed.item()}); use more data"
        )
    return factor


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """`matrix⁻¹ right`, fp64."""
    return torch.cholesky_solve(right.double(), _cholesky(matrix))


def inverse(matrix: Tensor) -> Tensor:
    """`matrix⁻¹`, fp64."""
    return torch.cholesky_inverse(_cholesky(matrix))


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix, fp64."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
