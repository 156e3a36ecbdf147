"""SHiRA: sparse entries only, the same density in every linear (arXiv 2406.13175), by our own layer at rank 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from sentei.errors import InputError
from sentei.recover.tune.adapters.base import Adapter, Context, linears
from sentei.recover.tune.adapters.layer import attach
from sentei.recover.tune.allocate import Share, matrix

if TYPE_CHECKING:
    from peft import PeftModel


def densities(modules: dict[str, nn.Linear], budget: int) -> dict[str, int]:
    """Entries per linear, `budget` in all, as near to one density as whole numbers allow.

    Raises:
        InputError: a budget of more than all weights.
    """
    total = sum(m.weight.numel() for m in modules.values())
    if not 1 <= budget <= total:
        raise InputError(f"a budget of {budget:,} sparse entries; expected 1 to {total:,}, all weights of the blocks")
    counts, seen, spent = {}, 0, 0
    for name, module in modules.items():
        seen += module.weight.numel()
        counts[name] = budget * seen // total - spent  # rounding is carried on, never lost
        spent += counts[name]
    return counts


def _attach(model: Any, budget: int, seed: int, choose: Callable[[str, nn.Linear, int], Tensor]) -> PeftModel:
    modules = linears(model)
    counts = {name: k for name, k in densities(modules, budget).items() if k}
    shares = {name: Share(0, choose(name, modules[name], k).sort().values) for name, k in counts.items()}
    return attach(model, LoraConfig(task_type="CAUSAL_LM"), shares, seed=seed)


def _random(model: Any, budget: int, context: Context) -> PeftModel:
    generator = torch.Generator().manual_seed(context.seed)

    def choose(_: str, module: nn.Linear, k: int) -> Tensor:
        return torch.randperm(module.weight.numel(), generator=generator)[:k]

    return _attach(model, budget, context.seed, choose)


def _gradient(model: Any, budget: int, context: Context) -> PeftModel:
    impact = context.impact()

    def choose(name: str, _: nn.Linear, k: int) -> Tensor:
        return matrix(impact, name, context.criterion).abs().flatten().topk(k).indices.cpu()

    return _attach(model, budget, context.seed, choose)


SHIRA = Adapter("shira", 2e-3, _random, "random entries, one density (SHiRA, arXiv 2406.13175)", sparse=True)
SHIRA_GRADIENT = Adapter(
    "shira-gradient", 1e-3, _gradient, "entries of largest gradient, one density (SHiRA's Grad)", sparse=True
)
