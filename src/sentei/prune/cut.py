"""`cut`: removes what a plan removes, and fits what stays, block by block.

Two streams of hidden states run side by side: the dense model's and the cut model's. Each part is fitted for the inputs
that the already cut parts before it now feed it, against what the dense part does on the dense inputs, so errors do not
pile up. Cost: one dense pass, one pass of the cut model, and one Gram matrix per part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sentei.data.windows import as_windows
from sentei.errors import InputError, SenteiError
from sentei.families import family_of
from sentei.families.base import Family
from sentei.families.surgery import fill, skeleton
from sentei.measure.stream import PARTS, batches, embed, part_linears, tap
from sentei.models.load import as_loaded
from sentei.plan import Plan
from sentei.progress import Progress
from sentei.prune.compensation import COMPENSATIONS, Compensation, Fit


def cut(
    model: Any,
    plan: Plan,
    data: Any,
    *,
    tokens: int = 65536,
    window: int = 512,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> PreTrainedModel:
    """Cuts `model` by `plan`; the model itself stays as it is.

    Args:
        model: a `Loaded` or in-memory model: the one that the plan was made for.
        plan: what to keep and how to compensate.
        data: calibration data: token windows, texts, or a source. Not read where the plan compensates nothing.
        tokens: at most this many calibration tokens are read.
        window: tokens per window.
        tokenizer: needed for texts where `model` carries none.
        progress: told about every block.

    Raises:
        InputError: the plan is for another model, or the data cannot be used.
    """
    loaded = as_loaded(model, tokenizer)
    dense, family = loaded.model, family_of(loaded.model.config)
    if plan.model != loaded.digest:
        raise InputError(
            f"the plan is for another model (weights {plan.model[:12]}…, this model has {loaded.digest[:12]}…); "
            "measure and plan this model"
        )
    pruned = skeleton(dense, plan.shape())
    compensation = COMPENSATIONS[plan.compensation]
    windows = None
    if compensation is not COMPENSATIONS["none"]:
        windows = as_windows(data, loaded.tokenizer, window=window, tokens=tokens)
    progress = progress or Progress()
    if windows is not None:
        widest = max(max(b.ffn, b.kv_groups * b.heads_per_group * plan.dense.head_dim) for b in plan.dense.blocks)
        needed = windows.numel() * (2 * plan.dense.hidden + widest) * dense.dtype.itemsize
        progress.say(f"  cut: {windows.numel():,} tokens, {needed / 1e9:.1f} GB of memory beside the two models")
    with torch.no_grad(), progress.stage("cut", total=len(plan.blocks), unit="blocks") as bar:
        streams = None
        if windows is not None:
            entered = embed(family, dense, windows)
            streams = _Streams(entered, entered.clone())
        for index, block in enumerate(plan.blocks):
            new, old = family.blocks(pruned)[index], family.blocks(dense)[index]
            fill(family, new, old, block, plan.dense)
            if streams is not None:
                for part in PARTS:
                    _run_part(family, dense, pruned, index, part, streams, compensation)
            bar.advance()
    _check_finite(pruned)
    return pruned


class _Streams:
    """Hidden states `[windows, length, hidden]` of the dense and of the cut model, and whether they differ yet."""

    def __init__(self, dense: Tensor, cut: Tensor) -> None:
        self.dense, self.cut, self.differ = dense, cut, False


def _run_part(
    family: Family,
    dense: nn.Module,
    pruned: nn.Module,
    index: int,
    part: str,
    streams: _Streams,
    compensation: Compensation,
) -> None:
    """Runs both models through one part, fits the cut one's output matrix, and moves both streams on."""
    old = _runner(family, dense, index, part)
    new = _runner(family, pruned, index, part)
    old_linear, new_linear = _output_linear(family, dense, index, part), _output_linear(family, pruned, index, part)
    is_cut = old_linear is not None and (new_linear is None or new_linear.in_features != old_linear.in_features)
    if new is None or new_linear is None or not (is_cut or streams.differ):  # nothing to fit
        for where in batches(*streams.dense.shape[:2]):
            if old is not None:
                streams.dense[where] += old(streams.dense[where])
            if not (is_cut or streams.differ):
                streams.cut[where] = streams.dense[where]
        streams.differ = streams.differ or is_cut
        return
    assert old is not None  # a part that stays was there
    kept = Fit(compensation, new_linear.weight.detach().float())
    inputs = torch.empty(
        *streams.cut.shape[:2], new_linear.in_features, dtype=streams.cut.dtype, device=streams.cut.device
    )
    for where in batches(*streams.dense.shape[:2]):
        before = streams.dense[where]
        wanted = old(before)
        with tap(output=new_linear) as seen:
            new(streams.cut[where])
        x = seen["output"]
        inputs[where] = x.view(inputs[where].shape)
        target = wanted.float() + compensation.residual * (before.float() - streams.cut[where].float())
        if new_linear.bias is not None:
            target = target - new_linear.bias.float()
        kept.add(x, target.flatten(0, 1))
        streams.dense[where] = before + wanted
    weight, bias, _ = kept.solve()
    new_linear.weight.copy_(weight)
    if bias is not None and new_linear.bias is not None:
        new_linear.bias.add_(bias)
    for where in batches(*streams.dense.shape[:2]):
        streams.cut[where] += new_linear(inputs[where])
    streams.differ = True


def _runner(family: Family, model: nn.Module, index: int, part: str) -> Callable[[Tensor], Tensor] | None:
    """The part as a function of the residual stream, its norm included; None where it was removed."""
    block = family.blocks(model)[index]
    if part == "ffn":
        ffn, norm = family.ffn(block), family.ffn_norm(block)
        return None if ffn is None else lambda hidden: ffn(norm(hidden))
    attention, norm = family.attention(block), family.attention_norm(block)
    if attention is None:
        return None
    return lambda hidden: attention(hidden_states=norm(hidden), **family.block_inputs(model, hidden, index))[0]


def _output_linear(family: Family, model: nn.Module, index: int, part: str) -> nn.Linear | None:
    """The part's row-pruned matrix: o_proj or down_proj."""
    linears = part_linears(family, family.blocks(model)[index], part)
    return list(linears.values())[-1] if linears else None


def _check_finite(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise SenteiError(f"{name} is not finite after the cut; use more calibration data or --dtype float32")
