from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sentei.inference.spill import read_tensor, write_tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_come_back_and_a_short_file_is_told(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(6, 5, 4).to(dtype)
    with open(tmp_path / "states", "wb") as file:
        write_tensor(values.transpose(0, 1), file)  # not contiguous
    stored = values.transpose(0, 1)
    row = 6 * 4 * dtype.itemsize
    with open(tmp_path / "states", "rb") as file:
        assert torch.equal(read_tensor(file, 2 * row, (3, 6, 4), dtype), stored[2:])
        with pytest.raises(OSError, match="too short"):
            read_tensor(file, 3 * row, (3, 6, 4), dtype)
