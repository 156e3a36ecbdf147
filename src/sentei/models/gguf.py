"""GGUF files, dequantised once into a cache of safetensors directories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from sentei.errors import InputError
from sentei.files import WriteError, hash_file, hash_json, write_json
from sentei.models.gguf_config import read_model
from sentei.models.gguf_file import GgufFile, parts_of, stem_of
from sentei.models.gguf_vocabulary import read_tokenizer
from sentei.models.gguf_weights import read_tensors
from sentei.outputs import atomic_dir

_FORMAT = "2"  # of the cache; raise it when the conversion changes
_SHARD = 1 << 30  # bytes of weights that are in memory at a time


def cache_directory() -> Path:
    """Where converted models are kept: `$SENTEI_CACHE`, else ~/.cache/sentei."""
    return Path(os.environ.get("SENTEI_CACHE") or "~/.cache/sentei").expanduser() / "models"


def converted(file: Path, *, notice: str | None = None) -> Path:
    """The directory that holds `file` dequantised to fp32 safetensors, with its tokenizer; made at the first call.

    Args:
        file: a GGUF file, or any part of a split one, whose other parts are beside it.
        notice: whose weights they are, and under which licence.

    Raises:
        InputError: the gguf package or a part is missing; the file is corrupt or of an unknown architecture; it holds
            a key or a tensor that has no place in the model, or lacks one; the cache cannot be written.
    """
    from filelock import FileLock

    parts = parts_of(file)
    digest = hash_file(file) if len(parts) == 1 else hash_json([hash_file(part) for part in parts])
    directory = cache_directory() / f"{stem_of(file)[:100]}-{digest[:16]}-{_FORMAT}"
    if not directory.exists():
        model = GgufFile(file)
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{directory}.lock"):
                if not directory.exists():  # another process may have made it meanwhile
                    _convert(model, directory, notice)
        except (OSError, WriteError) as error:
            why = error.reason if isinstance(error, WriteError) else error.strerror or error
            raise InputError(
                f"{directory.parent}, where converted models are kept, cannot be written "
                f"({why}); set SENTEI_CACHE to another place"
            ) from error
    return directory


def _convert(file: GgufFile, directory: Path, notice: str | None) -> None:
    model = read_model(file)
    tokenizer = read_tokenizer(file, model.vocab)
    ends: dict[str, Any] = {}
    if tokenizer is not None:
        ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with atomic_dir(directory) as scratch:
        _write_weights(file, model, scratch)
        file.check_all_taken()
        write_json(scratch / "config.json", model.config | ends)
        write_json(scratch / "generation_config.json", {key: i for key, i in ends.items() if i is not None})
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        if notice:
            (scratch / "NOTICE").write_text(notice + "\n", encoding="utf-8")


def _write_weights(file: GgufFile, model: Any, directory: Path) -> None:
    """Writes shards with an index, or one file where one is enough."""
    from safetensors.torch import save_file

    where: dict[str, str] = {}
    shard: dict[str, Tensor] = {}

    def flush() -> None:
        name = f"model-{len(set(where.values())) + 1:05d}.safetensors"
        save_file(shard, directory / name, {"format": "pt"})
        where.update(dict.fromkeys(shard, name))
        shard.clear()

    total = 0
    for name, value in read_tensors(file, model):
        shard[name] = value
        total += value.nbytes
        if sum(tensor.nbytes for tensor in shard.values()) >= _SHARD:
            flush()
    if not where:
        save_file(shard, directory / "model.safetensors", {"format": "pt"})
        return
    if shard:
        flush()
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_json(directory / "model.safetensors.index.json", index)
