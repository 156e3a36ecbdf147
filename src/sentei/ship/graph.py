"""What the graph exports (ONNX, OpenVINO) share: how a model is traced, and what lies beside its graph.

One graph serves prefill and decode: tokens and a cache that may be empty in, logits and the grown cache out. It is
traced from the real modules, so blocks of different sizes, removed parts and low-rank layers are as they are.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sentei.errors import InputError, one_line
from sentei.families import family_of
from sentei.families.surgery import ready
from sentei.files import write_json
from sentei.models.save import copy_legal
from sentei.ship.base import FLOATS, elsewhere
from sentei.ship.directory import in_dtype
from sentei.ship.telemetry import without_telemetry

if TYPE_CHECKING:
    from sentei.models.load import Loaded

_BATCH, _PAST, _NEW = 2, 4, 3  # of the traced example; none may be 0 or 1, which a trace takes for constants
_CHATTY = ("root", "torch.onnx", "torch.export", "nncf", "onnxruntime.quantization.matmul_nbits_quantizer")


def refuse(loaded: Loaded) -> str | None:
    """Experts, which are chosen token by token: a graph of fixed steps has no place for that."""
    family = family_of(loaded.model.config)
    return f"a graph cannot choose experts token by token; {elsewhere(family)}" if family.ffn_part.experts else None


def needs(*modules: str) -> None:
    """Asks for packages before any work is done.

    Raises:
        InputError: one is not installed.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"this export needs {', '.join(missing)}; pip install {' '.join(missing)}")


def export_graph(exporter: str, loaded: Loaded, dtype: str, **settings: Any) -> Any:
    """The model as a graph, through `transformers.exporters`.

    Args:
        exporter: "Onnx" or "OpenVINO".
        loaded: stays as it is.
        dtype: of the traced weights, "F32", "F16" or "BF16".
        settings: of the exporter's config.

    Returns:
        the exporter's program (`onnx_ir.Model`, `openvino.Model`), with token ids, attention mask and positions as
        inputs of any batch and length.

    Raises:
        InputError: the exporter cannot trace this model.
    """
    from transformers import exporters

    model = ready(in_dtype(loaded.model, dtype), loaded.model.device)  # RoPE's buffers stay in fp32
    inputs, shapes = _example(model)
    config = getattr(exporters, f"{exporter}Config")(dynamic=True, dynamic_shapes=shapes, **settings)
    try:
        return getattr(exporters, f"{exporter}Exporter")().export(model, inputs, config).program
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        why = one_line(error)[:300]
        raise InputError(f"transformers cannot trace {loaded.name} ({why}); try --to hf or --to gguf") from error


def write_beside(loaded: Loaded, path: Path) -> None:
    """Config (the sizes, for reference), tokenizer with chat template, generation config, licence."""
    values = json.loads(loaded.model.config.to_json_string(use_diff=False))
    for key in ("_name_or_path", "sentei_dtype", "auto_map"):
        values.pop(key, None)
    write_json(path / "config.json", values)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(path)
    if loaded.model.generation_config is not None:
        loaded.model.generation_config.save_pretrained(path)
    copy_legal(Path(loaded.model.name_or_path or "."), path)


def float_dtype(dtype: str) -> str:
    """The dtype to trace in: F32 for what becomes integers."""
    return dtype if dtype in FLOATS else "F32"


def _example(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs of a step in the middle of a text, and which of their axes vary.

    The cache holds plain layers, sliding windows too: the mask looks no further back than the window. A removed
    attention part has no place in it.
    """
    from transformers import DynamicCache

    shape = family_of(model.config).shape(model.config)
    cache, leaves = DynamicCache(), 0
    for index, block in enumerate(shape.blocks):
        if block.kv_groups:
            keys = torch.zeros(_BATCH, block.kv_groups, _PAST, shape.head_dim, dtype=model.dtype, device=model.device)
            cache.update(keys, keys.clone(), index)
            leaves += 2
    varies = torch.export.Dim.DYNAMIC
    inputs: dict[str, Any] = {
        "input_ids": torch.ones(_BATCH, _NEW, dtype=torch.long),
        "attention_mask": torch.ones(_BATCH, _PAST + _NEW, dtype=torch.long),
        "position_ids": torch.arange(_PAST, _PAST + _NEW).repeat(_BATCH, 1),
    }
    shapes: dict[str, Any] = {name: {0: varies, 1: varies} for name in inputs}
    return inputs | {"past_key_values": cache}, shapes | {"past_key_values": [{0: varies, 2: varies}] * leaves}


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Without the exporters' remarks on stdout and stderr, and without telemetry; all is put back afterwards."""
    from transformers.utils import logging as chatter

    level = chatter.get_verbosity()
    loggers = [logging.getLogger(name) for name in _CHATTY]
    before = [logger.level for logger in loggers]
    chatter.set_verbosity_error()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with without_telemetry(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(level)
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)
