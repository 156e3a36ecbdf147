"""What the tests of adapters share: pruned tiny models, a loss, gradients of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.recover.tune.adapters import ADAPTERS, Context
from sentei.recover.tune.adapters.base import linears
from sentei.recover.tune.impact import measure_impact
from tiny import make_plan, random_blocks, tiny_model

IDS = torch.randint(3, 128, (4, 12), generator=torch.Generator().manual_seed(1))


def pruned(variant="llama", dtype=torch.float32, seed=3):
    """Blocks of different sizes, some parts skipped; the same at every call."""
    model = tiny_model(variant)
    blocks = random_blocks(family_of(model.config).shape(model.config), seed)
    return prune(model, make_plan(model, blocks)).to(dtype)


def loss(model, ids):
    logits = model(ids).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def impact_of(model, **options):
    return measure_impact(model, [IDS[:2], IDS[2:]], loss, list(linears(model)), **options)


def wrapped(name, model, budget=500, seed=0):
    return ADAPTERS[name].wrap(model, budget, Context(lambda: impact_of(model), seed))


def train(model, steps=5, lr=1e-2):
    """A few steps of Adam on the trainable parameters; the loss before each."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model, IDS)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses
