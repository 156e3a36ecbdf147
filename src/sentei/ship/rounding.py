"""What a file's precision does to a model, done in torch: the yardstick of parity where something is rounded.

An engine that reads a rounded file computes another function than the model. How far another depends on the model, and
hides what a wrong export does: with weights in 8 bit, log-probabilities move by whole nats somewhere. So the same
rounding is done here, and the engine is compared with that.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sentei.families.modeling_sentei import LowRankLinear
from sentei.ship.base import FLOATS
from sentei.ship.tensors import dense_weight

Round = Callable[[Tensor], Tensor]
_BLOCK = 32
_MULTIPLIED = ("dense-fold", "nemotron-nas")  # routes that write low-rank pairs as one matrix
_STEP = {"F32": 3e-6, "F16": 1e-3, "BF16": 8e-3}  # last bits of what is computed in, about


def rounds(facts: dict[str, Any], computed: str) -> bool:
    """Whether an engine that computes in `computed` rounds anything, in an export with these facts."""
    return not facts["lossless"] or computed != "F32"


def rounded(reference: Any, facts: dict[str, Any], computed: str) -> Any:
    """A copy of a model in fp32 that rounds as an export and its engine do.

    GGUF: matrices in the file's kind, what they are multiplied with in the same; the rest in fp32. ONNX, INT8: linear
    maps in blocks of 32 along their inputs. OpenVINO, INT8: all matrices, a scale and a zero per row. All else: every
    parameter in the file's dtype.

    Args:
        reference: the model, fp32.
        facts: of the export.
        computed: what the engine says that it computes in.
    """
    model, kind, route = copy.deepcopy(reference), facts["dtype"], facts["route"]
    if route in _MULTIPLIED:
        _multiply(model)
    with torch.no_grad():
        for name, parameter, owner in _parameters(model):
            if (kind in FLOATS and route != "gguf") or parameter.ndim == 2:
                parameter.copy_(_rounding(route, kind, name, parameter, owner)(parameter))
    head = model.get_output_embeddings()
    for name, module in model.named_modules() if route == "gguf" else ():
        if isinstance(module, nn.Linear) and module is not head:  # the head's product is made outside the engine
            into = _rounding(route, computed if kind in FLOATS else kind, f"{name}.weight", module.weight, module)
            module.register_forward_pre_hook(lambda _, given, into=into: (into(given[0]), *given[1:]))
    return model


@contextlib.contextmanager
def disturbed(model: Any, facts: dict[str, Any], computed: str) -> Iterator[Any]:
    """The same model with its norms changed in the last bits that are computed with; put back afterwards."""
    step = _STEP[computed if facts["route"] == "onnx" and computed in _STEP else "F32"]
    generator = torch.Generator().manual_seed(0)
    norms = [(p, p.detach().clone()) for name, p in model.named_parameters() if p.ndim == 1 and "norm" in name]
    with torch.no_grad():
        for parameter, before in norms:
            parameter.copy_(before * (1 + step * torch.randn(before.shape, generator=generator).to(before)))
    try:
        yield model
    finally:
        with torch.no_grad():
            for parameter, before in norms:
                parameter.copy_(before)


def _multiply(model: nn.Module) -> None:
    """Low-rank pairs as the linear maps that they stand for."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRankLinear):
                linear = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                linear.weight.data = dense_weight(child)
                if child.bias is not None:
                    linear.bias.data = child.bias.data
                setattr(parent, name, linear)


def _rounding(route: str, kind: str, name: str, weight: Tensor, owner: nn.Module) -> Round:
    """How a parameter is rounded; in GGUF, what it is multiplied with is rounded alike."""
    if kind == "F32" or (route == "onnx" and kind == "INT8" and isinstance(owner, nn.Embedding)):
        return lambda x: x
    if route == "gguf" and kind == "Q8_0" and weight.shape[1] % _BLOCK and not name.endswith("down_proj.weight"):
        kind = "F16"  # rows that do not fill blocks; those of FFNs are filled up
    if kind in FLOATS:
        dtype = {"F16": torch.float16, "BF16": torch.bfloat16}[kind]
        return lambda x: x.to(dtype).to(x.dtype)
    return {"gguf": _q8_0, "onnx": _blocks, "openvino": _rows}[route]


def _parameters(model: nn.Module) -> Iterator[tuple[str, Tensor, nn.Module]]:
    """Name, value and owner of every parameter; one that is shared once, the embedding's before the head's."""
    seen: set[int] = set()
    for place, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{place}.{name}", parameter, module


def _blocked(x: Tensor) -> Tensor:
    """[…, n] as […, blocks, 32], filled up with zeros."""
    return pad(x, (0, -x.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))


def _q8_0(x: Tensor) -> Tensor:
    """llama.cpp's Q8_0: blocks of 32 with a scale in fp16, whole numbers from −127 to 127, halves away from zero."""
    blocks = _blocked(x)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    whole = blocks * torch.where(scale == 0, scale, 1 / scale)
    whole = whole.sign() * (whole.abs() + 0.5).floor()
    return (whole * scale.half().float()).flatten(-2)[..., : x.shape[-1]]


def _blocks(x: Tensor) -> Tensor:
    """ONNX Runtime's symmetric 8 bit: blocks of 32, the value furthest from 0 becomes −128."""
    blocks = _blocked(x)
    scale = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)) / -128
    whole = (blocks * torch.where(scale == 0, scale, 1 / scale)).round().clamp(-128, 127)
    return (whole * scale).flatten(-2)[..., : x.shape[-1]]


def _rows(x: Tensor) -> Tensor:
    """NNCF's asymmetric 8 bit: a scale, in fp16 as it is stored, and a zero per row; 0 is among the values."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = torch.where(high == low, torch.ones_like(low), (high - low) / 255)
    zero = (-low / scale).round()
    whole = ((x / scale).round() + zero).clamp(0, 255)
    return (whole - zero) * scale.half().float()
