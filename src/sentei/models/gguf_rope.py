"""How a GGUF file says that positions are turned, in transformers' words."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sentei.errors import InputError
from sentei.models.gguf_file import GgufFile

_FREQS = "rope_freqs.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # of all Llama 3 models
_EXACT = 2e-6  # relative: fp32 and one division


def read_rope(file: GgufFile, head_dim: int, context: int) -> dict[str, Any]:
    """`rope_parameters` of a file.

    Raises:
        InputError: a kind of scaling that transformers computes otherwise, or two kinds at once.
    """
    arch = file.arch
    base = {"rope_theta": file.get(f"{arch}.rope.freq_base", float, 10000.0)}
    kind = file.get(f"{arch}.rope.scaling.type", str)
    factor = file.get(f"{arch}.rope.scaling.factor", float, 0.0)
    old = file.get(f"{arch}.rope.scale_linear", float, 0.0)  # before scaling had types
    file.drop(rf"{arch}\.rope\.scaling\.finetuned")  # provenance
    original = file.get(f"{arch}.rope.scaling.original_context_length", int, context)
    fast, slow = (file.get(f"{arch}.rope.scaling.yarn_beta_{name}", float) for name in ("fast", "slow"))
    for name, neutral in (
        ("attn_factor", 1),
        ("yarn_attn_factor", 1),
        ("yarn_ext_factor", 1),
        ("yarn_log_multiplier", 0),
    ):
        file.drop_if(f"{arch}.rope.scaling.{name}", (neutral,))
    factor = factor or old or 1.0
    if kind is None:
        kind = "none" if factor == 1.0 else "linear"  # as llama.cpp does
    if kind == "linear" and factor == 1.0:
        kind = "none"
    scaled = _FREQS in file.shapes
    if kind not in ("none", "linear", "yarn") or (scaled and kind != "none"):
        extra = " and rope_freqs" if scaled else ""
        raise InputError(f"{file.path}: RoPE scaling of type {kind!r}{extra} is not known; use the original model")
    if scaled:
        return base | _from_factors(file.tensor(_FREQS, head_dim // 2).double(), base["rope_theta"], head_dim, context)
    if kind == "none":
        return base | {"rope_type": "default"}
    values: dict[str, Any] = base | {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        values["original_max_position_embeddings"] = original
        values |= {f"beta_{name}": beta for name, beta in (("fast", fast), ("slow", slow)) if beta is not None}
    return values


def _from_factors(factors: Tensor, theta: float, head_dim: int, context: int) -> dict[str, Any]:
    """What divides the plain frequencies by `factors`: Llama 3's rule where it gives these, else all of them."""
    if bool((factors == 1).all()):
        return {"rope_type": "default"}
    plain = theta ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    factor = round(float(factors.max()), 4)
    turns = plain / (2 * math.pi)  # per token
    smooth = (1 / factors - 1 / factor) / (1 - 1 / factor)  # 0: divided by `factor`, 1: left as it is
    between = (smooth > 1e-4) & (smooth < 1 - 1e-4)
    low, high = _LLAMA3.values()
    guesses = ((smooth * (high - low) + low) / turns)[between].round().tolist() or [2.0**n for n in range(5, 21)]
    for original in dict.fromkeys(int(guess) for guess in guesses):
        ramp = ((original * turns - low) / (high - low)).clamp(0, 1)
        made = 1 / ((1 - ramp) / factor + ramp)
        if torch.allclose(made, factors, rtol=_EXACT, atol=0):
            kept = {"factor": factor, "original_max_position_embeddings": original}
            return {"rope_type": "llama3", **kept, **_LLAMA3}
    listed = factors.tolist()
    return {
        "rope_type": "longrope",
        "short_factor": listed,
        "long_factor": listed,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }
