"""Cut tiny models, text for their tokenizer, and exports of them, for the tests of `sentei.ship`."""

from __future__ import annotations

from typing import Any

import torch

from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.models.load import Loaded, as_loaded
from sentei.plan import BlockPlan
from tiny import make_plan, random_blocks, tiny_model, tiny_tokenizer, whole

TEXTS = [" ".join(f"w{3 + (i * j + 7 * i) % 125}" for i in range(200)) for j in range(1, 20)]


def loaded(model: Any, name: str = "tiny") -> Loaded:
    return as_loaded(model, tiny_tokenizer(), name)


def shape_of(model: Any) -> Any:
    return family_of(model.config).shape(model.config)


def randomly_cut(variant: str, seed: int = 3, *, bias: bool = False, **sizes: Any) -> Loaded:
    """A tiny model with random sizes per block; `bias`: with random biases as a compensation adds them."""
    model = tiny_model(variant, **sizes)
    small = prune(model, make_plan(model, random_blocks(shape_of(model), seed), "bias" if bias else "none"))
    with torch.no_grad():
        for name, value in small.named_parameters():
            if name.endswith("_proj.bias"):
                value.normal_()
    return loaded(small)


def cut_like(model: Any, ffn: list[int], attention: list[bool] | None = None, compensation: str = "none") -> Loaded:
    """Keeps the first channels of each FFN, and the whole attention part or none."""
    blocks = [
        BlockPlan(
            kv_groups=full.kv_groups if attention is None or attention[i] else [],
            query_heads=full.query_heads if attention is None or attention[i] else [],
            ffn=full.ffn[: ffn[i]],
        )
        for i, full in enumerate(whole(shape_of(model)))
    ]
    return loaded(prune(model, make_plan(model, blocks, compensation)))
