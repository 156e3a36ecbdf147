"""A GGUF file, or the parts of a split one, of which every key and every tensor has to be taken."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sentei.errors import InputError, one_line

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})", re.DOTALL)  # as llama.cpp's gguf-split names them
# Say nothing about the computation: provenance, the file's own layout, and what quantisers leave.
_SILENT = ("GGUF.", "general.", "split.", "quantize.")

# What our export says of sliding windows, for which llama.cpp has no key in these architectures: the model's context,
# how far blocks see, and which of them do not see everything.
WINDOW_KEYS = {
    "context": "sentei.context_length",
    "window": "sentei.sliding_window",
    "blocks": "sentei.sliding_blocks",
}


def parts_of(file: Path) -> list[Path]:
    """All files of the model that `file` is, or is a part of, in order.

    Raises:
        InputError: a part is missing.
    """
    match = _PART.fullmatch(file.stem)
    if match is None:
        return [file]
    stem, _, count = match.groups()
    if not 0 < int(count) <= 10_000:
        raise InputError(f"{file}: {int(count)} parts in the name of a split file, expected 1 to 10000; rename it")
    parts = [file.with_name(f"{stem}-{i:05d}-of-{count}{file.suffix}") for i in range(1, int(count) + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        found = f"{len(missing)} of {int(count)} parts are not beside it, first {missing[0]}"
        raise InputError(f"{file} is one part of a model; {found}: fetch them too")
    return parts


def stem_of(file: Path) -> str:
    """The name of a model: that of its file, without the number of a part."""
    match = _PART.fullmatch(file.stem)
    return match[1] if match else file.stem


class GgufFile:
    """Metadata and tensors of all parts.

    Attributes:
        path: the file that was given.
        arch: `general.architecture`.
        shapes: of the tensors that are not taken yet, in torch's order.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file with its other parts.

        Raises:
            InputError: the gguf package is missing, a part is missing, or a file is corrupt or no model.
        """
        if importlib.util.find_spec("gguf") is None:
            raise InputError(f"reading {path} needs the package gguf: pip install gguf")
        self.path = path
        self._fields: dict[str, Any] = {}
        self._left: set[str] = set()
        self._tensors: dict[str, Any] = {}
        files = parts_of(path)
        for number, part in enumerate(files):
            reader = _open(part)
            if number == 0:
                self._fields = dict(reader.fields)
            self._check_part(part, reader.fields, number, len(files))
            for tensor in reader.tensors:
                if tensor.name in self._tensors:
                    raise InputError(f"{part}: tensor {tensor.name} is in the file twice; fetch it again")
                self._tensors[tensor.name] = tensor
        self._left = {key for key in self._fields if not key.startswith(_SILENT)}
        wanted = self.get("split.tensors.count", int, len(self._tensors))
        if wanted != len(self._tensors):
            raise InputError(
                f"{path}: {len(self._tensors)} tensors in {len(files)} files, expected {wanted}; fetch again"
            )
        self.arch: str = self.get("general.architecture", str, "")
        kind = self.get("general.type", str, "model")
        if not self.arch or kind != "model":
            what = f"it is of type {kind!r}" if self.arch else "it has no general.architecture"
            raise InputError(f"{path} is not a model: {what}")
        self.shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}

    def _check_part(self, part: Path, fields: Any, number: int, count: int) -> None:
        said = {key: fields[key].contents() for key in ("split.no", "split.count") if key in fields}
        if said.get("split.count", count) not in (count, 0) or (count > 1 and said.get("split.no", number) != number):
            raise InputError(
                f"{part} says that it is part {said.get('split.no', 0) + 1} of {said.get('split.count', count)}, "
                f"its name {number + 1} of {count}; split files keep the names that gguf-split gave them"
            )

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Takes the value of a key; `default` where there is none.

        Raises:
            InputError: a value of another type.
        """
        field = self._fields.get(key)
        self._left.discard(key)
        if field is None:
            return default
        try:
            value = field.contents()
        except (ValueError, IndexError, TypeError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path}: {key} cannot be read ({one_line(error)})") from error
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is float and isinstance(value, float):
            value = float(str(np.float32(value)))  # 1e-05 is stored as 9.999999747378752e-06
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InputError(f"{self.path}: {key} is {str(value)[:40]}, expected {kind.__name__}")
        return value

    def need(self, key: str, kind: type) -> Any:
        """The same for a key that has to be there."""
        value = self.get(key, kind)
        if value is None:
            raise InputError(f"{self.path} has no {key}, without which the model is not known; convert it again")
        return value

    def each(self, key: str, count: int) -> list[int]:
        """Takes one number per block: a list, or one number for all."""
        field = self._fields.get(key)
        listed = field is not None and isinstance(field.contents(), list)
        values = self.need(key, list) if listed else [self.need(key, int)] * count
        if len(values) != count or not all(isinstance(n, int) and 0 <= n < 1 << 31 for n in values):
            raise InputError(f"{self.path}: {key} has {len(values)} values, expected {count} sizes, one per block")
        return values

    def has(self, key: str) -> bool:
        """Whether there is such a key."""
        return key in self._fields

    def drop_if(self, key: str, values: tuple[Any, ...]) -> None:
        """Takes a key that changes nothing as long as its value is one of these; left over otherwise."""
        if self.has(key) and self._fields[key].contents() in values:
            self._left.discard(key)

    def drop(self, pattern: str) -> None:
        """Takes all keys that match a pattern, unread: they say nothing about the computation."""
        self._left = {key for key in self._left if not re.fullmatch(pattern, key)}

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Takes a tensor, dequantised to fp32.

        Raises:
            InputError: it is missing, has another shape, or a type that the gguf package does not read.
        """
        from gguf.quants import dequantize

        if name not in self.shapes:
            raise InputError(f"{self.path}: tensor {name} is missing; fetch or convert the file again")
        found = self.shapes.pop(name)
        if found != shape:
            raise InputError(
                f"{self.path}: tensor {name} has shape {list(found)}, expected {list(shape)} from its metadata"
            )
        stored = self._tensors[name]
        try:
            values = dequantize(stored.data, stored.tensor_type)
        except (NotImplementedError, ValueError) as error:
            kind = stored.tensor_type.name
            raise InputError(
                f"{self.path}: tensor {name} is {kind}, which cannot be read: {one_line(error)}"
            ) from error
        return torch.from_numpy(np.array(values, dtype=np.float32).reshape(shape))

    def check_all_taken(self) -> None:
        """Refuses what nobody took.

        Raises:
            InputError: a key of the architecture or the tokenizer, or a tensor, is left over.
        """
        own = sorted(key for key in self._left if key.startswith((f"{self.arch}.", "tokenizer.")))
        if own:
            value = str(self._fields[own[0]].contents())[:40]
            raise InputError(
                f"{self.path}: {own[0]} = {value} is not known for {self.arch}, and may change what the model computes"
                f"{f' ({len(own) - 1} more keys like it)' if own[1:] else ''}; use the original model"
            )
        if self.shapes:
            first = min(self.shapes)
            raise InputError(
                f"{self.path}: tensor {first} has no place in a model of this kind ({self.arch})"
                f"{f', nor have {len(self.shapes) - 1} more' if len(self.shapes) > 1 else ''}; use the original model"
            )


def _open(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, OSError, OverflowError, MemoryError, TypeError) as error:
        raise InputError(f"{file} is truncated or corrupt ({one_line(error)}); fetch it again") from error
