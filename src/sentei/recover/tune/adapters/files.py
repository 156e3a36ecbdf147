"""Saving, loading and merging what `tune` trained, for every adapter that is a PeftModel."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from sentei.errors import InputError, one_line
from sentei.files import write_json
from sentei.outputs import atomic_dir
from sentei.recover.tune.adapters.base import linears
from sentei.recover.tune.adapters.layer import SparseLoraLinear, attach
from sentei.recover.tune.allocate import Share
from sentei.schema import EXACT, Count, Size, read

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, CONFIG, SHARES = "adapter_model.safetensors", "adapter_config.json", "sentei_adapter.json"
NAME = "default"  # peft's name for the only adapter


class ModuleShare(TypedDict):
    """What a module has of an adapter."""

    __pydantic_config__ = EXACT  # type: ignore[misc]

    shape: list[Size]
    rank: Size
    entries: Count


class Shares(TypedDict):
    """sentei_adapter.json."""

    __pydantic_config__ = EXACT  # type: ignore[misc]

    modules: dict[str, ModuleShare]


def save_adapter(model: nn.Module, directory: str | Path, *, overwrite: bool = False) -> Path:
    """Writes peft's two files and, for our own layer, the rank and the number of sparse entries of every module.

    Raises:
        InputError: the model has no adapter (full tuning), or the directory cannot be written.
    """
    if not isinstance(model, PeftModel):
        raise InputError("full tuning has no adapter to save; save the model itself")
    config = copy.copy(model.peft_config[NAME])
    config.inference_mode = True
    config.base_model_name_or_path = None  # a path of this machine; the adapter lies in the directory of its model
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    with atomic_dir(Path(directory), overwrite=overwrite) as scratch:
        config.save_pretrained(str(scratch))
        save_file(
            {name: value.cpu().contiguous() for name, value in state.items()}, scratch / WEIGHTS, {"format": "pt"}
        )
        shares = {}
        for name, layer in _layers(model).items():
            if isinstance(layer, SparseLoraLinear):
                A, _, _, values, _ = layer.parts(NAME)
                shares[name] = {"shape": [*layer.get_base_layer().weight.shape], "rank": len(A), "entries": len(values)}
        if shares:
            write_json(scratch / SHARES, {"schema_version": 1, "modules": shares})
    return Path(directory)


def load_adapter(model: PreTrainedModel, directory: str | Path, *, train: bool = False) -> PeftModel:
    """Puts a saved adapter on the model that it was trained for.

    Args:
        model: plain; changed in place.
        directory: what `save_adapter` wrote.
        train: whether the adapter is to be trained on.

    Raises:
        InputError: files missing or unreadable, or an adapter of another model (what differs first is named).
    """
    directory = Path(directory)
    for file in (CONFIG, WEIGHTS):
        if not (directory / file).is_file():
            raise InputError(f"{directory} has no {file}; an adapter that `sentei tune` saved has one")
    read(directory / CONFIG, dict[str, Any], "tune again")
    try:
        config = PeftConfig.from_pretrained(str(directory))
        state = load_file(directory / WEIGHTS)
    except (ValueError, TypeError, KeyError, AttributeError, OSError, SafetensorError) as error:
        raise InputError(f"{directory} cannot be read as an adapter: {one_line(error)}") from error
    config.inference_mode = not train
    config.base_model_name_or_path = None  # the model may have moved since; peft sets it anew
    if (directory / SHARES).is_file():
        wrapped = attach(model, _as_lora(config, directory), _read_shares(model, directory / SHARES), seed=0)
    else:
        wrapped = get_peft_model(model, config)
    wanted = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    for name in sorted({*wanted, *state}):
        got, expected = (tuple(s[name].shape) if name in s else None for s in (state, wanted))
        if got != expected:
            raise InputError(
                f"{directory / WEIGHTS}: {name} has shape {got}, expected {expected} (None: absent); "
                "use the model that the adapter was trained for"
            )
    set_peft_model_state_dict(wrapped, state)
    return wrapped if train else wrapped.eval()


def merge(model: nn.Module) -> Any:
    """The plain model with the adapter in its weights: the class, dtype and device of the base model.

    Summed in fp32 and rounded once. The base model inside is changed and given back: the adapter is gone afterwards. A
    model without adapter is given back as it is.

    Raises:
        InputError: a merged weight is not finite (the module is named).
    """
    if not isinstance(model, PeftModel):
        return model
    for name, layer in _layers(model).items():
        base = layer.get_base_layer()
        dtype = base.weight.dtype
        if not isinstance(layer, SparseLoraLinear):
            base.float()  # peft adds in the dtype of the weight
        layer.merge()
        base.to(dtype)
        if not torch.isfinite(base.weight).all():
            raise InputError(f"{name}: the merged weight is not finite; the tuning diverged, use an earlier checkpoint")
    return model.base_model.unload().requires_grad_(True)


def _layers(model: PeftModel) -> dict[str, Any]:
    """Adapted modules by the names that they have in the plain model."""
    return {n: m for n, m in model.get_base_model().named_modules() if isinstance(m, BaseTunerLayer)}


def _as_lora(config: PeftConfig, directory: Path) -> LoraConfig:
    if not isinstance(config, LoraConfig):
        raise InputError(f"{directory / SHARES} belongs to a LORA adapter, {CONFIG} says {config.peft_type}")
    return config


def _read_shares(model: nn.Module, path: Path) -> dict[str, Share]:
    known = {name: [*linear.weight.shape] for name, linear in linears(model).items()}
    shares = {}
    for name, share in read(path, Shares, "tune again")["modules"].items():
        shape = known.get(name)
        if shape != share["shape"]:
            raise InputError(
                f"{path}: {name} is {share['shape']}, in this model {shape or 'absent'}; "
                "use the model that the adapter was trained for"
            )
        if share["rank"] > min(shape) or share["entries"] > shape[0] * shape[1]:
            raise InputError(f"{path}: {name} has rank {share['rank']}, {share['entries']} entries: more than {shape}")
        shares[name] = Share(share["rank"], torch.zeros(share["entries"], dtype=torch.int64))
    return shares
