"""How the losses of different parts and blocks are made comparable, so that one knapsack can choose among them.

- `none`: what they are.
- `gradient`: squared output errors times ½ the mean squared gradient at the output, which is about nats. Losses in nats
  stay what they are, and so do scores that are no output error.
- `energy`: relative to the energy of the residual stream behind the part; no gradients are read.
- `share`: relative to the loss of the whole part.
- `standardise`: every input's score minus the part's mean, over its standard deviation (FLAP, arXiv 2312.11983).

FLAP sorts the standardised scores of all channels and heads and removes the lowest until enough parameters went. That
is a knapsack whose loss per parameter is the standardised score. A constant per parameter changes the price of a
parameter and not the choice, so all are shifted to be positive.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sentei.errors import InputError
from sentei.measure.curves import AttentionOption, BlockCurves
from sentei.measure.profile import PartStats, Profile
from sentei.measure.scores import Score
from sentei.plan import ModelShape, Weigh


def weighed(curves: Sequence[BlockCurves], profile: Profile, score: Score, how: Weigh, seed: int) -> list[BlockCurves]:
    """The curves of all blocks with comparable losses.

    Raises:
        InputError: gradients are wanted and the profile has none.
    """
    if how == "standardise":
        return _standardised(curves, profile, score, seed)
    found = []
    for block, stats in zip(curves, profile.blocks, strict=True):
        gone = next((option.loss for option in block.attention if not option.kv_groups), 0.0)
        attention = _factor(stats.attention, gone, score, how)
        ffn = _factor(stats.ffn, block.ffn_loss[-1], score, how)
        options = tuple(AttentionOption(o.kv_groups, o.query_heads, o.loss * attention) for o in block.attention)
        found.append(BlockCurves(options, block.ffn_order, tuple(loss * ffn for loss in block.ffn_loss)))
    return found


def _factor(part: PartStats | None, whole: float, score: Score, how: Weigh) -> float:
    """What the losses of a part are multiplied by. `whole`: the loss of the whole part."""
    if part is None or how == "none":
        return 1.0
    if how == "energy":
        return 1.0 / max(part.energy, 1e-30)
    if how == "share":
        return 1.0 / max(whole, 1e-30)
    if score.scale != "output":
        return 1.0
    if part.grad_energy is None:
        raise InputError(
            "parts are compared by gradients here (--weigh gradient), of which the profile has none; "
            "measure again with --gradient-tokens 8192, or use --weigh energy"
        )
    return 0.5 * part.grad_energy


def _standardised(curves: Sequence[BlockCurves], profile: Profile, score: Score, seed: int) -> list[BlockCurves]:
    values = [
        {name: _standard(part, score, seed) for name, part in (("attention", b.attention), ("ffn", b.ffn)) if part}
        for b in profile.blocks
    ]
    least = min((v.min().item() for parts in values for v in parts.values()), default=0.0)
    found = []
    for i, (block, parts) in enumerate(zip(curves, values, strict=True)):
        options, losses = block.attention, torch.zeros(1)
        if "attention" in parts:
            options = _weighed_options(options, parts["attention"] - least, profile.shape, i)
        if "ffn" in parts:
            inner = 2 if profile.shape.gated else 1
            price = profile.shape.mlp_bias * inner + (inner + 1) * profile.shape.hidden  # parameters of a channel
            losses = torch.cat([losses, ((parts["ffn"] - least)[list(block.ffn_order)] * price).cumsum(0)])
        found.append(BlockCurves(options, block.ffn_order, tuple(losses.tolist())))
    return found


def _standard(part: PartStats, score: Score, seed: int) -> Tensor:
    """The standardised score of every input of the row-pruned matrix, alone: `[n]`."""
    found = part.alone.get(score.name)
    if found is None:
        inputs = torch.arange(part.mean.numel())[:, None]
        found = score.start(part, torch.Generator().manual_seed(seed)).losses(inputs)
    scores = found.double()
    return (scores - scores.mean()) / scores.std().clamp_min(1e-30)


def _weighed_options(
    options: tuple[AttentionOption, ...], values: Tensor, shape: ModelShape, index: int
) -> tuple[AttentionOption, ...]:
    """Options whose loss is the mean value of the query heads that go, times the parameters that go with them."""
    full = shape.blocks[index]
    heads = values.view(full.kv_groups, full.heads_per_group, shape.head_dim).mean(2)
    dense = shape.attention_params(full)
    found = []
    for option in options:
        gone = torch.ones_like(heads, dtype=torch.bool)
        for group, kept in zip(option.kv_groups, option.query_heads, strict=True):
            gone[group, list(kept)] = False
        size = {"kv_groups": len(option.kv_groups), "heads_per_group": option.heads_per_group}
        saved = dense - shape.attention_params(full.model_copy(update=size))
        loss = heads[gone].mean().item() * saved if gone.any() else 0.0
        found.append(AttentionOption(option.kv_groups, option.query_heads, loss))
    return tuple(found)
