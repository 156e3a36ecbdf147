"""Pivoted storage of a low-rank matrix: R of its own rows, and how the others are mixed from them.

PIFA (arXiv 2501.19090): a matrix of rank R is R of its rows and, for the other `out − R` rows, coefficients:
`R (in + out − R)` parameters where two factors store `R (in + out)`, without loss. The rows are chosen so that the
coefficients stay small, by swaps that raise the volume (maxvol, Goreinov et al. 2010, "How to find a good submatrix"):
in bf16 the rounding error is then up to 3.5 times that of two orthonormal factors, at most about 1 % of the output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sentei.errors import SenteiError

LARGEST = 1.1  # no coefficient is larger; closer to 1 takes more swaps and mends nothing
TOLERANCE = 1e-13  # of the largest pivot: below it, the rows do not span the rank in fp64


def pivot(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Stores `M = u @ v` by its own rows: `y = cat(rows @ x, mix @ rows @ x)[order]`.

    Args:
        u: `[out, R]` of rank R.
        v: `[R, in]`.

    Returns:
        `order` int64 `[out]`; `rows` `[R, in]` and `mix` `[out − R, R]` in `v`'s dtype, `mix` with entries of at most
        `LARGEST`.

    Raises:
        SenteiError: `u` has a lower rank than it has columns.
    """
    chosen, mix = _chosen_rows(u.double())
    out, rank = u.shape
    rest = torch.ones(out, dtype=torch.bool, device=u.device)
    rest[chosen] = False
    order = torch.argsort(torch.cat([chosen, rest.nonzero()[:, 0]]))
    rows = u.double()[chosen] @ v.double()
    return order, rows.to(v.dtype), mix[rest].to(v.dtype).reshape(out - rank, rank)


def _chosen_rows(u: Tensor) -> tuple[Tensor, Tensor]:
    """R rows of `u`, and `u` in terms of them: `u = mixed @ u[chosen]`, `[out, R]`, entries of at most `LARGEST`.

    Starts from Gaussian elimination with row pivoting; each swap then raises the chosen rows' volume by the size of the
    coefficient that it removes, so the swaps end.
    """
    rank = u.shape[1]
    lu, swaps, _ = torch.linalg.lu_factor_ex(u)
    diagonal = lu.diagonal().abs()
    if rank > len(u) or not diagonal.min() > TOLERANCE * diagonal.max():
        raise SenteiError(f"a factor of shape {list(u.shape)} has a rank below {rank}; use a smaller rank")
    permutation, _, _ = torch.lu_unpack(lu, swaps, unpack_data=False)
    chosen = permutation.argmax(0)[:rank]
    mixed = torch.linalg.solve(u[chosen], u, left=False)
    while True:
        largest = int(mixed.abs().argmax())
        row, column = divmod(largest, rank)
        pivoting = mixed[row, column]
        if pivoting.abs() <= LARGEST:
            return chosen, mixed
        # u[row] takes the place of u[chosen[column]]
        change = mixed[row].clone()
        change[column] -= 1
        mixed = mixed - torch.outer(mixed[:, column] / pivoting, change)
        chosen[column] = row
