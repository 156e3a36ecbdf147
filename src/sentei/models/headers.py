"""What the safetensors files of a model directory hold, by their headers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sentei.errors import InputError
from sentei.files import read_json

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
BLOCK = re.compile(r"(?:\w+\.)?(?:layers|h)\.(\d{1,9})\.")  # what the names of a block's tensors begin with
# Buffers that old checkpoints hold; they are computed.
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|\.(?:attn|attention)\.(?:masked_)?bias$")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, its name there, its shape, and its dtype as safetensors calls it, by the file's header.

    `at`: which part of what has that name it is; empty: all.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    at: tuple[int | slice, ...] = ()

    def read(self, handle: Any) -> Tensor:
        """The tensor; `handle`: of its opened file."""
        found: Tensor = handle.get_slice(self.name)[self.at] if self.at else handle.get_tensor(self.name)
        return found


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
    return dict(_single(found))


def _single(stored: dict[str, Stored]) -> Iterator[tuple[str, Stored]]:
    """Experts that are stored as one tensor, as transformers 5 has them in memory, as one tensor each."""
    for name, place in stored.items():
        path, _, last = name.rpartition(".")
        if last not in ("gate_up_proj", "down_proj") or len(place.shape) != 3 or not all(place.shape):
            yield name, place
            continue
        experts, rows, columns = place.shape
        halves = {"gate_proj": slice(0, rows // 2), "up_proj": slice(rows // 2, rows)}
        for number in range(experts):
            for matrix, own in halves.items() if last == "gate_up_proj" else [(last, slice(0, rows))]:
                shape = (own.stop - own.start, columns)
                yield f"{path}.{number}.{matrix}.weight", replace(place, shape=shape, at=(number, own))


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
    numbers = {int(match[1]) for match in map(BLOCK.match, stored) if match}
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
