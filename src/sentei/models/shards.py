"""Writing a streamed model: a shard per block, the rest in one, an index last.

One block is in memory at a time, and one tensor of what is cast.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sentei.families import family_of
from sentei.families.streamed import StreamedBlocks
from sentei.families.surgery import outside
from sentei.files import write_json
from sentei.models.writing import Lazy, write_safetensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INDEX = "model.safetensors.index.json"
State = dict[str, Tensor]


def save_streamed(
    model: PreTrainedModel,
    blocks: StreamedBlocks,
    directory: Path,
    kind: torch.dtype,
    as_stored: Callable[[str, Tensor], Tensor],
) -> None:
    """Writes config, generation config and weights as `save_pretrained` does.

    Args:
        model: streamed.
        blocks: of it.
        directory: is there.
        kind: that floating-point weights are kept in.
        as_stored: turns a named weight into that.
    """
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    family, shards = family_of(model.config), len(blocks.blocks) + 1
    where: dict[str, str] = {}
    total = 0
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        state = outside(family, model) if number == 0 else _block(blocks, number - 1, family.blocks_at)
        state = {stored_name(model, key): value for key, value in state.items()}
        tensors = {key: Lazy(tuple(value.shape), partial(as_stored, key, value)) for key, value in state.items()}
        kinds = {key: kind if value.is_floating_point() else value.dtype for key, value in state.items()}
        total += write_safetensors(directory / name, tensors, kinds)
        where.update(dict.fromkeys(state, name))
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def stored_name(model: PreTrainedModel, name: str) -> str:
    """What a tensor is called in files: a stock class may have another name for it; ours have not."""
    family = family_of(model.config)
    return family.stored_name(name) if model.config.model_type == family.name else name


def _block(blocks: StreamedBlocks, index: int, path: str) -> State:
    blocks.enter(index)
    state = blocks.blocks[index].state_dict(keep_vars=True)
    return {f"{path}.{index}.{name}": value for name, value in state.items()}
