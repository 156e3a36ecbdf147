"""Adam's state through a cut: what belongs to a parameter that stays goes with it.

Moments are cut by the very function that cuts weights: a model whose numbers are the moments loses the same rows and
columns. A step of training after a cut is then the step that the model with the same units masked would make, which is
what `tests/accel/test_moments.py` holds. Nobody else is known to do it: where a cut starts a new process or optimiser,
each one costs a warm-up.

A matrix that was refitted stands elsewhere than its moments were gathered. How large its gradients are says the second
moment, which stays; where they pointed says the first, which `Refitted` decides on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sentei.accel.settings import Refitted
from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.plan import Plan

Tensors = dict[str, Tensor]


def weights_of(model: Any, kind: str) -> Tensors:
    """`kind.NAME`, fp32, of every parameter of a model's blocks."""
    return {f"{kind}.{name}": value.detach().float().clone() for name, value in _inside(model).items()}


@torch.no_grad()
def carry(tensors: Mapping[str, Tensor], before: Any, after: Any, plan: Plan, refitted: Refitted) -> Tensors:
    """The state of full training, see `Trainer.state`, after a cut.

    Args:
        tensors: `value.NAME` and, of parameters that were stepped on, `step.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`.
        before: the model that was cut, in the dtype that it is computed in.
        after: what `sentei.prune.cut` made of it.
        plan: by which.
        refitted: what becomes of the first moment where the cut changed a weight that it kept.

    Returns:
        The same for `after`. Values are the kept ones plus what the refit changed. A parameter that is new has no
        moments.
    """
    found, shares = carry_weights(tensors, "value", before, after, plan, refitted)
    kept = {kind: _cut(tensors, kind, before, plan) for kind in ("exp_avg", "exp_avg_sq")}
    for name, share in shares.items():
        if f"exp_avg.{name}" in tensors:
            found[f"exp_avg.{name}"] = kept["exp_avg"][name] * share
            found[f"exp_avg_sq.{name}"] = kept["exp_avg_sq"][name]
            found[f"step.{name}"] = tensors[f"step.{name}"].clone()
    return found


@torch.no_grad()
def carry_weights(
    tensors: Mapping[str, Tensor], kind: str, before: Any, after: Any, plan: Plan, refitted: Refitted
) -> tuple[Tensors, dict[str, float]]:
    """The weights of the blocks after a cut, fp32, and what is kept of the first moments that belong to each.

    Args:
        tensors: have `kind.NAME`, the weights before the cut, or what they are without an adapter.
        kind: see there.
        before: the model that was cut, of the effective weights.
        after: what the cut made of it.
        plan: by which.
        refitted: see `carry`.

    Returns:
        `kind.NAME`: what the plan keeps, plus what the cut changed of it; and, of parameters that there were before,
        1 where it changed nothing, else by `refitted`.
    """
    plain, now, kept = _inside(prune(before, plan)), _inside(after), _cut(tensors, kind, before, plan)
    found: Tensors = {}
    shares: dict[str, float] = {}
    for name, weight in now.items():
        if f"{kind}.{name}" not in tensors:
            found[f"{kind}.{name}"] = weight.detach().float().clone()
            continue
        moved = weight.float() - plain[name].float()
        found[f"{kind}.{name}"] = kept[name] + moved
        shares[name] = _share(refitted, plain[name].float(), weight.float()) if bool(moved.any()) else 1.0
    return found, shares


def without_moments(tensors: Mapping[str, Tensor]) -> Tensors:
    """The same parameters, of which an optimiser begins anew."""
    return {name: value for name, value in tensors.items() if name.partition(".")[0] in ("value", "buffer", "base")}


def _share(refitted: Refitted, before: Tensor, after: Tensor) -> float:
    """What is kept of the first moment of a matrix that went from `before` to `after`."""
    if refitted == "scale":
        return max(0.0, float(torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)))
    return 1.0 if refitted == "keep" else 0.0


def _cut(tensors: Mapping[str, Tensor], kind: str, model: Any, plan: Plan) -> Tensors:
    """What a plan keeps of one number per parameter, such as their first moments."""
    known = {name: tensors.get(f"{kind}.{name}") for name, _ in model.named_parameters()}
    twin = copy.deepcopy(  # of the model, but for its parameters
        model,
        {
            id(param): nn.Parameter(
                torch.zeros_like(param, dtype=torch.float32)
                if (value := known[name]) is None
                else value.to(param.device),
                requires_grad=False,
            )
            for name, param in model.named_parameters()
        },
    )
    return {name: value.detach() for name, value in _inside(prune(twin, plan)).items()}


def _inside(model: Any) -> Tensors:
    """The parameters of the blocks, by their full names."""
    start = f"{family_of(model.config).blocks_at}."
    return {name: value for name, value in model.named_parameters() if name.startswith(start)}
