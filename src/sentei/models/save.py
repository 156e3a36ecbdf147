"""`save`: a model directory that transformers loads where sentei is not installed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sentei.errors import SenteiError
from sentei.families import modeling_sentei
from sentei.families.streamed import streamed_blocks
from sentei.files import read_json, write_json, write_text
from sentei.models.card import model_card
from sentei.models.shards import save_streamed, stored_name
from sentei.outputs import atomic_dir
from sentei.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def save(
    model: PreTrainedModel,
    directory: str | Path,
    *,
    tokenizer: Any = None,
    plan: Plan | None = None,
    card: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes weights, config, tokenizer, model card and plan; all of it or nothing.

    Weights are stored in the dtype of the checkpoint that the model came from, whatever it was computed in.

    A model of equal blocks becomes the stock class. Any other becomes a Sentei class with `per_layer_config`, whose
    code is put beside it (`trust_remote_code=True`).

    Args:
        model: dense or pruned.
        directory: where to; must be missing or empty, unless `overwrite`.
        tokenizer: saved too, with its chat template.
        plan: saved as plan.json and told in the card.
        card: README.md; default: made from model and plan.
        overwrite: replace what is there.

    Raises:
        InputError: the directory is not empty, the disk is full, or writing is not allowed.
    """
    from sentei.families.stock import as_stock

    stock = as_stock(model)
    saved = model if stock is None else stock
    with atomic_dir(Path(directory), overwrite=overwrite) as scratch:
        with quiet():
            if (blocks := streamed_blocks(saved)) is None:
                state = _as_stored(saved, saved.state_dict(keep_vars=True))
                saved.save_pretrained(scratch, state_dict={stored_name(saved, key): x for key, x in state.items()})
            else:
                save_streamed(
                    saved, blocks, scratch, _kind(saved), lambda name, value: _as_stored(saved, {name: value})[name]
                )
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        _mend_config(scratch, saved, plan, bundled=stock is None)
        if stock is None:
            shutil.copyfile(modeling_sentei.__file__, scratch / "modeling_sentei.py")
        if plan is not None:
            plan.save(scratch / "plan.json")
        legal = copy_legal(Path(model.name_or_path or "."), scratch)
        write_text(scratch / "README.md", card or model_card(saved, plan, bundled=stock is None, legal=legal))
        for file in scratch.iterdir():
            file.chmod(0o644)  # transformers writes weights for the owner only
    return Path(directory)


def _kind(model: PreTrainedModel) -> torch.dtype:
    """The dtype of the checkpoint that a model came from; its own where that is not known."""
    declared = getattr(torch, str(getattr(model.config, "sentei_dtype", None)), None)
    return declared if isinstance(declared, torch.dtype) and declared.is_floating_point else model.dtype


def _as_stored(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model on the CPU in the checkpoint's dtype, whatever they were computed in.

    Args:
        model: says the dtype.
        state: with the parameters themselves (`keep_vars`): detached ones would not show what is shared, and stays so.

    Raises:
        SenteiError: values that the checkpoint's dtype does not reach.
    """
    kind = _kind(model)
    cast: dict[int, Tensor] = {}
    for name, value in state.items():
        if id(value) not in cast:
            found = value.detach().to("cpu", kind if value.is_floating_point() else value.dtype)
            if kind == torch.float16 != value.dtype and not torch.isfinite(found).all():
                raise SenteiError(
                    f"{name} has values beyond ±65504, the range of float16, which the checkpoint is stored in; "
                    "set `dtype` in its config.json to bfloat16"
                )
            cast[id(value)] = found
    return {name: cast[id(value)] for name, value in state.items()}


def _mend_config(directory: Path, model: PreTrainedModel, plan: Plan | None, *, bundled: bool) -> None:
    """What transformers does not write itself: where the code is, both spellings of RoPE, and where this came from."""
    values = read_json(directory / "config.json")
    values.pop("_name_or_path", None)  # a path of this machine
    values["dtype"] = values.pop("sentei_dtype", None) or values.get("dtype", "float32")
    values["architectures"] = [type(model).__name__]
    values.pop("auto_map", None)
    if bundled:
        kinds = {"AutoConfig": model.config, "AutoModel": model.base_model, "AutoModelForCausalLM": model}
        values["auto_map"] = {auto: f"modeling_sentei.{type(kind).__name__}" for auto, kind in kinds.items()}
    spell_rope_twice(values)
    if plan is not None:
        values["prune_provenance"] = {"tool": "sentei", "method": plan.method, "plan_sha256": plan.digest()}
    write_json(directory / "config.json", values)


def spell_rope_twice(values: dict[str, Any]) -> None:
    """Adds the old spelling of RoPE to a config, which transformers 4, llama.cpp's converter and MLX read."""
    rope = dict(values.get("rope_parameters") or {})
    if "rope_theta" in rope:
        values["rope_theta"] = rope.pop("rope_theta")
        values["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope


def copy_legal(source: Path, target: Path) -> list[str]:
    """Copies the licence files of the model that this one was made from, if it came from a directory."""
    files = [f for pattern in _LEGAL for f in sorted(source.glob(pattern)) if f.is_file()] if source.is_dir() else []
    is_model = (source / "config.json").exists()
    for file in files if is_model else []:
        shutil.copyfile(file, target / file.name)
    return [file.name for file in files] if is_model else []


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bar, which flashes by, and its remark on per-layer sizes; put back afterwards."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
