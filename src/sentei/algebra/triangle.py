"""Symmetric matrices, of which one triangle is computed and stored."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

COLUMNS = 512  # of a block of the triangle: half as wide, products are slower; twice as wide, more is computed twice


def spans(size: int) -> list[slice]:
    """Rows of a matrix in even blocks of at most `COLUMNS`."""
    count = -(-size // COLUMNS)
    edges = [size * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def add_product(total: Tensor, a: Tensor) -> None:
    """Adds the lower triangle of `aᵀ a` to `total` `[n, n]`, in place; above its diagonal blocks nothing changes."""
    for rows in spans(len(total)):
        total[rows, : rows.stop].addmm_(a[:, rows].T, a[:, : rows.stop])


def mirror(matrix: Tensor) -> Tensor:
    """Copies the lower triangle of `[n, n]` above the diagonal, in place."""
    for rows in spans(len(matrix)):
        matrix[: rows.start, rows] = matrix[rows, : rows.start].T
        block = matrix[rows, rows]
        block.copy_(block.tril() + block.tril(-1).T)
    return matrix


# Row by row: indices of a triangle would take four times the memory of the matrix.
def triangle(matrix: Tensor) -> Tensor:
    """The lower triangle of `[n, n]`, row by row: `[n (n + 1) / 2]`."""
    return torch.cat([row[: i + 1] for i, row in enumerate(matrix)])


def square(packed: Tensor) -> Tensor:
    """The symmetric matrix of a lower triangle."""
    size = int((2 * packed.numel()) ** 0.5)  # n (n + 1) / 2 numbers
    matrix = packed.new_empty(size, size)
    for i, row in enumerate(packed.split(list(range(1, size + 1)))):
        matrix[i, : i + 1] = row
    return mirror(matrix)
