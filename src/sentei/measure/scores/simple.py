"""Scores that look at one input at a time: random, magnitude, Taylor, Wanda-sp, FLAP."""

from __future__ import annotations

import torch

from sentei.errors import InputError
from sentei.measure.scores.base import Additive, Score
from sentei.measure.statistics import PartStats


def _random(part: PartStats, generator: torch.Generator) -> Additive:
    return Additive(torch.rand(part.mean.numel(), generator=generator).to(part.mean.device))


def _magnitude(part: PartStats, _: torch.Generator) -> Additive:
    return Additive(part.norm)


def _taylor(part: PartStats, _: torch.Generator) -> Additive:
    if part.taylor is None:
        raise InputError("score 'taylor' needs gradients; measure again with --gradient-tokens 8192")
    return Additive(part.taylor)


def _wanda_sp(part: PartStats, _: torch.Generator) -> Additive:
    return Additive(part.input_energy * part.weight_energy)


def _flap(part: PartStats, _: torch.Generator) -> Additive:
    variance = (part.input_energy - part.mean.square()).clamp_min(0)
    return Additive(variance * part.weight_energy)


RANDOM = Score("random", _random, "none", "a seeded draw: the floor for every comparison")
MAGNITUDE = Score(
    "magnitude", _magnitude, "none", "squared weights of the unit's rows and columns, no data (Li et al. 2017)"
)
TAYLOR = Score(
    "taylor",
    _taylor,
    "none",  # a sum of absolute first-order terms is a thousand times a loss: 80 "nats" at 20 % of SmolLM2-135M
    "first-order Taylor, sum of |weight · gradient| over the unit's group (LLM-Pruner, arXiv 2305.11627)",
    needs_gradients=True,
)
WANDA_SP = Score(
    "wanda-sp", _wanda_sp, "output", "input energy × squared output weights (Wanda, arXiv 2306.11695, per unit)"
)
FLAP = Score(
    "flap", _flap, "output", "input variance × squared output weights: what a bias cannot replace (arXiv 2312.11983)"
)


def _block_influence(_part: PartStats, _: torch.Generator) -> Additive:
    raise InputError("score 'block-influence' is about whole blocks; use it with --allocation blocks")


BLOCK_INFLUENCE = Score(
    "block-influence",
    _block_influence,
    "none",
    "one minus the cosine between a block's input and output (ShortGPT, arXiv 2403.03853)",
)
