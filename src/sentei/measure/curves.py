"""Removal curves: what each number of removed units of a block costs, and which units those are; as tensors, to store.

An FFN part has one curve over channels. An attention part has options, pairs of (KV groups, query heads per group).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sentei.plan import BlockShape


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


def packed_sizes(block: BlockShape) -> dict[str, tuple[int, ...]]:
    """Shapes of what `pack` makes for a block of these sizes."""
    groups, repeat = block.kv_groups, block.heads_per_group
    options = groups * repeat + 1 if groups else 1
    return {
        "channels": (block.ffn,),
        "ffn_loss": (block.ffn + 1,),
        "heads": (options, groups, repeat if groups else 0),
        "attention_loss": (options,),
    }


def pack(curves: BlockCurves, block: BlockShape) -> dict[str, Tensor]:
    """Curves as tensors; `heads`: which query heads each option keeps."""
    heads = torch.zeros(packed_sizes(block)["heads"], dtype=torch.uint8)
    for kept, option in zip(heads, curves.attention, strict=True):
        for group, members in zip(option.kv_groups, option.query_heads, strict=True):
            kept[group, list(members)] = 1
    return {
        "channels": torch.tensor(curves.ffn_order, dtype=torch.int32),
        "ffn_loss": torch.tensor(curves.ffn_loss, dtype=torch.float64),
        "heads": heads,
        "attention_loss": torch.tensor([option.loss for option in curves.attention], dtype=torch.float64),
    }


def unpack(stored: Mapping[str, Tensor]) -> BlockCurves:
    """The curves of tensors that `pack` made.

    Raises:
        ValueError: they are no curves: channels twice, options that keep unlike groups, losses that fall.
    """
    channels, ffn_loss, heads = stored["channels"], stored["ffn_loss"].double(), stored["heads"]
    if not torch.equal(channels.long().sort().values, torch.arange(len(channels))):
        raise ValueError("channels are not each there once")
    if (ffn_loss.diff() < 0).any():
        raise ValueError("losses fall along the order of removal")
    counts = heads.long().sum(2)
    if heads.numel() and (heads.max() > 1 or not heads[0].all() or heads.flatten(1).any(1).all()):
        raise ValueError("attention options are not from all heads to none")
    if heads.numel() and (counts * (counts != counts.amax(1, keepdim=True))).any():
        raise ValueError("an attention option does not keep as many heads of each group")
    options = []
    for kept, loss in zip(heads.tolist(), stored["attention_loss"].tolist(), strict=True):
        members = {group: tuple(i for i, here in enumerate(row) if here) for group, row in enumerate(kept)}
        groups = tuple(group for group, own in members.items() if own)
        options.append(AttentionOption(groups, tuple(members[group] for group in groups), loss))
    return BlockCurves(tuple(options), tuple(channels.tolist()), tuple(ffn_loss.tolist()))
