"""Low rank + sparse: every linear gets the rank and the sparse entries that its own gradient asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import LoraConfig

from sentei.recover.tune.adapters.base import Adapter, Context
from sentei.recover.tune.adapters.layer import attach
from sentei.recover.tune.adapters.lora import SCALE
from sentei.recover.tune.allocate import allocate

if TYPE_CHECKING:
    from peft import PeftModel


def _lora_sparse(model: Any, budget: int, context: Context) -> PeftModel:
    shares = allocate(
        context.impact(), budget, criterion=context.criterion, rank_worth=context.rank_worth, seed=context.seed
    )
    config = LoraConfig(r=1, lora_alpha=SCALE, task_type="CAUSAL_LM")
    return attach(model, config, shares, seed=context.seed)


LORA_SPARSE = Adapter(
    "lora+sparse",
    1e-3,
    _lora_sparse,
    "rank and sparse entries per linear by gain per parameter, from one gradient pass",
    sparse=True,
)
