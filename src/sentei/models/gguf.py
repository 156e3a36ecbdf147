"""GGUF files, dequantised once into a cache of safetensors directories."""

from __future__ import annotations

import copy
import importlib.util
import os
from pathlib import Path
from typing import Any

from sentei.errors import InputError, one_line
from sentei.files import atomic_dir, hash_file

_FORMAT = "1"  # of the cache; raise it when the conversion changes


def cache_directory() -> Path:
    """Where converted models are kept: `$SENTEI_CACHE`, else ~/.cache/sentei."""
    return Path(os.environ.get("SENTEI_CACHE") or "~/.cache/sentei").expanduser() / "models"


def converted(file: Path, *, notice: str | None = None) -> Path:
    """The directory that holds `file` dequantised to fp32 safetensors, with its tokenizer; made at the first call.

    Raises:
        InputError: the gguf package is missing, or the file is corrupt or of an unknown architecture.
    """
    from filelock import FileLock

    directory = cache_directory() / f"{file.stem}-{hash_file(file)[:16]}-{_FORMAT}"
    if not directory.exists():
        _check(file)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{directory}.lock"):
            if not directory.exists():  # another process may have made it meanwhile
                _convert(file, directory, notice)
    return directory


def _check(file: Path) -> None:
    from sentei.families import family_of

    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"reading {file} needs the package gguf: pip install gguf")
    from gguf import GGUFReader

    try:
        field = GGUFReader(file).get_field("general.architecture")
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise InputError(f"{file} is truncated or corrupt ({error}); fetch it again") from error
    if field is None:
        raise InputError(f"{file} has no general.architecture; it is not a model")
    family_of(str(field.contents()))


def _convert(file: Path, directory: Path, notice: str | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: Any = file.absolute().parent
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file.name)
        quantised = AutoModelForCausalLM.from_pretrained(where, gguf_file=file.name, dtype=torch.float32)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"{file} cannot be converted: {one_line(error)}") from error
    config = copy.deepcopy(quantised.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # transformers refuses to save a model that has one
    model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict())
    with atomic_dir(directory) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        if notice:
            (scratch / "NOTICE").write_text(notice + "\n", encoding="utf-8")
