"""DoRA, by peft's own layers: a low-rank direction and a length per output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model

from sentei.recover.tune.adapters.base import Adapter, Context, linears, uniform_rank
from sentei.recover.tune.adapters.lora import SCALE

if TYPE_CHECKING:
    from peft import PeftModel


def _dora(model: Any, budget: int, context: Context) -> PeftModel:
    modules = linears(model)
    lengths = sum(m.out_features for m in modules.values())
    rank = uniform_rank(modules, budget - lengths)
    config = LoraConfig(
        r=rank, lora_alpha=SCALE * rank, use_dora=True, target_modules=sorted(modules), task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        return get_peft_model(model, config)


DORA = Adapter("dora", 1e-3, _dora, "LoRA on directions, and a length per output (DoRA, arXiv 2402.09353; peft's own)")
