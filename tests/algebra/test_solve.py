from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sentei.algebra.solve import cholesky, inverse, root, solve
from sentei.errors import SenteiError

THREADED = """
import torch
torch.set_num_threads(2)
from sentei.measure.scores.obs import Obs

torch.manual_seed(0)
size = 192
x = torch.randn(3 * size, 4 * size)
remover = Obs(torch.randn(64, 3 * size), x @ x.T / x.shape[1])
units = torch.arange(3 * size).view(3, size)
losses = remover.losses(units)
removed = remover.remove(units[:1])
assert abs(removed / losses[0].item() - 1) < 1e-3, (removed, losses)
print("done")
"""


def batch(size: int = 12) -> torch.Tensor:
    x = torch.randn(3, size, 4 * size, generator=torch.Generator().manual_seed(0)).double()
    return x @ x.mT / x.shape[-1]


def test_batches_are_inverted_and_solved_one_by_one() -> None:
    matrices = batch()
    torch.testing.assert_close(inverse(matrices) @ matrices, torch.eye(12).double().expand(3, 12, 12))
    right = torch.ones(3, 12, 2).double()
    torch.testing.assert_close(matrices @ solve(matrices, right), right)


def test_a_known_least_eigenvalue_mends_only_what_has_no_factor() -> None:
    matrices = batch()
    values, vectors = torch.linalg.eigh(matrices[1])
    matrices[1] = (vectors * values.index_fill(0, torch.tensor([0]), -1e-4)) @ vectors.T  # as rounding leaves it
    with pytest.raises(SenteiError, match="size 12 is not positive definite"):
        cholesky(matrices)
    factor = cholesky(matrices, least=1e-3)
    torch.testing.assert_close(factor[::2] @ factor[::2].mT, matrices[::2])
    assert torch.linalg.eigvalsh(factor[1] @ factor[1].T)[0].item() == pytest.approx(1e-3, rel=1e-6)


def test_an_inverse_may_take_the_place_of_its_matrix() -> None:
    matrix = batch()[0]
    expected, place = inverse(matrix), matrix.data_ptr()
    found = inverse(matrix, overwrite=True)
    assert torch.equal(found, expected) and found.data_ptr() == place
    with pytest.raises(SenteiError, match="size 3 is not positive definite"):
        inverse(-torch.eye(3).double(), overwrite=True)


@pytest.mark.parametrize("rank", [12, 5, 0])
def test_a_root_is_one_whatever_the_rank(rank: int) -> None:
    x = torch.randn(12, rank, generator=torch.Generator().manual_seed(1)).double()
    found = root(x @ x.T)
    torch.testing.assert_close(found.T @ found, x @ x.T, atol=1e-12, rtol=0)


def test_heads_are_scored_after_the_number_of_threads_was_set() -> None:
    # a batch of LU inversions hangs there, in MKL
    done = subprocess.run([sys.executable, "-c", THREADED], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
