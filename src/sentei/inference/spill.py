"""Bare tensors in files: hidden states, of which there may be more than memory holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import torch
from torch import Tensor


def write_tensor(tensor: Tensor, file: IO[bytes]) -> None:
    """Writes a tensor's bytes where the file is."""
    file.write(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def read_tensor(file: IO[bytes], start: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The tensor that begins at byte `start`.

    Raises:
        OSError: the file cannot be read, or ends within it.
    """
    size = torch.Size(shape)
    buffer = bytearray(size.numel() * dtype.itemsize)
    file.seek(start)
    if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]  # of a buffered reader
        raise OSError("the file is too short")
    return torch.frombuffer(buffer, dtype=dtype).view(size)
