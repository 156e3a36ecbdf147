"""Full: every parameter of the blocks is trained; embeddings, head and final norm are not."""

from __future__ import annotations

from typing import Any

from torch import nn

from sentei.families import family_of
from sentei.recover.tune.adapters.base import Adapter, Context


def _full(model: Any, _budget: int, _context: Context) -> nn.Module:
    model.requires_grad_(False)
    family_of(model.config).blocks(model).requires_grad_(True)
    return model


FULL = Adapter(
    "full", 2e-5, _full, "all parameters of the blocks, in the model's own dtype, whatever the budget", budgeted=False
)
