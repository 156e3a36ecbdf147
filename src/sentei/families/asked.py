"""What a model gives to its blocks, asked of its own forward pass: probes stand in place of the blocks.

Embedding, positions and masks differ more between architectures, and between versions of transformers, than the blocks
do; nobody knows them better than the model.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, cast

from torch import Tensor, nn

Given = tuple[Tensor, dict[str, Any]]  # the stream [B, T, hidden], and the keyword arguments beside it


def given_to_blocks(model: nn.Module, blocks_at: str, **inputs: Any) -> list[Given]:
    """What each block is given. Only the first stream is the real one: blocks do nothing meanwhile.

    Args:
        model: a causal language model; it is as before afterwards.
        blocks_at: path of its blocks.
        inputs: of its body: `input_ids`, or `inputs_embeds` and `position_ids`.
    """
    holder, _, name = blocks_at.rpartition(".")
    owner = model.get_submodule(holder)
    blocks = cast(nn.ModuleList, getattr(owner, name))
    probes = [_Probe(block, last=i + 1 == len(blocks)) for i, block in enumerate(blocks)]
    setattr(owner, name, nn.ModuleList(probes))
    try:
        cast(Any, model).base_model(**inputs, use_cache=False)
    except _AllAskedError:
        pass
    finally:
        setattr(owner, name, blocks)
    return [probe.given for probe in probes]


class _AllAskedError(Exception):
    """The last block has been given its inputs; nothing after it is of interest."""


class _Probe(nn.Module):
    """Stands for a block: notes what it is given, and does nothing."""

    given: Given

    def __init__(self, block: nn.Module, last: bool) -> None:
        super().__init__()
        self.__dict__["real"] = block  # no child: its weights are not this module's
        self.last = last

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["real"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Notes its arguments by their names."""
        kind: Any = type(self.__dict__["real"])
        bound = _signature(kind).bind(None, hidden_states, *args, **kwargs)
        named = dict(list(bound.arguments.items())[2:])
        named |= named.pop("kwargs", {})
        self.given = hidden_states, named
        if self.last:
            raise _AllAskedError
        return hidden_states


@functools.cache
def _signature(block: type[nn.Module]) -> inspect.Signature:
    return inspect.signature(block.forward)
