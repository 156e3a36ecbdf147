"""Symmetric positive definite systems, in fp64 and by Cholesky, with an error that says what failed.

No LU: it costs twice as much, and MKL's, batched, hangs or fails after `torch.set_num_threads`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sentei.errors import SenteiError


def cholesky(matrix: Tensor, least: Tensor | float | None = None, *, overwrite: bool = False) -> Tensor:
    """Lower Cholesky factor, fp64.

    Args:
        matrix: `[…, n, n]`, symmetric positive definite.
        least: an eigenvalue below which none of the true matrix is. Where rounding left the matrix without a factor, it
            is shifted up to there.
        overwrite: a matrix `[n, n]` in fp64 that is needed no more: its memory holds the result.

    Raises:
        SenteiError: the matrix is not positive definite: its ridge is too small for these data.
    """
    wide = matrix.double()
    if overwrite:
        factor, failed = wide.mT, wide.new_zeros((), dtype=torch.int32)  # columns in a row, as LAPACK wants them
        torch.linalg.cholesky_ex(factor, out=(factor, failed))
    else:
        factor, failed = torch.linalg.cholesky_ex(wide)
    if failed.any() and least is not None:
        shift = torch.where(failed > 0, least - torch.linalg.eigvalsh(wide)[..., 0].clamp_max(0), 0.0)
        shifted = wide.clone()
        shifted.diagonal(dim1=-2, dim2=-1).add_(shift[..., None])
        factor, failed = torch.linalg.cholesky_ex(shifted)
    if failed.any():
        raise SenteiError(
            f"a Gram matrix of size {matrix.shape[-1]} is not positive definite (row {failed.max().item()}); "
            "use more data"
        )
    return factor


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """`matrix⁻¹ right`, fp64; `[…, n, n]` and `[…, n, k]`."""
    return torch.cholesky_solve(right.double(), cholesky(matrix))


def inverse(matrix: Tensor, least: float | None = None, *, overwrite: bool = False) -> Tensor:
    """`matrix⁻¹`, fp64, `[…, n, n]`; `least` and `overwrite` as for `cholesky`."""
    factor = cholesky(matrix, least, overwrite=overwrite)
    return torch.cholesky_inverse(factor, out=factor if overwrite else None)


def root(matrix: Tensor) -> Tensor:
    """`R` with `Rᵀ R` a positive semi-definite matrix, fp64: Cholesky's, or where it has none the symmetric one."""
    factor, failed = torch.linalg.cholesky_ex(matrix.double())
    if not failed:
        return factor.mT
    values, vectors = torch.linalg.eigh(matrix.double())
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
