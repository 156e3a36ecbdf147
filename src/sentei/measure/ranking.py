"""From a score to removal curves: what each number of removed units costs, and which units those are.

An FFN part gives one curve over channels. An attention part gives options, pairs of (KV groups, query heads per group):
KV groups go whole, with their own query heads; query heads go one from every group, so that shapes stay regular (GQA).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from sentei.measure.curves import AttentionOption, BlockCurves
from sentei.measure.scores import SCORES, Remover, Score
from sentei.measure.scores.base import Additive
from sentei.measure.statistics import BlockStats, PartStats
from sentei.plan import BlockShape, ModelShape


def rank_block(stats: BlockStats, shape: ModelShape, index: int, score: Score, seed: int) -> BlockCurves:
    """Curves of one block, with losses in the score's own unit (`sentei.prune.weighing` makes blocks comparable)."""
    block = shape.blocks[index]
    generator = torch.Generator().manual_seed(seed * 100_003 + index)
    order, losses = rank_ffn(stats, score, generator)
    options = rank_attention(stats, block, shape.head_dim, score, generator)
    return BlockCurves(tuple(options), tuple(order), tuple(losses))


def gram_scores(*, graded: bool) -> list[Score]:
    """The scores whose curves `measure` makes, since they need what it does not keep."""
    return [score for score in SCORES.values() if score.needs_gram and (graded or not score.needs_gradients)]


def rank_measured(stats: BlockStats, shape: ModelShape, index: int, score: Score) -> None:
    """Fills a block's curves of a score, and what each input costs alone, while its matrices are in memory."""
    begun: dict[int, Remover] = {}  # a remover that nothing was removed from serves both

    def start(part: PartStats, generator: torch.Generator) -> Remover:
        return begun.pop(id(part), None) or _start(score, part, generator)

    for part in (stats.attention, stats.ffn):
        if part is not None:
            begun[id(part)] = _start(score, part, torch.Generator())
            inputs = torch.arange(part.mean.numel(), device=part.mean.device)
            part.alone[score.name] = begun[id(part)].losses(inputs[:, None])
    stats.curves[score.name] = rank_block(stats, shape, index, replace(score, start=start), seed=0)


def _start(score: Score, part: PartStats, generator: torch.Generator) -> Remover:
    if not part.members:
        return score.start(part, generator)
    # An expert that no token was sent to has a Gram matrix of zeros, which nothing can be solved with; it is free.
    removers = [
        score.start(member, generator) if member.input_energy.any() else Additive(torch.zeros_like(member.mean))
        for member in part.members
    ]
    return SideBySide(removers, part.members)


class SideBySide:
    """A remover of a part with experts, whose inputs are those of all of them: what one loses is nothing to others."""

    def __init__(self, removers: list[Remover], members: list[PartStats]) -> None:
        self.removers = removers
        self.starts = [0, *accumulate(member.mean.numel() for member in members)]

    def losses(self, units: Tensor) -> Tensor:
        """As of `Remover`; each unit is of one expert."""
        found = torch.zeros(len(units), device=units.device)
        for remover, start, end in zip(self.removers, self.starts, self.starts[1:], strict=False):
            own = (start <= units[:, 0]) & (units[:, 0] < end)
            if own.any():
                found[own] = remover.losses(units[own] - start).to(found)
        return found

    def remove(self, units: Tensor) -> float:
        """As of `Remover`; each unit is of one expert."""
        total = 0.0
        for remover, start, end in zip(self.removers, self.starts, self.starts[1:], strict=False):
            own = (start <= units[:, 0]) & (units[:, 0] < end)
            total += remover.remove(units[own] - start) if own.any() else 0.0
        return total

    def order(self) -> tuple[Tensor, Tensor]:
        """As of `Remover`: the orders of all experts, merged so that the cheapest next one goes first."""
        each = [remover.order() for remover in self.removers]
        order = torch.cat([own + start for (own, _), start in zip(each, self.starts, strict=False)])
        losses = torch.cat([own for _, own in each])
        dearest = torch.cat([own.cummax(0).values for _, own in each])  # none goes before what goes before it there
        merged = dearest.argsort(stable=True)
        return order[merged], losses[merged]


def rank_ffn(stats: BlockStats, score: Score, generator: torch.Generator) -> tuple[list[int], list[float]]:
    """Order of removal of the channels and the loss after each."""
    if stats.ffn is None:
        return [], [0.0]
    order, losses = score.start(stats.ffn, generator).order()
    return order.tolist(), [0.0, *losses.double().clamp_min(0).cumsum(0).tolist()]


def rank_attention(
    stats: BlockStats, block: BlockShape, head_dim: int, score: Score, generator: torch.Generator
) -> list[AttentionOption]:
    """Options for every count of query heads per group and of KV groups, the dense one first, none at all last."""
    groups, repeat = block.kv_groups, block.heads_per_group
    if stats.attention is None:
        return [AttentionOption((), (), 0.0)]
    columns = torch.arange(groups * repeat * head_dim).view(groups, repeat, head_dim)
    device = stats.attention.mean.device
    seed = int(torch.randint(2**31, (), generator=generator))
    whole = score.start(stats.attention, torch.Generator().manual_seed(seed))
    options: list[AttentionOption] = []
    for removed_heads in range(repeat):
        remover = copy.deepcopy(whole)
        kept = [list(range(repeat)) for _ in range(groups)]
        loss = 0.0
        for _ in range(removed_heads):
            worst = []
            for group, heads in enumerate(kept):
                cheapest = int(remover.losses(columns[group, heads].to(device)).argmin())
                worst.append(columns[group, heads.pop(cheapest)])
            loss += remover.remove(torch.stack(worst).to(device))
        alive = list(range(groups))
        while True:
            if alive or removed_heads == 0:
                options.append(AttentionOption(tuple(alive), tuple(tuple(kept[g]) for g in alive), loss))
            if not alive:
                break
            units = torch.stack([columns[group, kept[group]].flatten() for group in alive]).to(device)
            cheapest = int(remover.losses(units).argmin())
            loss += max(remover.remove(units[cheapest][None]), 0.0)
            alive.pop(cheapest)
    return options


def attention_columns(kv_groups: list[int], query_heads: list[list[int]], block: BlockShape, head_dim: int) -> Tensor:
    """Inputs of o_proj that a block plan keeps: `[kept]`, ascending."""
    columns = torch.arange(block.kv_groups * block.heads_per_group * head_dim)
    columns = columns.view(block.kv_groups, block.heads_per_group, head_dim)
    picked = [columns[group, heads].flatten() for group, heads in zip(kv_groups, query_heads, strict=True)]
    return torch.cat(picked) if picked else columns.new_empty(0)
