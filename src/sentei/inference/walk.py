"""Many forward passes through one model: pass by pass, or block by block where its blocks are not in memory.

Of a streamed model (`sentei.families.streamed`) all passes go through block i before any goes through block i + 1, so
that each block is read once, whatever the number of passes. Between two blocks the hidden states wait in memory, or in
a file where the model's memory does not hold them.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor, nn

from sentei.data.batches import BATCH_TOKENS
from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.asked import only_block
from sentei.families.streamed import StreamedBlocks, streamed_blocks
from sentei.inference.forward import CHUNK, final_hidden, stage
from sentei.inference.spill import read_tensor, write_tensor
from sentei.memory import check_memory, held

_LOGITS = 3 * CHUNK * 4  # bytes of a chunk of logits with what is made of them, see `score_targets`


@dataclass(frozen=True)
class Reading:
    """What one forward pass reads.

    Attributes:
        ids: token ids, int64 [B, T].
        inputs: made when the pass comes, for the model: `cache`, `attention_mask`, `position_ids` of `final_hidden`,
            where they are not the usual ones. Of a streamed model there is no cache.
    """

    ids: Tensor
    inputs: Callable[[Any], dict[str, Any]] = lambda model: {}


def hidden_states(model: Any, readings: Sequence[Reading], progress: Any = None) -> Iterator[Tensor]:
    """Last hidden states [B, T, D] of each reading in order, normalised, as the head gets them.

    The caller is in inference mode, the model in eval mode. The numbers are those of `final_hidden`, bit for bit.

    Args:
        model: a transformers causal language model.
        readings: for a model in memory each is read when its turn comes, for a streamed one all are before the first.
        progress: shows a stage called `blocks` of a streamed model.

    Raises:
        InputError: hidden states that fit neither in memory nor on the disk.
    """
    streamed = streamed_blocks(model)
    if streamed is None:
        for reading in readings:
            yield final_hidden(model, reading.ids.to(model.device), **reading.inputs(model))[0]
        return
    with States.of(model, readings, streamed.memory) as states:
        _walk(model, streamed, readings, states, progress)
        for number in range(len(readings)):
            yield states.get(number)


def check_walk(model: Any, what: str, progress: Any = None, *, beside: int = 0) -> None:
    """Says what a walk through a streamed model takes, and refuses it where its memory does not hold that.

    Args:
        model: one that is not streamed is never refused.
        what: is done.
        progress: is told.
        beside: bytes that something else will hold by then.

    Raises:
        InputError: too little memory.
    """
    streamed = streamed_blocks(model)
    if streamed is None:
        return
    needed = walk_bytes(model) + beside
    if progress is not None:
        progress.say(f"  {what}: {(held() + needed) / 1e9:.2f} GB of memory, one block at a time, and hidden states")
    check_memory(streamed.memory, needed, what, "allow more, or choose --dtype stored")


def walk_bytes(model: Any, tokens: int = BATCH_TOKENS) -> int:
    """What a walk through a streamed model takes, beside the hidden states and what is outside of the blocks.

    The largest block; the larger one of its file, which is mapped while it is read, and of its activations: what
    its linears put out, and a handful of the stream, some of it in fp32. Measured: 1.1 to 1.3 times what it takes.

    Args:
        model: streamed; its blocks on meta say their sizes.
        tokens: of the widest reading.
    """
    streamed, size = streamed_blocks(model), model.dtype.itemsize
    assert streamed is not None
    most = 0
    for block in streamed.blocks:
        weights = sum(p.numel() for p in block.parameters()) * size
        width = sum(linear.out_features for linear in block.modules() if isinstance(linear, nn.Linear))
        hidden = model.get_input_embeddings().weight.shape[1]
        most = max(most, weights + max(weights, tokens * (width * size + hidden * (6 * size + 12))))
    return most + _LOGITS


def _walk(model: Any, streamed: StreamedBlocks, readings: Sequence[Reading], states: States, progress: Any) -> None:
    last, blocks_at = len(streamed.blocks) - 1, family_of(model.config).blocks_at
    with stage(progress, "blocks", last + 1, "blocks") as advance:
        for index in range(last + 1):
            for number, reading in enumerate(readings):
                with only_block(model, blocks_at, index, states.get(number) if index else None) as put_out:
                    final, _ = final_hidden(model, reading.ids.to(model.device), **reading.inputs(model))
                states.put(number, final if index == last else put_out[0])
            advance(1)
    streamed.leave()


class States:
    """Hidden states of some readings, one tensor each: in memory, or in a file that goes with the process."""

    def __init__(self, file: IO[bytes] | None, device: torch.device | str = "cpu") -> None:
        self._file, self._device = file, device
        self._held: dict[int, Tensor] = {}
        self._places: dict[int, tuple[int, torch.Size, torch.dtype]] = {}
        self._end = 0

    @classmethod
    def of(cls, model: Any, readings: Sequence[Reading], memory: int | None) -> States:
        """Where those of `readings` fit.

        Raises:
            InputError: neither memory nor disk holds them.
        """
        width = model.get_input_embeddings().weight.shape[1]
        size = sum(reading.ids.numel() for reading in readings) * width * model.dtype.itemsize
        if memory is None or held() + size + walk_bytes(model) <= memory or model.device.type != "cpu":
            return cls(None)
        place = Path(tempfile.gettempdir())
        free = shutil.disk_usage(place).free
        if size > free:
            raise InputError(
                f"the hidden states of {sum(r.ids.numel() for r in readings):,} tokens take {size / 1e9:.2f} GB, which "
                f"--memory does not allow and {place} has not ({free / 1e9:.2f} GB are free); read fewer tokens, or "
                "set TMPDIR to a larger disk"
            )
        return cls(tempfile.TemporaryFile(prefix="sentei-", dir=place), model.device)

    def put(self, number: int, value: Tensor) -> None:
        """Keeps the states of a reading, in place of those that were there.

        Raises:
            InputError: the disk is full.
        """
        if self._file is None:
            self._held[number] = value
            return
        start, shape, dtype = self._places.setdefault(number, (self._end, value.shape, value.dtype))
        assert (shape, dtype) == (value.shape, value.dtype)  # a block changes neither
        self._end = max(self._end, start + value.nbytes)
        try:
            self._file.seek(start)
            write_tensor(value, self._file)
            self._file.flush()
        except OSError as error:
            place = tempfile.gettempdir()
            raise InputError(
                f"hidden states cannot be kept in {place}: {error.strerror or error}; free space or set TMPDIR"
            ) from error

    def get(self, number: int) -> Tensor:
        """The states of a reading."""
        if self._file is None:
            return self._held[number]
        start, shape, dtype = self._places[number]
        try:
            return read_tensor(self._file, start, shape, dtype).to(self._device)
        except OSError as error:
            place = tempfile.gettempdir()
            raise InputError(f"hidden states in {place} cannot be read again ({error}); see to the disk") from error

    def __enter__(self) -> States:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._held.clear()
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a full disk, already told
                self._file.close()
