"""From a score to removal curves: what each number of removed units costs, and which units those are.

An FFN part gives one curve over channels. An attention part gives options, pairs of (KV groups, query heads per group):
KV groups go whole, with their own query heads; query heads go one from every group, so that shapes stay regular (GQA).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from sentei.measure.profile import BlockStats
from sentei.measure.scores.base import Score
from sentei.plan import BlockShape, ModelShape


@dataclass(frozen=True)
class AttentionOption:
    """One way to thin an attention part. `query_heads`: indices within each kept group. `loss`: increase over dense."""

    kv_groups: tuple[int, ...]
    query_heads: tuple[tuple[int, ...], ...]
    loss: float

    @property
    def heads_per_group(self) -> int:
        """Query heads in each kept group."""
        return len(self.query_heads[0]) if self.query_heads else 0


@dataclass(frozen=True)
class BlockCurves:
    """All that an allocation may choose from in one block.

    Attributes:
        attention: options, the dense one first.
        ffn_order: channels in the order of removal.
        ffn_loss: `ffn_loss[k]` is the loss increase after the first k channels of the order went; k = 0 … all.
    """

    attention: tuple[AttentionOption, ...]
    ffn_order: tuple[int, ...]
    ffn_loss: tuple[float, ...]


def rank_block(stats: BlockStats, shape: ModelShape, index: int, score: Score, seed: int) -> BlockCurves:
    """Curves of one block, with losses in the score's own unit (`sentei.prune.weighing` makes blocks comparable)."""
    block = shape.blocks[index]
    generator = torch.Generator().manual_seed(seed * 100_003 + index)
    order, losses = rank_ffn(stats, score, generator)
    options = rank_attention(stats, block, shape.head_dim, score, generator)
    return BlockCurves(tuple(options), tuple(order), tuple(losses))


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
    columns = torch.arange(groups * repeat * head_dim, device=stats.attention.mean.device)
    columns = columns.view(groups, repeat, head_dim)
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
                cheapest = int(remover.losses(columns[group, heads]).argmin())
                worst.append(columns[group, heads.pop(cheapest)])
            loss += remover.remove(torch.stack(worst))
        alive = list(range(groups))
        while True:
            if alive or removed_heads == 0:
                options.append(AttentionOption(tuple(alive), tuple(tuple(kept[g]) for g in alive), loss))
            if not alive:
                break
            units = torch.stack([columns[group, kept[group]].flatten() for group in alive])
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
