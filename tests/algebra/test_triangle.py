from __future__ import annotations

import pytest
import torch

from sentei.algebra import triangle
from sentei.measure.stream import Gram, gram


@pytest.mark.parametrize("size", [1, 7, 40, 41])
def test_one_triangle_is_enough(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of blocks of columns that do not divide the size, too; what is above their diagonal is never computed."""
    monkeypatch.setattr(triangle, "COLUMNS", 8)
    x = torch.randn(60, size, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(size, size)
    for rows in x.split(20):
        triangle.add_product(total, rows)
    assert size < 9 or (total == 0).sum() >= (size * size) * 3 // 10
    torch.testing.assert_close(triangle.mirror(total.clone()), x.T @ x, rtol=1e-5, atol=1e-5)
    packed = triangle.triangle(total)
    assert packed.shape == (size * (size + 1) // 2,)
    assert torch.equal(triangle.square(packed), triangle.mirror(total))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_over_batches_are_those_of_all_rows(dtype: torch.dtype, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 600, generator=generator).to(dtype)
    weight = torch.rand(512, generator=generator) if weighted else None
    sums = Gram()
    for start in range(0, 512, 128):
        sums.add(x[start : start + 128], None if weight is None else weight[start : start + 128])
    mean = sums.mean(512)
    assert torch.equal(mean, mean.T)
    torch.testing.assert_close(mean, gram(x, weight) / 512, rtol=1e-4, atol=1e-4)
