"""What a measurement takes of memory and disk, said and checked before it begins."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sentei.errors import InputError
from sentei.measure.stored import Contents
from sentei.memory import EXPERT_KERNELS, check_memory, held
from sentei.plan import ModelShape
from sentei.progress import Progress

LIBRARIES = 100_000_000  # bytes of code and caches that come with the first products and gradients
MARGIN = 1.06  # buffers of the products, which grow with the matrices: 4 % were seen with 11,008 channels


@dataclass(frozen=True)
class Needs:
    """Bytes that a measurement takes beside the model.

    Attributes:
        contents: what is kept.
        tokens: that are read, padding included.
        gradient_tokens: of them, that the gradient pass reads.
        itemsize: of the model's dtype.
        streamed: whether one block's weights come and go with it.
    """

    contents: Contents
    tokens: int
    gradient_tokens: int
    itemsize: int
    streamed: bool

    @property
    def states(self) -> int:
        """Hidden states of all tokens."""
        return self.tokens * self._shape.hidden * self.itemsize

    @property
    def block(self) -> int:
        """What one block takes while it is measured, at most; bytes per number as the code was seen to take."""
        shape, graded, most = self._shape, self.gradient_tokens > 0, 0
        for index, block in enumerate(shape.blocks):
            found = {part: [n] for part, (_, _, n) in self.contents.parts(index).items()}
            if block.experts:
                found["ffn"] = [*block.experts]
            widths = [n for own in found.values() for n in own]
            n, params = max(widths, default=0), shape.attention_params(block) + shape.ffn_params(block)
            weights = self.itemsize * params if self.streamed else 0
            grams = 4 * (
                sum(n * n for n in widths) + len(found) * (graded + self.contents.input_grams) * shape.hidden**2
            )
            backward = weights + (self.itemsize + 9) * params if graded else 0
            losses_of_ranks = weights + grams + 32 * n * shape.hidden if graded else 0
            squared, side = (max((sum(n**p for n in own) for own in found.values()), default=0) for p in (2, 1))
            curves = grams + self.itemsize * sum(widths) * shape.hidden + 13 * squared + 8 * side * shape.hidden
            most = max(most, weights + grams, backward, losses_of_ranks, curves)
        kernels = EXPERT_KERNELS if any(block.experts for block in shape.blocks) else 0
        return LIBRARIES + kernels + int(MARGIN * most)

    @property
    def gradients(self) -> int:
        """What enters each block, of the windows of the gradient pass, and what that pass finds."""
        if not self.gradient_tokens:
            return 0
        entered = self.gradient_tokens * self._shape.hidden * self.itemsize
        return len(self._shape.blocks) * (entered + 2 * 2 * self._shape.hidden * (self._shape.hidden + 1))

    @property
    def grams(self) -> int:
        """Gram matrices of all blocks, where they are kept: a triangle each."""
        if not self.contents.grams:
            return 0
        counts = [
            sum(_numbers(size) for size in self.contents.matrices(i).values()) for i in range(len(self._shape.blocks))
        ]
        return 4 * sum(counts)

    @property
    def _shape(self) -> ModelShape:
        return self.contents.shape

    def check(self, limit: int | None, work: Path | None, progress: Progress) -> bool:
        """Says what it takes, and whether hidden states are spilled to disk: where memory would not do.

        Args:
            limit: bytes of memory that the process may hold; None: all.
            work: directory for what need not be in memory; None: everything is.
            progress: told.

        Raises:
            InputError: there is too little memory or disk.
        """
        graded = 2 * self.gradient_tokens * self._shape.hidden * self.itemsize
        inside = self.block + graded + (2 * self.grams + self.gradients if work is None else 0)
        spilled = work is not None and limit is not None and held() + inside + self.states > limit
        needed = inside + (0 if spilled else self.states)
        disk = 0 if work is None else 2 * self.states + self.gradients + self.grams
        beside = " beside the model" if not self.streamed else ""
        said = f"  measure: {self.tokens:,} tokens, {needed / 1e9:.1f} GB of memory{beside}"
        progress.say(said + (f", {disk / 1e9:.1f} GB of disk while it goes on" if disk else ""))
        check_memory(limit, needed, "measure", "read fewer --tokens, or leave out gradients with --gradient-tokens 0")
        if work is not None:
            free = shutil.disk_usage(_existing(work)).free + _size(work)
            if disk > free:
                raise InputError(
                    f"measure needs about {disk / 1e9:.2f} GB of disk beside its output, {free / 1e9:.2f} GB are free "
                    f"in {_existing(work)}; make room, choose an --out elsewhere, or read fewer --tokens"
                )
        return spilled


def _numbers(size: tuple[int, ...]) -> int:
    count = 1
    for side in size:
        count *= side
    return count


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _size(path: Path) -> int:
    """Bytes of what is there already, which is gone on with."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
