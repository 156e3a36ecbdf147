"""A safetensors file, written with one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


@dataclass(frozen=True)
class Lazy:
    """A tensor that is made when it is written, so that no second model is in memory.

    Attributes:
        shape: of it.
        make: gives it, on any device and in any dtype of the same kind.
    """

    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def write_safetensors(path: Path, tensors: Mapping[str, Lazy], dtypes: Mapping[str, torch.dtype] | torch.dtype) -> int:
    """Writes tensors one after the other; gives the bytes of all.

    The format: the length of the header (8 bytes, little endian), the header (JSON: dtype, shape and offsets of each
    tensor), then the tensors.

    Args:
        path: the file.
        tensors: in the order in which they are made and written.
        dtypes: that each is stored in, or all are.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    kinds = dict.fromkeys(tensors, dtypes) if isinstance(dtypes, torch.dtype) else dtypes
    end = 0
    for name, lazy in tensors.items():
        start, end = end, end + kinds[name].itemsize * int(torch.Size(lazy.shape).numel())
        header[name] = {"dtype": _DTYPES[kinds[name]], "shape": list(lazy.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, lazy in tensors.items():
            value = lazy.make().detach().to("cpu", kinds[name]).contiguous()
            assert tuple(value.shape) == lazy.shape
            file.write(value.flatten().view(torch.uint8).numpy().data)
    return end
