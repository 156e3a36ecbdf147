"""What a measurement holds between two blocks, in memory or in files that outlive a killed process."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from sentei.data.windows import Where
from sentei.errors import InputError, one_line
from sentei.files import atomic_file, mended, write_json
from sentei.inference.spill import read_tensor, write_tensor
from sentei.schema import EXACT, read

WORTH = 20  # times what writing the states took last: so much is done before they are written again


def claim(directory: Path, key: str) -> None:
    """Makes a directory for the work of a key, or goes on in it.

    Raises:
        InputError: it holds work of another key.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "work.json"
    if file.exists() and read(file, Claim, f"remove {directory}, and the work begins anew")["key"] != key:
        raise InputError(
            f"{directory} holds the work of another model, data or settings; remove it or choose another one"
        )
    write_json(file, {"schema_version": 1, "key": key})


class Claim(TypedDict):
    """work.json."""

    __pydantic_config__ = EXACT  # type: ignore[misc]

    key: str


class Store:
    """Named sets of tensors: on their device, or, where there is a directory, in files."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._held: dict[str, dict[str, Tensor]] = {}

    def put(self, name: str, **tensors: Tensor) -> None:
        """Keeps tensors, in place of those of that name."""
        if self.directory is None:
            self._held[name] = {key: value.clone() for key, value in tensors.items()}
            return
        with atomic_file(self._file(name)) as new:
            save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, new)

    def get(self, name: str, device: Any = "cpu") -> dict[str, Tensor]:
        """The tensors of a name.

        Raises:
            InputError: their file is damaged.
        """
        if self.directory is None:
            return self._held[name]
        try:
            return {key: value.to(device) for key, value in load_file(self._file(name)).items()}
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{self._file(name)} cannot be read ({one_line(error)}); remove {self.directory}, and the work begins "
                "anew"
            ) from error

    def drop(self, name: str) -> None:
        """Keeps them no longer."""
        self._held.pop(name, None)
        if self.directory is not None:
            self._file(name).unlink(missing_ok=True)

    def __contains__(self, name: str) -> bool:
        return name in self._held if self.directory is None else self._file(name).is_file()

    def _file(self, name: str) -> Path:
        assert self.directory is not None  # else tensors are in memory
        return self.directory / f"{name}.safetensors"


class States:
    """Hidden states `[windows, length, hidden]` that enter one block after the other.

    In memory they are overwritten block by block, and copied to a file now and then. Spilled they are in files alone:
    one is read batch by batch while the next is written.

    Attributes:
        block: which block those of the file enter; None where there is none.
    """

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, device: Any, directory: Path | None, *, spilled: bool
    ) -> None:
        """Goes on with what a killed process left in the directory."""
        self.shape, self.dtype, self.device, self.directory, self.spilled = shape, dtype, device, directory, spilled
        self._row = shape[1] * shape[2] * dtype.itemsize
        self._cost, self._written = 0.0, time.monotonic()
        self._new: BinaryIO | None = None
        found = [] if directory is None else [_index(file) for file in directory.glob("states-*.bin")]
        self.block: int | None = max(found, default=None)
        self._held: Tensor | None = None
        if not spilled:
            begun = self.block is not None
            self._held = (self._rows(0, shape[0]) if begun else torch.zeros(shape, dtype=dtype)).to(device)

    def __getitem__(self, where: Where) -> Tensor:
        """A batch of them, which no later write changes where they are spilled."""
        if self._held is not None:
            return self._held[where]
        rows, places = where
        return self._rows(rows.start, rows.stop)[:, places].to(self.device)

    def __setitem__(self, where: Where, value: Tensor) -> None:
        """Sets what enters the next block; batches come in order."""
        if self._held is not None:
            self._held[where] = value
            return
        rows, places = where
        padded = torch.zeros(rows.stop - rows.start, *self.shape[1:], dtype=self.dtype)
        padded[:, places] = value.cpu()
        with self._writing():
            if self._new is None:
                self._new = self._scratch.open("wb")
            write_tensor(padded, self._new)

    def enter(self, block: int) -> None:
        """All batches are set: they enter `block` now."""
        if self.directory is None:
            return
        if self._held is not None:
            started = time.monotonic()
            if started - self._written < WORTH * self._cost:
                return
            with self._writing(), self._scratch.open("wb") as new:
                write_tensor(self._held, new)
            self._written = time.monotonic()
            self._cost = self._written - started
        elif self._new is not None:
            self._new.close()
            self._new = None
        os.replace(self._scratch, self._file(block))
        if self.block is not None:
            self._file(self.block).unlink(missing_ok=True)
        self.block = block

    def _rows(self, start: int, stop: int) -> Tensor:
        assert self.block is not None  # something was written
        file = self._file(self.block)
        try:
            with open(file, "rb") as stored:
                return read_tensor(stored, start * self._row, (stop - start, *self.shape[1:]), self.dtype)
        except OSError as error:
            raise InputError(
                f"{file} cannot be read ({one_line(error)}); remove {self.directory}, and the work begins anew"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        assert self.directory is not None  # else nothing is written
        with mended(self.directory):
            yield

    @property
    def _scratch(self) -> Path:
        assert self.directory is not None  # else nothing is written
        return self.directory / ".states.new"

    def _file(self, block: int) -> Path:
        assert self.directory is not None  # else there are none
        return self.directory / f"states-{block:05d}.bin"


def _index(file: Path) -> int:
    found = re.fullmatch(r"states-(\d+)\.bin", file.name)
    return int(found[1]) if found else -1
