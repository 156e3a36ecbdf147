"""Safetensors files into a model, every tensor checked."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sentei.errors import InputError
from sentei.families.base import Family
from sentei.families.separate import is_plain, separate, separate_state
from sentei.families.streamed import State, StreamedBlocks, stream
from sentei.files import read_json
from sentei.memory import check_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HEAD = "lm_head.weight"
_FLOATS = ("F64", "F32", "F16", "BF16")  # FP8 is not among them: its scales are elsewhere
_BLOCK = re.compile(r"(?:\w+\.)?(?:layers|h)\.(\d{1,9})\.")
# Buffers that old checkpoints hold; they are computed.
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|\.(?:attn|attention)\.(?:masked_)?bias$")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, its name there, its shape, and its dtype as safetensors calls it, by the file's header."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory; one model.safetensors goes before an index, as in transformers.

    Raises:
        InputError: none there (pickled ones are refused and named), a broken index, or a missing shard.
    """
    if (directory / _SINGLE).exists():
        return [directory / _SINGLE]
    if (directory / _INDEX).exists():
        return _indexed(directory / _INDEX)
    pickled = sorted(file.name for pattern in _PICKLED for file in directory.glob(pattern))
    if pickled:
        raise InputError(
            f"{directory} has only pickled weights ({', '.join(pickled[:3])}), which can run code when read and are "
            "refused; convert them to model.safetensors (save_pretrained in a sandbox, or the Hub's convert space)"
        )
    raise InputError(f"{directory} has no weights: expected {_SINGLE} or {_INDEX}")


def _indexed(index: Path) -> list[Path]:
    values = read_json(index)
    found = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise InputError(f'{index} is no index: expected {{"weight_map": {{tensor: file}}}}; fetch it again')
    names = sorted(set(found.values()))
    outside = next((n for n in names if Path(n).is_absolute() or ".." in Path(n).parts or "\0" in n), None)
    if outside is not None:
        raise InputError(f"{index} names a file outside of its directory: {outside!r}; mend or fetch the index again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise InputError(f"{index} lists {len(names)} files, missing are {', '.join(missing[:5])}; fetch them again")
    for name in names:
        with opened(index.parent / name) as handle:
            there = set(handle.keys())
        lost = [
            tensor
            for tensor, file in found.items()
            if file == name and tensor not in there and not _COMPUTED.search(tensor)
        ]
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise InputError(f"{index} says that {name} holds {lost[0]}{more}, which it does not; fetch both again")
    return [index.parent / name for name in names]


def stored_tensors(files: list[Path]) -> dict[str, Stored]:
    """All tensors of a model's files, by name without what a wrapper put before it (`_orig_mod.`, `module.`).

    Raises:
        InputError: a file is truncated or corrupt, or two tensors have one name.
    """
    found: dict[str, Stored] = {}
    for file in files:
        with opened(file) as handle:
            for stored in handle.keys():  # noqa: SIM118 (no mapping)
                name = _unwrapped(stored)
                if _COMPUTED.search(name):
                    continue
                if name in found:
                    twice = f"{found[name].name} of {found[name].file.name} and {stored} of {file.name}"
                    raise InputError(f"{file.parent}: {twice} are the same tensor; remove the one that is out of date")
                header = handle.get_slice(stored)
                found[name] = Stored(file, stored, tuple(header.get_shape()), header.get_dtype())
    return found


def _unwrapped(name: str) -> str:
    """A tensor's name without the marks of torch.compile, which may stand anywhere, and of data parallelism."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def check_depth(stored: Iterable[str], layers: Any, overrides: Any, where: Path) -> None:
    """Refuses a number of blocks that is not the weights', before anything of that size is made.

    Args:
        stored: names of tensors.
        layers: `num_hidden_layers`, as config.json says.
        overrides: `per_layer_config`: blocks that lost both parts have no tensors, but stand there.
        where: the config file.

    Raises:
        InputError: another number of blocks than there is.
    """
    overrides = overrides if isinstance(overrides, dict) else {}
    numbers = {int(match[1]) for match in map(_BLOCK.match, stored) if match}
    numbers |= {int(key) for key in overrides if str(key).isdecimal() and len(str(key)) < 10}
    held = max(numbers, default=-1) + 1
    if held == 0:
        raise InputError(f"{where.parent} has weights of no block (model.layers.0.…); config.json says {layers}")
    if isinstance(layers, int) and layers != held:
        raise InputError(f"{where} says num_hidden_layers {layers}, the weights have {held} blocks; mend config.json")


def dtype_of(files: list[Path]) -> str:
    """The name of the first floating-point dtype in safetensors files, for a config that declares none."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    for file in files:
        with opened(file) as handle:
            for name in handle.keys():  # noqa: SIM118 (no mapping)
                if (found := names.get(handle.get_slice(name).get_dtype())) is not None:
                    return found
    return "float32"  # other kinds are refused where the tensors are read


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file; what is wrong with it is an InputError."""
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except SafetensorError as error:
        raise InputError(f"{file} is truncated or corrupt ({error}); fetch or write it again") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error


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
        stored: see `stored_tensors`; names may lack "model.", as those of a bare decoder do.
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
                    tensor = handle.get_tensor(place.name)
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
        stored: see `stored_tensors`.
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
    expected, plain = model.state_dict(), model.config.model_type != family.name or is_plain(family)
    _check(_named(stored, expected, family), expected, family, tied)  # all blocks, before any work
    outer = {name: value for name, value in expected.items() if not _BLOCK.match(name)}
    numbers = sum(value.numel() for name, value in outer.items() if not (tied and name == _HEAD))
    check_memory(
        memory,
        2 * numbers * dtype.itemsize,  # the file is mapped while they are copied
        "what is outside the blocks (embedding, head)",
        "allow more, or choose --dtype stored",
    )
    outside = read_weights(
        stored, expected, family, tied=tied, dtype=dtype, device=device, wanted=lambda name: not _BLOCK.match(name)
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
        name = known if known in expected else family.aliases.get(known, known)
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
