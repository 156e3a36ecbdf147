"""A model whose blocks are not in memory: one at a time is, from when it is asked for until the next one is.

`Family.block` and the model's own forward both ask for blocks here, so that whatever walks a model in order (measure,
cut, export) works on one that is larger than memory; `sentei.inference.walk` takes many forward passes through it at
once. What is outside the blocks (embedding, final norm, head) stays.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]  # of one block, by name within it


class StreamedBlocks:
    """The blocks of one model.

    Attributes:
        current: the block that is in memory, or None.
        memory: bytes that the process may hold; None: as many as there are.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        read: Callable[[int], State | None],
        write: Callable[[int, State], None] | None = None,
        start: Callable[[nn.Module], None] = lambda block: None,
        device: torch.device | str = "cpu",
        memory: int | None = None,
    ) -> None:
        """Takes over a model's blocks, which are on meta.

        Args:
            blocks: the decoder layers.
            read: a block's tensors; None for one that was never written, which starts without values.
            write: keeps a block's tensors when the next block comes; None: blocks do not change.
            start: what a block that was never written needs besides memory.
            device: where the block in memory is.
            memory: see above.
        """
        self.blocks, self._read, self.write, self.start, self.device = blocks, read, write, start, device
        self.memory = memory
        self.current: int | None = None
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda _module, _inputs, index=index: self.enter(index))

    def read(self, index: int) -> State | None:
        """The tensors of a block as they are kept; None for one that was never written."""
        if index == self.current:
            self.leave()  # what was done to it is not kept yet
        return self._read(index)

    def enter(self, index: int) -> None:
        """Brings a block into memory, and puts away the one that was there."""
        if index == self.current:
            return
        self.leave()
        block = self.blocks[index]
        with torch.inference_mode(False):  # weights read within one would be of no use to a backward pass after it
            state = self.read(index)
            if state is None:
                self.start(block.to_empty(device=self.device))
            else:
                block.load_state_dict(state, assign=True)
                block.requires_grad_(False)
        block.eval()
        self.current = index

    def leave(self) -> None:
        """Puts away the block that is in memory."""
        if self.current is None:
            return
        block = self.blocks[self.current]
        if self.write is not None:
            self.write(self.current, block.state_dict())
        block.to("meta")
        self.current = None


class BlockFiles:
    """Blocks as safetensors files of a directory, one each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _file(self, index: int) -> Path:
        return self.directory / f"block-{index:05d}.safetensors"

    def read(self, index: int) -> State | None:
        """The tensors of a block; None where it was not written."""
        if not self._file(index).exists():
            return None
        with safe_open(self._file(index), framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)

    def write(self, index: int, state: State) -> None:
        """Keeps the tensors of a block."""
        self.directory.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in state.items()}, self._file(index))


def stream(model: nn.Module, streamed: StreamedBlocks) -> None:
    """Says that the blocks of `model` are not in memory."""
    cast(Any, model).streamed_blocks = streamed


def streamed_blocks(model: nn.Module) -> StreamedBlocks | None:
    """Where the blocks of `model` come from; None where they are in memory."""
    return getattr(model, "streamed_blocks", None)
