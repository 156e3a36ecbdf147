"""Writing a streamed model: a shard per block, the rest in one, an index last; one block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from sentei.families.streamed import StreamedBlocks
from sentei.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INDEX = "model.safetensors.index.json"
State = dict[str, Tensor]


def save_streamed(
    model: PreTrainedModel, blocks: StreamedBlocks, directory: Path, as_stored: Callable[[State], State]
) -> None:
    """Writes config, generation config and weights as `save_pretrained` does.

    Args:
        model: streamed.
        blocks: of it.
        directory: is there.
        as_stored: turns weights into the dtype that they are kept in.
    """
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    shards = len(blocks.blocks) + 1
    where: dict[str, str] = {}
    total = 0
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        state = as_stored(_outside(model) if number == 0 else _block(blocks, number - 1))
        save_file({key: value.contiguous() for key, value in state.items()}, directory / name, {"format": "pt"})
        where.update(dict.fromkeys(state, name))
        total += sum(value.nbytes for value in state.values())
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _block(blocks: StreamedBlocks, index: int) -> State:
    blocks.enter(index)
    return {
        f"model.layers.{index}.{name}": value for name, value in blocks.blocks[index].state_dict(keep_vars=True).items()
    }


def _outside(model: PreTrainedModel) -> State:
    """What is in memory always; a head that is the embedding is stored once."""
    state = {
        name: value for name, value in model.state_dict(keep_vars=True).items() if not name.startswith("model.layers.")
    }
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state
