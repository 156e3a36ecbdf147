"""Adapters: which parameters `tune` trains. One file per adapter, registered here."""

from __future__ import annotations

from sentei.recover.tune.adapters.base import Adapter, Context
from sentei.registry import Registry

ADAPTERS: Registry[Adapter] = Registry(
    "adapter",
    {
        "lora+sparse": "sentei.recover.tune.adapters.lora_sparse:LORA_SPARSE",
        "lora": "sentei.recover.tune.adapters.lora:LORA",
        "rslora": "sentei.recover.tune.adapters.lora:RSLORA",
        "dora": "sentei.recover.tune.adapters.dora:DORA",
        "shira": "sentei.recover.tune.adapters.shira:SHIRA",
        "shira-gradient": "sentei.recover.tune.adapters.shira:SHIRA_GRADIENT",
        "full": "sentei.recover.tune.adapters.full:FULL",
    },
)

__all__ = ["ADAPTERS", "Adapter", "Context"]
