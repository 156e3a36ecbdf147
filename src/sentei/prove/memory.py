"""Bytes: of the weights, of the KV cache, at the peak, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sentei.families import family_of
from sentei.families.streamed import streamed_blocks
from sentei.inference.forward import evaluating, final_hidden
from sentei.memory import peak, reset_peak


def memory(model: Any, *, batch: int = 1, context: int = 1024, directory: str | Path | None = None) -> dict[str, int]:
    """Bytes that a model takes.

    Args:
        model: a transformers causal language model.
        batch: sequences in the KV cache.
        context: tokens in each of them.
        directory: where the model is saved.

    Returns:
        `weights_bytes`; `kv_cache_bytes` at `batch` and `context` (both given too); `peak_rss_bytes`, the most that the
        whole process held while the model read `batch` × `context` tokens (other loaded models count; where the system
        cannot reset the peak, since its start); `peak_device_bytes` on a CUDA device; `disk_bytes` of the weights'
        files, where there is a directory.
    """
    streamed = streamed_blocks(model) is not None
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(model.device)
    if streamed:
        shape = family_of(model.config).shape(model.config)
        cached = shape.cache_bytes(batch, context, model.dtype.itemsize)
    else:
        reset_peak()
        with evaluating(model):
            ids = torch.zeros((batch, context), dtype=torch.long, device=model.device)
            cached = cache_bytes(final_hidden(model, ids, use_cache=True)[1])
    found = {
        "weights_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "kv_cache_bytes": cached,
        "batch": batch,
        "context": context,
        "peak_rss_bytes": peak(),
    }
    if cuda:
        found["peak_device_bytes"] = torch.cuda.max_memory_allocated(model.device)
    if directory is not None and Path(directory).is_dir():
        found["disk_bytes"] = sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
    return found


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values in a KV cache. A layer without attention holds none."""
    if hasattr(cache, "layers"):
        tensors = [t for layer in cache.layers for t in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    else:  # transformers before 4.54
        tensors = [*cache.key_cache, *cache.value_cache]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
