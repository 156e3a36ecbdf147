"""Safetensors files into a model, every tensor checked; and the hash of a model's weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sentei.errors import InputError
from sentei.files import read_json

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory.

    Raises:
        InputError: none there (pickled ones are refused and named), a broken index, or a missing shard.
    """
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = read_json(index).get("weight_map", {}).values()
        files = [directory / Path(name).name for name in sorted(set(names))]
        missing = [file.name for file in files if not file.exists()]
        if missing or not files:
            raise InputError(f"{index} lists {len(files)} files, missing are {missing or 'none'}; fetch them again")
        return files
    if (directory / "model.safetensors").exists():
        return [directory / "model.safetensors"]
    pickled = sorted(file.name for pattern in _PICKLED for file in directory.glob(pattern))
    if pickled:
        raise InputError(
            f"{directory} has only pickled weights ({', '.join(pickled[:3])}), which can run code when read and are "
            "refused; convert them to model.safetensors (save_pretrained in a sandbox, or the Hub's convert space)"
        )
    raise InputError(f"{directory} has no weights: expected model.safetensors or model.safetensors.index.json")


def read_weights(
    files: list[Path], model: nn.Module, *, tied: bool, dtype: torch.dtype, device: str
) -> dict[str, Tensor]:
    """Reads the tensors that `model` (on meta) needs, in `dtype` on `device`.

    Args:
        files: safetensors files.
        model: says which names and shapes are expected.
        tied: the head is the embedding, and is not read twice.
        dtype: of the result.
        device: of the result.

    Raises:
        InputError: a file is truncated or corrupt; a tensor is missing, unexpected, of the wrong shape, not floating
            point, or has NaN or Inf; a head that should be tied differs from the embedding.
    """
    expected = model.state_dict()
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                for stored in handle.keys():  # noqa: SIM118 (no mapping)
                    name = stored if stored in expected else f"model.{stored}"  # a checkpoint of the bare decoder
                    if not stored.endswith("rotary_emb.inv_freq"):  # old checkpoints hold this buffer; it is computed
                        tensor = handle.get_tensor(stored)
                        _check(tensor, expected.get(name), f"{file}: tensor {stored}")
                        kind = dtype if tensor.is_floating_point() else tensor.dtype
                        found[name] = tensor.to(device=device, dtype=kind)
                        _check_finite(found[name], f"{file}: tensor {stored}")
        except SafetensorError as error:
            raise InputError(f"{file} is truncated or corrupt ({error}); fetch or write it again") from error
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    if tied and _EMBEDDING in found:
        head = found.setdefault(_HEAD, found[_EMBEDDING])
        if not torch.equal(head, found[_EMBEDDING]):
            raise InputError(
                f"{files[0].parent}: lm_head.weight differs from the embedding although config.json says "
                "tie_word_embeddings; set that to false"
            )
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise InputError(
            f"{files[0].parent}: {len(missing)} of {len(expected)} tensors are missing, first {missing[0]}; "
            "config.json and weights do not belong together, or a file is not complete"
        )
    return found


def _check(tensor: Tensor, expected: Tensor | None, where: str) -> None:
    if expected is None:
        raise InputError(f"{where} is not part of this architecture; config.json and weights do not belong together")
    if tensor.shape != expected.shape:
        raise InputError(f"{where} has shape {list(tensor.shape)}, expected {list(expected.shape)} from config.json")
    if tensor.is_floating_point() != expected.is_floating_point():
        raise InputError(f"{where} is {tensor.dtype}: quantised weights cannot be pruned; use the unquantised model")


def _check_finite(tensor: Tensor, where: str) -> None:
    if torch.isfinite(tensor.sum(dtype=torch.float32)):  # quick: a NaN or Inf survives the sum
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        values = f"{bad} NaN or Inf of {tensor.numel()} values (as {tensor.dtype})"
        raise InputError(f"{where} has {values}; the weights are broken")


def digest(model: nn.Module) -> str:
    """sha256 over names, shapes and bf16 bytes of all parameters: the same for a model loaded in fp32 and in bf16."""
    total = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        total.update(f"{name}{list(value.shape)}".encode())
        total.update(value.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()
