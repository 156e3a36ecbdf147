"""A latency table: what parts of every size take on this machine, so that a shape's latency is a sum of lookups.

Timing a real model for every candidate would cost seconds each. The table is measured once, in seconds, and predicts
in microseconds. Measured are, for a prefill and for one decoding step with a KV cache: attention parts and FFN parts
over a grid of widths, products with matrices over a grid of sizes (for low-rank matrices), what stands around the
blocks, and the whole model. Between the sizes of the grid, time is interpolated linearly.

A sum of parts is known to be off where work overlaps or stays in a cache between parts (Puzzle's authors warn of it,
arXiv 2411.19146), so parts are scaled by the one factor with which the whole model comes out as measured. A shape that
was chosen by the table deserves to be timed itself: `sentei.prove.speed`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from sentei.errors import InputError
from sentei.files import read_json, write_json
from sentei.plan import BlockShape, ModelShape
from sentei.schema import parse

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Times(_Frozen):
    """Seconds of a prefill of the whole prompt, and of one decoding step after it."""

    prefill: float
    decode: float


class Grid(_Frozen):
    """Times over one or two sizes.

    Attributes:
        axes: the measured values of each size, ascending.
        cells: a time for each combination of them, the last size running fastest.
    """

    axes: tuple[tuple[int, ...], ...]
    cells: tuple[Times, ...]

    def at(self, phase: Phase, *sizes: int) -> float:
        """Seconds at these sizes, linear between the measured ones.

        Raises:
            InputError: a size that is not covered.
        """
        for axis, size in zip(self.axes, sizes, strict=True):
            if not axis[0] <= size <= axis[-1]:
                raise InputError(
                    f"the latency table covers sizes {axis[0]} to {axis[-1]}, not {size}; "
                    "measure a table for the model that this shape is cut from"
                )
        values = np.array([getattr(cell, phase) for cell in self.cells]).reshape([len(axis) for axis in self.axes])
        for axis, size in zip(reversed(self.axes), reversed(sizes), strict=True):
            values = np.apply_along_axis(lambda seconds: np.interp(size, axis, seconds), -1, values)  # noqa: B023
        return float(values)


class Protocol(_Frozen):
    """What was timed, and where: a table holds for no other machine, model family or load.

    Attributes:
        machine: processor or accelerator, by name.
        threads: of torch.
        torch: its version.
        dtype: of the weights.
        attention: implementation of the attention, as transformers names it.
        family: architecture.
        dense: sizes of the model that was timed as a whole.
        batch: sequences at a time.
        prompt: tokens of each.
        rounds: counted rounds; times are the fastest of them.
    """

    machine: str
    threads: int
    torch: str
    dtype: str
    attention: str
    family: str
    dense: ModelShape
    batch: int
    prompt: int
    rounds: int


class LatencyTable(_Frozen):
    """Measured times of parts, and the latency of shapes made of them.

    Attributes:
        protocol: what was timed, and where.
        attention: attention parts, over KV groups and query heads per group.
        ffn: FFN parts, over channels.
        products: one product with a matrix, over its smaller and its larger size.
        gather: putting the outputs of a pivoted matrix into order, over its outputs.
        around: embedding, masks, final norm and head.
        whole: the whole model.
    """

    schema_version: Literal[1] = 1
    protocol: Protocol
    attention: Grid
    ffn: Grid
    products: Grid
    gather: Grid
    around: Times
    whole: Times

    def predict(self, shape: ModelShape) -> dict[str, float]:
        """`prefill_seconds` of the whole prompt and `decode_seconds` of one step, for a model of this shape.

        Raises:
            InputError: sizes that the table does not cover.
        """
        return {
            f"{phase}_seconds": getattr(self.around, phase) + self._scale(phase) * self._parts(shape, phase)
            for phase in PHASES
        }

    def part_seconds(self, shape: ModelShape, block: BlockShape, phase: Phase) -> float:
        """What one block, or one part of it (the other's sizes 0), takes in a model like `shape`.

        Raises:
            InputError: sizes that the table does not cover.
        """
        return self._scale(phase) * self._block(shape, block, phase)

    def _scale(self, phase: Phase) -> float:
        blocks = getattr(self.whole, phase) - getattr(self.around, phase)
        if blocks <= 0:
            raise InputError(
                f"the latency table says that the whole model's {phase} takes less than what stands around its blocks; "
                "measure it again on a quiet machine, or with more rounds"
            )
        return blocks / self._parts(self.protocol.dense, phase)

    def _parts(self, shape: ModelShape, phase: Phase) -> float:
        return sum(self._block(shape, block, phase) for block in shape.blocks)

    def _block(self, shape: ModelShape, block: BlockShape, phase: Phase) -> float:
        seconds = 0.0
        if block.kv_groups:
            seconds += self.attention.at(phase, block.kv_groups, block.heads_per_group)
        if block.ffn:
            seconds += self.ffn.at(phase, block.ffn)
        sizes = shape.matrices(block)
        for name, rank in block.ranks.items():
            if name in sizes:
                seconds += self._factors(*sizes[name], rank, shape.storage, phase) - self._product(*sizes[name], phase)
        return seconds

    def _factors(self, out: int, into: int, rank: int, storage: str, phase: Phase) -> float:
        if storage == "factors":
            return self._product(rank, into, phase) + self._product(out, rank, phase)
        mixed = self._product(out - rank, rank, phase) if rank < out else 0.0
        return self._product(rank, into, phase) + mixed + self.gather.at(phase, out)

    def _product(self, out: int, into: int, phase: Phase) -> float:
        return self.products.at(phase, min(out, into), max(out, into))

    def save(self, path: Path) -> None:
        """Writes the table as JSON."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Reads a table.

        Raises:
            InputError: missing, not JSON, or not a table (with the key and what is wrong).
        """
        return parse(cls, read_json(path), str(path))
