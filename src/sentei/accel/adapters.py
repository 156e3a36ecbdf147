"""Adapters of effective weights through a cut: their factors and sparse entries lose what their matrix loses.

The weight that counts is `W + scale · B A + S`. A cut that keeps rows R and columns C of it keeps `B[R]`, `A[:, C]` and
the entries of S in R × C, and the same of their moments. What a refit changed goes into W, so that the sum is what the
cut made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from sentei.accel.moments import Tensors, carry_weights, weights_of, without_moments
from sentei.accel.settings import Settings
from sentei.families import family_of
from sentei.families.parts import PARTS
from sentei.families.surgery import heads_of, kept_indices
from sentei.plan import Plan
from sentei.recover.tune.adapters import ADAPTERS, Context
from sentei.recover.tune.adapters.base import linears
from sentei.recover.tune.adapters.files import NAME, merge
from sentei.recover.tune.adapters.layer import SparseLoraLinear, attach
from sentei.recover.tune.allocate import Share
from sentei.recover.tune.impact import Impact
from sentei.recover.tune.tune import parameter_budget

SUITABLE = ("lora+sparse", "lora", "rslora", "shira", "shira-gradient")  # all but DoRA are effective weights
PREFIX = "base_model.model."  # peft's, before the names of a plain model
MOMENTS = ("exp_avg", "exp_avg_sq")


class Adapted:
    """An adapter on the linears of the blocks; see `sentei.accel.trained.Trained`.

    Beside what a `Trainer` says, its state holds `base.NAME`, the weights of the blocks without it, and `scale`.

    Args:
        settings: name the adapter and its budget.
        impact: the gradients of a model's linears, for adapters that choose by them.
    """

    base = "base"

    def __init__(self, settings: Settings, impact: Callable[[Any], Impact]) -> None:
        self.settings, self.impact = settings, impact

    def start(self, model: Any) -> Tensors:
        """The adapter is chosen on the model after the first cut."""
        found = weights_of(model, "base")
        params = sum(linear.weight.numel() for linear in linears(model).values())
        budget = parameter_budget(self.settings.budget_params, params)
        context = Context(lambda: self.impact(model), self.settings.seed)
        adapted: Any = ADAPTERS[self.settings.train].wrap(model, budget, context)
        found |= {f"value.{name}": p.detach().float() for name, p in adapted.named_parameters() if p.requires_grad}
        found |= {f"buffer.{name}": v for name, v in adapted.state_dict().items() if not v.is_floating_point()}
        scales = {layer.scaling[NAME] for layer in _layers(adapted).values() if NAME in layer.scaling}
        assert len(scales) <= 1, "of all modules alike"
        return found | {"scale": torch.tensor(float(next(iter(scales), 1.0)))}

    def wrap(self, model: Any, tensors: Mapping[str, Tensor]) -> Any:
        """See `Trained`."""
        shares = {}
        for name in linears(model):
            A, at = tensors.get(f"value.{PREFIX}{name}.lora_A.{NAME}.weight"), tensors.get(_indices(name))
            if A is not None or at is not None:
                empty = torch.zeros(0, dtype=torch.int64)
                shares[name] = Share(0 if A is None else len(A), empty if at is None else at.long())
        config = LoraConfig(r=1, lora_alpha=float(tensors["scale"]), task_type="CAUSAL_LM")
        return attach(model, config, shares, seed=0)

    def effective(self, model: Any, tensors: Mapping[str, Tensor]) -> Any:
        """See `Trained`."""
        adapted = self.wrap(model, tensors)
        with torch.no_grad():
            for name, param in adapted.named_parameters():
                if param.requires_grad:
                    param.copy_(tensors[f"value.{name}"])
        return self.plain(adapted)

    def state(self, adapted: Any, tensors: Tensors) -> Tensors:
        """See `Trained`."""
        scales = [layer.scaling[NAME] for layer in _layers(adapted).values() if NAME in layer.scaling]
        base = {
            name.replace(".base_layer.", "."): value
            for name, value in adapted.get_base_model().named_parameters()
            if ".lora_" not in name
        }
        start = f"{family_of(adapted.config).blocks_at}."
        found = {f"base.{name}": value.detach().float() for name, value in base.items() if name.startswith(start)}
        return tensors | found | {"scale": torch.tensor(float(scales[0] if scales else 1.0))}

    def plain(self, adapted: Any) -> Any:
        """See `Trained`."""
        return merge(adapted).requires_grad_(False).eval()

    @torch.no_grad()
    def cut(self, tensors: Tensors, before: Any, after: Any, plan: Plan) -> Tensors:
        """See `Trained`."""
        found, shares = carry_weights(tensors, "base", before, after, plan, self.settings.refitted)
        family, names = family_of(before.config), {module: name for name, module in before.named_modules()}
        for index, block in enumerate(family.blocks(before)):
            heads = heads_of(family, block)
            for part in PARTS:
                for matrix, linear in family.linears(block, part).items():
                    name = names[linear]
                    if f"{name}.weight" in shares:
                        kept = kept_indices(matrix, plan.blocks[index], heads, plan.dense.head_dim)
                        found |= _cut_one(tensors, name, kept, linear.weight.shape, shares[f"{name}.weight"])
        found["scale"] = tensors["scale"]
        return without_moments(found) if self.settings.moments == "restart" else found


def _cut_one(
    tensors: Mapping[str, Tensor],
    name: str,
    kept: tuple[Tensor | None, Tensor | None],
    shape: torch.Size,
    share: float,
) -> Tensors:
    """What stays of the adapter of one matrix [out, in]; `share`: of its first moments."""
    rows, columns = kept
    found: Tensors = {}

    def take(parameter: str, pick: Callable[[Tensor], Tensor]) -> None:
        if f"value.{parameter}" not in tensors:
            return
        found[f"value.{parameter}"] = pick(tensors[f"value.{parameter}"])
        if f"exp_avg.{parameter}" in tensors:
            first, second = (pick(tensors[f"{kind}.{parameter}"]) for kind in MOMENTS)
            found[f"exp_avg.{parameter}"], found[f"exp_avg_sq.{parameter}"] = first * share, second
            found[f"step.{parameter}"] = tensors[f"step.{parameter}"].clone()

    low = f"{PREFIX}{name}."
    take(f"{low}lora_A.{NAME}.weight", lambda t: t if columns is None else t.index_select(1, columns.to(t.device)))
    take(f"{low}lora_B.{NAME}.weight", lambda t: t if rows is None else t.index_select(0, rows.to(t.device)))
    where = tensors.get(_indices(name))
    if where is not None:
        row, column = where.long() // shape[1], where.long() % shape[1]
        row, stays = _renumbered(row, rows, shape[0])
        column, there = _renumbered(column, columns, shape[1])
        stays = stays & there
        if bool(stays.any()):
            width = shape[1] if columns is None else len(columns)
            take(f"{low}lora_S.{NAME}", lambda t: t[stays.to(t.device)])
            found[_indices(name)] = (row * width + column)[stays].to(where.dtype)
    return found


def _renumbered(at: Tensor, kept: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """New numbers of rows or columns, and whether they stay; `kept`: those that do, None: all `size`."""
    if kept is None:
        return at, torch.ones_like(at, dtype=torch.bool)
    new = torch.full((size,), -1, dtype=torch.int64)
    new[kept.cpu()] = torch.arange(len(kept))
    found = new.to(at.device)[at]
    return found, found >= 0


def _indices(name: str) -> str:
    return f"buffer.{PREFIX}{name}.lora_I.{NAME}"


def _layers(adapted: Any) -> dict[str, SparseLoraLinear]:
    return {name: module for name, module in adapted.named_modules() if isinstance(module, SparseLoraLinear)}
