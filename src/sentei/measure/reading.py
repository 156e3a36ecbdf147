"""What `measure` and `cut` read: the data, and beside texts what the model writes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sentei.data.calibration import as_windows
from sentei.data.task_file import TaskFile
from sentei.data.windows import Windows
from sentei.errors import InputError
from sentei.families.streamed import streamed_blocks
from sentei.files import atomic_file
from sentei.inference.own_text import write_own_text
from sentei.models.load import Loaded
from sentei.progress import Progress

OWN_TEXT = 32768  # tokens: docs/calibration.md
_FILE = "own_text.safetensors"


def read_windows(
    loaded: Loaded,
    data: Any,
    *,
    window: int,
    tokens: int,
    own_text: int | Tensor,
    work: Path | None = None,
    progress: Progress,
) -> tuple[Windows, Tensor | None]:
    """The windows to read, and those among them that the model wrote.

    Texts stand for more than themselves, so the model's own text is read beside them, evenly spread. Windows, tensors
    and tasks say exactly what is to be read.

    Args:
        loaded: the dense model, with its tokenizer where there are texts.
        data: as of `as_windows`.
        window: tokens per window.
        tokens: at most this many of the data.
        own_text: own text [n, window], or how many tokens of it are to be written, at most as many as are read of the
            data; 0: none.
        work: a directory that keeps the own text, so that it is not written again after a kill.
        progress: told about every token that is written.

    Raises:
        InputError: as of `as_windows` and `write_own_text`.
    """
    windows = as_windows(data, loaded.tokenizer, window=window, tokens=tokens)
    if isinstance(data, Windows | Tensor | TaskFile) or (isinstance(own_text, int) and not own_text):
        return windows, None
    if isinstance(own_text, Tensor):
        own: Tensor | None = own_text
    elif streamed_blocks(loaded.model) is not None:  # every token would read all of its weights
        progress.say("  own text: a model that is read block by block writes none; only the data are read")
        return windows, None
    else:
        own = _written(work)
        if own is None:
            wanted = min(own_text, windows.ids.numel())
            own = write_own_text(loaded.model, loaded.tokenizer, tokens=wanted, window=window, progress=progress)
            keep_own_text(own, work)
    assert own is not None
    return _spread(windows.ids, own), own


def _spread(data: Tensor, own: Tensor) -> Windows:
    """Both, each evenly over the whole, because statistics read a beginning of the windows and fits every eighth."""
    if data.shape[1] != own.shape[1]:
        raise InputError(f"own text in windows of {own.shape[1]} tokens beside data in windows of {data.shape[1]}")
    places = torch.cat([(torch.arange(len(rows)) + 0.5) / len(rows) for rows in (data, own)])
    return Windows(torch.cat([data, own.to(data.dtype)])[places.argsort(stable=True)])


def keep_own_text(own: Tensor, directory: Path | None) -> None:
    """Writes own text into a directory."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_file(directory / _FILE) as scratch:
            save_file({"ids": own.to(torch.int32)}, scratch)


def read_own_text(directory: Path) -> Tensor:
    """What `keep_own_text` wrote: int64 [n, window].

    Raises:
        InputError: it is missing or damaged.
    """
    path = directory / _FILE
    try:
        ids = load_file(path)["ids"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); measure again") from None
    if ids.ndim != 2 or ids.dtype != torch.int32 or not ids.numel() or int(ids.min()) < 0:
        raise InputError(f"{path}: expected token numbers [windows, length]; measure again")
    return ids.long()


def _written(work: Path | None) -> Tensor | None:
    return read_own_text(work) if work is not None and (work / _FILE).exists() else None
