"""What every export in transformers' layout shares: config, weights, tokenizer, card, licence."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sentei.files import write_json, write_text
from sentei.models.card import model_card
from sentei.models.save import copy_legal, spell_rope_twice
from sentei.models.writing import Lazy, write_safetensors
from sentei.plan import Plan
from sentei.ship.base import FLOATS

if TYPE_CHECKING:
    from sentei.models.load import Loaded


def plan_of(model: Any) -> Plan | None:
    """The plan that lies beside a model that was loaded from a directory."""
    path = Path(model.name_or_path or ".") / "plan.json"
    return Plan.load(path) if path.is_file() and (path.parent / "config.json").is_file() else None


def declaring(model: Any, dtype: str) -> Any:
    """The same model, whose config declares `dtype` ("F32", …): that is what `save` stores."""
    new = copy.copy(model)
    new.config = copy.deepcopy(model.config)
    new.config.sentei_dtype = FLOATS[dtype]
    return new


def in_dtype(model: Any, dtype: str) -> Any:
    """The model with weights of `dtype` ("F32", …), which its config declares too; shares what it can."""
    kind = getattr(torch, FLOATS[dtype])
    return declaring(model if model.dtype == kind else copy.deepcopy(model).to(kind), dtype)


def padding_bytes(model: Any, written: int, dtype: str) -> int:
    """How many bytes of an export are not the model's own parameters."""
    own = sum(value.numel() for value in model.parameters())
    return written - own * int(getattr(torch, FLOATS[dtype]).itemsize)


def write_directory(
    loaded: Loaded,
    path: Path,
    config: dict[str, Any],
    tensors: Mapping[str, Lazy],
    dtype: str,
    code: Sequence[str] = (),
) -> int:
    """Writes a model directory, one tensor at a time; gives the bytes of its weights.

    Args:
        loaded: whose tokenizer, plan, licence and generation config go along.
        path: an empty directory.
        config: of the written model; RoPE in the new spelling, the old one is added.
        tensors: by name, as the class that reads them wants.
        dtype: "F32", "F16" or "BF16".
        code: Python files that are put beside it.
    """
    model = loaded.model
    values = {key: value for key, value in config.items() if key not in ("_name_or_path", "sentei_dtype")}
    spell_rope_twice(values)
    write_json(path / "config.json", values | {"dtype": FLOATS[dtype]})
    written = write_safetensors(path / "model.safetensors", tensors, getattr(torch, FLOATS[dtype]))
    for file in code:
        shutil.copyfile(file, path / Path(file).name)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(path)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(path)
    plan = plan_of(model)
    if plan is not None:
        plan.save(path / "plan.json")
    legal = copy_legal(Path(model.name_or_path or "."), path)
    card = model_card(model, plan, bundled=bool(code), legal=legal)
    write_text(path / "README.md", card.replace("modeling_sentei.py", Path(code[-1]).name) if code else card)
    return written
