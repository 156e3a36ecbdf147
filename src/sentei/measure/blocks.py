"""The statistics of blocks on disk: `blocks/` has a small file per block, `grams/` its Gram matrices where kept.

Symmetric matrices are stored as their lower triangle.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sentei.algebra.triangle import square, triangle
from sentei.errors import InputError, one_line
from sentei.files import atomic_file
from sentei.measure.curves import pack, unpack
from sentei.measure.statistics import BlockStats, Matrices, PartStats
from sentei.measure.stored import Contents, check_tensors

NUMBERS = ("energy", "grad_energy")  # of a part
VECTORS = ("mean", "norm", "input_energy", "weight_energy", "taylor")
SYMMETRIC = ("gram", "input_gram", "output_grad")


class StoredBlocks(Sequence[BlockStats]):
    """Statistics of blocks in files: read when they are asked for, Gram matrices when those are, and checked.

    Attributes:
        directory: of the profile.
        contents: what the files hold.
    """

    def __init__(self, directory: Path, contents: Contents) -> None:
        self.directory, self.contents = directory, contents
        self._read: dict[int, BlockStats] = {}  # without Gram matrices, which are large

    def __len__(self) -> int:
        return len(self.contents.shape.blocks)

    @overload
    def __getitem__(self, index: int) -> BlockStats: ...

    @overload
    def __getitem__(self, index: slice) -> list[BlockStats]: ...

    def __getitem__(self, index: int | slice) -> BlockStats | list[BlockStats]:
        """Reads one block, or some.

        Raises:
            InputError: its file is missing, damaged, or not of this profile.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        if index not in self._read:
            file = self.file("blocks", index)
            tensors = _load(file, self.contents.statistics(index))
            found = {part: _part(part, tensors) for part in self.contents.parts(index)}
            if self.contents.grams:
                for name, part in found.items():
                    part.matrices = partial(self._matrices, index, name)
            try:
                curves = {score: unpack(_under(f"curve.{score}", tensors)) for score in self.contents.scores}
            except ValueError as error:
                raise InputError(f"{file}: {error}; measure again") from error
            self._read[index] = BlockStats(
                found.get("attention"), found.get("ffn"), angle=tensors["angle"].item(), curves=curves
            )
        return self._read[index]

    def __iter__(self) -> Iterator[BlockStats]:
        return (self[index] for index in range(len(self)))

    def _matrices(self, index: int, part: str) -> Matrices:
        prefix = f"{part}."
        expected = {name: size for name, size in self.contents.matrices(index).items() if name.startswith(prefix)}
        stored = _under(part, _load(self.file("grams", index), expected, prefix))
        squares = {key: square(stored[key]) for key in SYMMETRIC if key in stored}
        return Matrices(weight=stored["weight"].float(), **squares)

    def write(self, index: int, block: BlockStats) -> None:
        """Writes one block."""
        tensors = {"angle": torch.tensor(block.angle, dtype=torch.float64)}
        grams: dict[str, Tensor] = {}
        for name in self.contents.parts(index):
            part = block.part(name)
            tensors |= {f"{name}.{key}": value for key, value in _pack(part).items()}
            if self.contents.grams:
                grams |= {f"{name}.{key}": value for key, value in _pack_matrices(part.whole()).items()}
        for score in self.contents.scores:
            own = pack(block.curves[score], self.contents.shape.blocks[index])
            tensors |= {f"curve.{score}.{key}": value for key, value in own.items()}
        if self.contents.grams:
            _save(grams, self.file("grams", index))
        _save(tensors, self.file("blocks", index))
        self._read.pop(index, None)

    def file(self, folder: str, index: int) -> Path:
        """Where a block is, in "blocks" or "grams"."""
        return self.directory / folder / f"block-{index:05d}.safetensors"

    def copy(self, directory: Path) -> None:
        """The same files in another directory: links where the file system has them, since none is ever changed."""
        for folder in ("blocks", *(["grams"] if self.contents.grams else [])):
            (directory / folder).mkdir(parents=True)
            for index in range(len(self)):
                file = self.file(folder, index)
                try:
                    os.link(file, directory / folder / file.name)
                except OSError:  # another file system, or one without links
                    shutil.copyfile(file, directory / folder / file.name)


def _load(file: Path, expected: Mapping[str, tuple[int, ...]], prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a file whose names start so, checked.

    Raises:
        InputError: it cannot be read, or does not hold what is expected.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            names = [name for name in opened.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
            tensors = {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}); measure again") from error
    check_tensors(tensors, expected, file)
    return tensors


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as new:
        save_file(tensors, new)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names start with `prefix.`, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _pack(part: PartStats) -> dict[str, Tensor]:
    packed = {key: value.float() for key in VECTORS if (value := getattr(part, key)) is not None}
    packed |= {f"rank.{name}": losses.float() for name, losses in part.ranks.items()}
    packed |= {f"alone.{name}": losses.float() for name, losses in part.alone.items()}
    numbers = {key: value for key in NUMBERS if (value := getattr(part, key)) is not None}
    packed |= {key: torch.tensor(value, dtype=torch.float64) for key, value in numbers.items()}
    return {key: value.cpu().contiguous() for key, value in packed.items()}


def _part(name: str, tensors: Mapping[str, Tensor]) -> PartStats:
    stored = _under(name, tensors)
    values: dict[str, Any] = {key: stored[key] for key in VECTORS if key in stored}
    values |= {key: stored[key].item() for key in NUMBERS if key in stored}
    return PartStats(**values, ranks=_under("rank", stored), alone=_under("alone", stored))


def _pack_matrices(matrices: Matrices) -> dict[str, Tensor]:
    """Tensors to store: weights in bf16 (they only rank), symmetric matrices as triangles."""
    packed = {"weight": matrices.weight.bfloat16().cpu().contiguous()}
    for key in SYMMETRIC:
        if (matrix := getattr(matrices, key)) is not None:
            packed[key] = triangle(matrix.float().cpu())
    return packed
