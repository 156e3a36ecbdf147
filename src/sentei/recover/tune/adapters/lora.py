"""LoRA and rsLoRA: the same rank for every linear of the blocks, as effective weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import LoraConfig

from sentei.recover.tune.adapters.base import Adapter, Context, linears, uniform_rank
from sentei.recover.tune.adapters.layer import attach
from sentei.recover.tune.allocate import Share

if TYPE_CHECKING:
    from peft import PeftModel

SCALE = 2  # alpha / r of LoRA, whatever the rank
RS_ALPHA = 16  # rsLoRA: alpha / √r; 5.7 at rank 8


def _lora(model: Any, budget: int, context: Context) -> PeftModel:
    modules = linears(model)
    rank = uniform_rank(modules, budget)
    config = LoraConfig(r=rank, lora_alpha=SCALE * rank, task_type="CAUSAL_LM")
    return attach(model, config, {name: Share(rank) for name in modules}, seed=context.seed)


def _rslora(model: Any, budget: int, context: Context) -> PeftModel:
    modules = linears(model)
    rank = uniform_rank(modules, budget)
    config = LoraConfig(r=rank, lora_alpha=RS_ALPHA, use_rslora=True, task_type="CAUSAL_LM")
    return attach(model, config, {name: Share(rank) for name in modules}, seed=context.seed)


LORA = Adapter("lora", 2e-3, _lora, "low rank on every linear, scale 2 (LoRA, arXiv 2106.09685)")
RSLORA = Adapter("rslora", 1e-3, _rslora, "LoRA with scale 16 / √r (rsLoRA, arXiv 2312.03732)")
