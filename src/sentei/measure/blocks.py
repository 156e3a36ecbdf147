"""The statistics of blocks on disk, a safetensors file each; symmetric matrices are stored as their lower triangle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sentei.errors import InputError, one_line
from sentei.measure.statistics import BlockStats, PartStats
from sentei.measure.stored import BlockHead, Head, check_tensors

BLOCKS = "blocks"  # directory of a profile that holds them
PARTS = ("attention", "ffn")


class StoredBlocks(Sequence[BlockStats]):
    """Statistics of blocks in files: written when they are set, read when they are asked for, kept nowhere else.

    Attributes:
        directory: holds a file per block.
        rows: what profile.json says of each block.
    """

    def __init__(self, directory: Path, head: Head | None = None) -> None:
        """Of the blocks that `head` names, against which what is read is checked; without it, of none yet."""
        self.directory, self.head = directory, head
        self.rows: list[BlockHead] = [] if head is None else list(head.blocks)

    def __len__(self) -> int:
        return len(self.rows)

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
        row, file = self.rows[index], self.file(index)
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} cannot be read ({one_line(error)}); measure again") from error
        if self.head is not None:
            check_tensors(tensors, self.head, index, file)
        parts: dict[str, PartStats | None] = {}
        for name, energy in (("attention", row.attention_energy), ("ffn", row.ffn_energy)):
            own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
            parts[name] = None if energy is None else _unpack(own, energy)
        return BlockStats(angle=row.angle, **parts)

    def append(self, block: BlockStats) -> None:
        """Writes the next block."""
        self.rows.append(head_of(block))
        self[len(self) - 1] = block

    def __setitem__(self, index: int, block: BlockStats) -> None:
        """Writes one block anew."""
        self.directory.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for name in PARTS:
            if (part := getattr(block, name)) is not None:
                tensors |= {f"{name}.{key}": value for key, value in _pack(part).items()}
        save_file(tensors, self.file(index))
        self.rows[index] = head_of(block)

    def __iter__(self) -> Iterator[BlockStats]:
        return (self[index] for index in range(len(self)))

    def file(self, index: int) -> Path:
        """Where a block is."""
        return self.directory / f"block-{index:05d}.safetensors"

    def nbytes(self) -> int:
        """Bytes of all files that are there."""
        return sum(file.stat().st_size for i in range(len(self)) if (file := self.file(i)).is_file())


def head_of(block: BlockStats) -> BlockHead:
    """What profile.json says of a block."""
    energies = {f"{name}_energy": part.energy if (part := getattr(block, name)) else None for name in PARTS}
    return BlockHead(angle=block.angle, **energies)


SYMMETRIC = ("gram", "input_gram", "output_grad")


def _pack(part: PartStats) -> dict[str, Tensor]:
    """Tensors to store: weights in bf16 (they only rank), symmetric matrices as triangles."""
    packed = {"weight": part.weight.bfloat16().cpu().contiguous()}
    for key in ("mean", "norm", "taylor"):
        if (vector := getattr(part, key)) is not None:
            packed[key] = vector.float().cpu().contiguous()
    for key in SYMMETRIC:
        if (matrix := getattr(part, key)) is not None:
            packed[key] = _triangle(matrix.float().cpu())
    return packed | {f"rank.{name}": losses.float().cpu().contiguous() for name, losses in part.ranks.items()}


def _unpack(stored: dict[str, Tensor], energy: float) -> PartStats:
    for key in SYMMETRIC:
        if key in stored:
            stored[key] = _square(stored[key])
    stored["weight"] = stored["weight"].float()
    ranks = {key.removeprefix("rank."): stored.pop(key) for key in list(stored) if key.startswith("rank.")}
    return PartStats(energy=energy, ranks=ranks, **stored)


# Row by row: indices of a triangle would take four times the memory of the matrix.
def _triangle(matrix: Tensor) -> Tensor:
    """The lower triangle of `[n, n]`, row by row: `[n (n + 1) / 2]`."""
    return torch.cat([row[: i + 1] for i, row in enumerate(matrix)])


def _square(packed: Tensor) -> Tensor:
    """The symmetric matrix of a lower triangle."""
    size = int((2 * packed.numel()) ** 0.5)  # n (n + 1) / 2 numbers
    matrix = torch.empty(size, size)
    for i, row in enumerate(packed.split(list(range(1, size + 1)))):
        matrix[i, : i + 1] = row
        matrix[: i + 1, i] = row
    return matrix
