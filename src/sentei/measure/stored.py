"""What a profile on disk must hold: keys of profile.json, names, shapes and finite values of the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from sentei.errors import InputError
from sentei.families.parts import MATRICES_OF
from sentei.measure.curves import packed_sizes
from sentei.plan import ModelShape
from sentei.schema import Count, Positive


class Head(BaseModel):
    """profile.json."""

    schema_version: int
    shape: ModelShape
    model_digest: str
    data_digest: str
    tokens: Positive
    window: Positive
    gradient_tokens: Count
    own_tokens: Count = 0
    scores: list[str]
    grams: bool
    ranks: bool = True
    info: dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """What the files of a profile's blocks hold.

    Attributes:
        shape: sizes of the model.
        graded: whether there was a gradient pass.
        scores: whose curves there are.
        grams: whether Gram matrices were kept.
        ranks: whether the losses of low ranks were computed, where there were gradients.
    """

    shape: ModelShape
    graded: bool
    scores: tuple[str, ...]
    grams: bool
    ranks: bool = True

    @property
    def input_grams(self) -> bool:
        """Whether anything reads the Gram matrices of what a part's first matrices read."""
        return self.grams or (self.graded and self.ranks)

    def parts(self, index: int) -> dict[str, tuple[tuple[str, ...], int, int]]:
        """Of a block's parts that are there: names of the matrices, and the row-pruned one's outputs and inputs."""
        sizes = self.shape.matrices(self.shape.blocks[index])
        there = {part: tuple(name for name in names if name in sizes) for part, names in MATRICES_OF.items()}
        return {part: (names, *sizes[names[-1]]) for part, names in there.items() if names}

    def statistics(self, index: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what `blocks/` holds of a block."""
        block, sizes = self.shape.blocks[index], self.shape.matrices(self.shape.blocks[index])
        found: dict[str, tuple[int, ...]] = {"angle": ()}
        for part, (names, _, n) in self.parts(index).items():
            own: dict[str, tuple[int, ...]] = dict.fromkeys(("mean", "norm", "input_energy", "weight_energy"), (n,))
            own |= {"energy": ()} | {f"alone.{score}": (n,) for score in self.scores}
            if self.graded:
                own |= {"grad_energy": (), "taylor": (n,)}
                ranked = () if not self.ranks or (part == "ffn" and block.experts) else names
                own |= {f"rank.{name}": (min(sizes[name]) + 1,) for name in ranked}
            found |= {f"{part}.{key}": size for key, size in own.items()}
        for score in self.scores:
            found |= {f"curve.{score}.{key}": size for key, size in packed_sizes(block).items()}
        return found

    def matrices(self, index: int) -> dict[str, tuple[int, ...]]:
        """The same of `grams/`; symmetric matrices are stored as a triangle of n (n + 1) / 2 numbers."""
        found: dict[str, tuple[int, ...]] = {}
        for part, (_, hidden, n) in self.parts(index).items():
            own = {"weight": (hidden, n), "gram": (_triangle(n),), "input_gram": (_triangle(hidden),)}
            own |= {"output_grad": (_triangle(hidden),)} if self.graded else {}
            found |= {f"{part}.{key}": size for key, size in own.items()}
        return found


INTEGERS = ("channels", "heads")  # of curves


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Refuses tensors that are not those of a block.

    Raises:
        InputError: one is missing, too many, of another shape, no floating point (or no integer), or not finite.
    """
    for name in sorted({*expected, *tensors}):
        got = tuple(tensors[name].shape) if name in tensors else "nothing"
        wanted = expected.get(name, "nothing")
        if got != wanted:
            raise InputError(f"{path}: {name}: expected shape {wanted}, got {got}; measure again")
        if name.rpartition(".")[2] in INTEGERS:
            if tensors[name].dtype not in (torch.int32, torch.uint8):
                raise InputError(f"{path}: {name}: expected integers; measure again")
        elif not (tensors[name].is_floating_point() and torch.isfinite(tensors[name]).all()):
            raise InputError(f"{path}: {name}: expected finite floating point numbers; measure again")


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
