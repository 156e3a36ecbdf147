"""A model's own forward pass with something else in place of its blocks: asked what it gives them, or to run one alone.

Embedding, positions and masks differ more between architectures, and between versions of transformers, than the blocks
do; nobody knows them better than the model.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from torch import Tensor, nn

Given = tuple[Tensor, dict[str, Any]]  # the stream [B, T, hidden], and the keyword arguments beside it
Forward = Callable[..., Any]


def given_to_blocks(model: nn.Module, blocks_at: str, **inputs: Any) -> list[Given]:
    """What each block is given. Only the first stream is the real one: blocks do nothing meanwhile.

    Args:
        model: a causal language model; it is as before afterwards.
        blocks_at: path of its blocks.
        inputs: of its body: `input_ids`, or `inputs_embeds` and `position_ids`.
    """
    given: list[Given] = []
    blocks = cast(nn.ModuleList, model.get_submodule(blocks_at))

    def note(block: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        bound = _signature(cast(Any, type(block))).bind(None, hidden_states, *args, **kwargs)
        named = dict(list(bound.arguments.items())[2:])
        named |= named.pop("kwargs", {})
        given.append((hidden_states, named))
        if len(given) == len(blocks):
            raise _AllAskedError
        return hidden_states

    notes = [functools.partial(note, block) for block in blocks]
    with _in_place_of_blocks(model, blocks_at, notes), contextlib.suppress(_AllAskedError):
        cast(Any, model).base_model(**inputs, use_cache=False)
    return given


@contextlib.contextmanager
def only_block(model: nn.Module, blocks_at: str, index: int, hidden: Tensor | None) -> Iterator[list[Tensor]]:
    """Within it a forward pass of the model computes block `index` and passes by all others.

    Args:
        model: a causal language model; it is as before afterwards.
        blocks_at: path of its blocks.
        index: of the block.
        hidden: what it reads instead of what it is given, [B, T, hidden]; None: that.

    Yields:
        A list, to which each forward pass adds what the block put out.
    """
    put_out: list[Tensor] = []
    blocks = cast(nn.ModuleList, model.get_submodule(blocks_at))

    def here(given: Tensor, *args: Any, **inputs: Any) -> Tensor:
        put_out.append(blocks[index](given if hidden is None else hidden, *args, **inputs))
        return put_out[-1]

    forwards: list[Forward] = [_pass_by] * len(blocks)
    forwards[index] = here
    with _in_place_of_blocks(model, blocks_at, forwards):
        yield put_out


def _pass_by(hidden: Tensor, *_args: Any, **_inputs: Any) -> Tensor:
    return hidden


class _AllAskedError(Exception):
    """The last block has been given its inputs; nothing after it is of interest."""


@contextlib.contextmanager
def _in_place_of_blocks(model: nn.Module, blocks_at: str, forwards: Sequence[Forward]) -> Iterator[None]:
    """Within it the model calls these functions, and no block."""
    holder, _, name = blocks_at.rpartition(".")
    owner = model.get_submodule(holder)
    blocks = cast(nn.ModuleList, getattr(owner, name))
    setattr(owner, name, nn.ModuleList(map(_StandIn, blocks, forwards)))
    try:
        yield
    finally:
        setattr(owner, name, blocks)


class _StandIn(nn.Module):
    """Has the attributes of a block, and another forward pass."""

    def __init__(self, block: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.__dict__["block"] = block  # no child: its weights are not this module's
        self.forward = forward

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)


@functools.cache
def _signature(block: type[nn.Module]) -> inspect.Signature:
    return inspect.signature(block.forward)
