"""What a profile on disk must hold: keys of profile.json, names, shapes and finite values of the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

from sentei.errors import InputError
from sentei.plan import ATTENTION_MATRICES, FFN_MATRICES, ModelShape
from sentei.schema import Count, Number, Positive


class BlockHead(BaseModel):
    """Of one block; the energy of a part is None where the part is gone."""

    model_config = ConfigDict(strict=True)

    angle: Number
    attention_energy: Number | None
    ffn_energy: Number | None


class Head(BaseModel):
    """profile.json."""

    schema_version: int
    shape: ModelShape
    model_digest: str
    data_digest: str
    tokens: Positive
    window: Positive
    gradient_tokens: Count
    blocks: list[BlockHead]
    info: dict[str, Any]

    @model_validator(mode="after")
    def _fits(self) -> Head:
        if len(self.blocks) != len(self.shape.blocks):
            raise ValueError(f"statistics of {len(self.blocks)} blocks, the shape has {len(self.shape.blocks)}")
        for i, (row, shape) in enumerate(zip(self.blocks, self.shape.blocks, strict=True)):
            for part, there in (("attention_energy", shape.kv_groups), ("ffn_energy", shape.ffn)):
                if (getattr(row, part) is None) == bool(there):
                    raise ValueError(f"block {i}: {part} is {getattr(row, part)}, but the part has size {there}")
        return self


def check_tensors(tensors: Mapping[str, Tensor], head: Head, index: int, path: Path) -> None:
    """Refuses tensors that are not those of block `index` of a profile of this shape.

    Raises:
        InputError: one is missing, too many, of another shape, no floating point, or not finite.
    """
    expected = _expected(head.shape, index, graded=head.gradient_tokens > 0)
    for name in sorted({*expected, *tensors}):
        got = tuple(tensors[name].shape) if name in tensors else "nothing"
        wanted = expected.get(name, "nothing")
        if got != wanted:
            raise InputError(f"{path}: {name}: expected shape {wanted}, got {got}; measure again")
        if not (tensors[name].is_floating_point() and torch.isfinite(tensors[name]).all()):
            raise InputError(f"{path}: {name}: expected finite floating point numbers; measure again")


def _expected(shape: ModelShape, index: int, *, graded: bool) -> dict[str, tuple[int, ...]]:
    """Shapes by name; symmetric matrices are stored as a triangle of n (n + 1) / 2 numbers."""
    found: dict[str, tuple[int, ...]] = {}
    sizes = shape.matrices(shape.blocks[index])
    for part, names in (("attention", ATTENTION_MATRICES), ("ffn", FFN_MATRICES)):
        if names[-1] not in sizes:
            continue
        hidden, n = sizes[names[-1]]  # of the row-pruned matrix
        own = {"weight": (hidden, n), "gram": (_triangle(n),), "mean": (n,), "norm": (n,)}
        own["input_gram"] = (_triangle(hidden),)
        if graded:
            own |= {"output_grad": (_triangle(hidden),), "taylor": (n,)}
            own |= {f"rank.{name}": (min(sizes[name]) + 1,) for name in names}
        found |= {f"{part}.{key}": size for key, size in own.items()}
    return found


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
