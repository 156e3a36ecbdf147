"""Safetensors files into a model, every tensor checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sentei.errors import InputError
from sentei.families.base import Family
from sentei.families.separate import is_separate, separate, separate_state
from sentei.families.streamed import State, StreamedBlocks, stream
from sentei.memory import check_memory
from sentei.models.headers import BLOCK, Stored, opened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEAD = "lm_head.weight"
_FLOATS = ("F64", "F32", "F16", "BF16")  # FP8 is not among them: its scales are elsewhere


def read_weights(
    stored: dict[str, Stored],
    expected: Mapping[str, Tensor],
    family: Family,
    *,
    tied: bool,
    dtype: torch.dtype,
    device: str,
    wanted: Callable[[str], bool] | None = None,
) -> dict[str, Tensor]:
    """Reads the tensors that a model needs, in `dtype` on `device`.

    Args:
        stored: see `sentei.models.headers.stored_tensors`; names may lack "model.", as those of a bare decoder do.
        expected: the state of the model (on meta): names and shapes.
        family: of the model.
        tied: the head is the embedding, and is not read twice.
        dtype: of the result.
        device: of the result.
        wanted: which of the tensors, by name; None: all. Some are copied out of the files, which are closed again.

    Raises:
        InputError: a file is truncated or corrupt; a tensor is missing, unexpected, of the wrong shape, not floating
            point, or has NaN or Inf; a head that should be tied differs from the embedding.
    """
    named = _named(stored, expected, family)
    if wanted is not None:
        expected = {name: value for name, value in expected.items() if wanted(name)}
        named = {name: place for name, place in named.items() if wanted(name)}
    _check(named, expected, family, tied)
    found: dict[str, Tensor] = {}
    files = list(dict.fromkeys(place.file for place in named.values()))
    for file in files:
        with opened(file) as handle:
            for name, place in named.items():
                if place.file == file:
                    tensor = place.read(handle)
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    found[name] = tensor.to(device=device, dtype=kind, copy=wanted is not None)
                    _check_finite(found[name], f"{file}: tensor {place.name}")
    embedding = f"{family.embedding_at}.weight"
    if tied and _HEAD in found:  # of two names for one tensor, either may be stored
        found.setdefault(embedding, found[_HEAD])
    if tied and embedding in found:
        head = found.setdefault(_HEAD, found[embedding])
        if not torch.equal(head, found[embedding]):
            raise InputError(
                f"{files[0].parent}: lm_head.weight differs from the embedding although config.json says "
                "tie_word_embeddings; set that to false"
            )
    return found


def stream_weights(
    stored: dict[str, Stored],
    model: PreTrainedModel,
    family: Family,
    *,
    tied: bool,
    dtype: torch.dtype,
    device: str,
    memory: int | None = None,
) -> PreTrainedModel:
    """Reads what is outside the blocks of `model` (on meta), and its blocks when they are wanted.

    Args:
        stored: see `sentei.models.headers.stored_tensors`.
        model: its names and shapes are expected.
        family: of the model.
        tied: the head is the embedding.
        dtype: of the weights in memory.
        device: of these.
        memory: bytes that the process may hold; refused where it does not hold what is outside the blocks.

    Returns:
        The model with single matrices, see `sentei.families.separate`.

    Raises:
        InputError: see `read_weights`; too little memory.
    """
    expected, plain = model.state_dict(), model.config.model_type != family.name or is_separate(family, model)
    _check(_named(stored, expected, family), expected, family, tied)  # all blocks, before any work
    outer = {name: value for name, value in expected.items() if not BLOCK.match(name)}
    numbers = sum(value.numel() for name, value in outer.items() if not (tied and name == _HEAD))
    check_memory(
        memory,
        2 * numbers * dtype.itemsize,  # the file is mapped while they are copied
        "what is outside the blocks (embedding, head)",
        "allow more, or choose --dtype stored",
    )
    outside = read_weights(
        stored, expected, family, tied=tied, dtype=dtype, device=device, wanted=lambda name: not BLOCK.match(name)
    )
    model.load_state_dict(outside, assign=True, strict=False)
    model, shape = separate(model), family.shape(model.config)

    def read(index: int) -> State:
        prefix = f"{family.blocks_at}.{index}."
        tensors = read_weights(
            stored,
            expected,
            family,
            tied=False,
            dtype=dtype,
            device=device,
            wanted=lambda name: name.startswith(prefix),
        )
        state = {name.removeprefix(prefix): value for name, value in tensors.items()}
        return state if plain else separate_state(family, state, shape, index)

    stream(model, StreamedBlocks(family.blocks(model), read, device=device, memory=memory))
    return model


def _named(stored: dict[str, Stored], expected: Mapping[str, Tensor], family: Family) -> dict[str, Stored]:
    """Tensors by the model's names."""
    root, named = family.blocks_at.partition(".")[0], {}
    for known, place in stored.items():
        name = known if known in expected else family.aliases.get(known, family.known_name(known))
        named[name if name in expected else f"{root}.{name}"] = place
    return named


def _check(named: dict[str, Stored], expected: Mapping[str, Tensor], family: Family, tied: bool) -> None:
    """Refuses what `expected` does not want and what it lacks, by the headers of the files."""
    for name, place in named.items():
        where, wanted = f"{place.file}: tensor {place.name}", expected.get(name)
        if ".lora_" in where or ".base_layer." in where:
            raise InputError(
                f"{where} is part of a LoRA adapter; merge it first (peft: merge_and_unload) and save that"
            )
        if wanted is None:
            raise InputError(
                f"{where} is not part of this architecture; config.json and weights do not belong together"
            )
        if place.shape != wanted.shape:
            raise InputError(f"{where} has shape {list(place.shape)}, expected {list(wanted.shape)} from config.json")
        if (place.dtype in _FLOATS) != wanted.is_floating_point():
            raise InputError(f"{where} is {place.dtype}: quantised weights cannot be pruned; use the unquantised model")
    one_of_two = (
        {_HEAD, f"{family.embedding_at}.weight"} if tied else set()
    )  # names for one tensor, of which either may be stored
    missing = sorted(expected.keys() - named.keys() - (one_of_two if one_of_two & named.keys() else set()))
    if not missing:
        return
    directory = next(iter(named.values())).file.parent if named else "the model"
    if missing == [_HEAD]:
        raise InputError(
            f"{directory} has no lm_head.weight, and config.json does not say that the head is the embedding; "
            "if it is, set tie_word_embeddings to true"
        )
    raise InputError(
        f"{directory}: {len(missing)} of {len(expected)} tensors are missing, first {missing[0]}; "
        "config.json and weights do not belong together, or a file is not complete"
    )


def _check_finite(tensor: Tensor, where: str) -> None:
    if torch.isfinite(tensor.sum(dtype=torch.float32)):  # quick: a NaN or Inf survives the sum
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        values = f"{bad} NaN or Inf of {tensor.numel()} values (as {tensor.dtype})"
        raise InputError(f"{where} has {values}; the weights are broken")
