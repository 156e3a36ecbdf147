"""One part of both models: what a cut fits in it, and how the hidden states of both go through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sentei.algebra.lowrank import factors, pivot
from sentei.data.windows import Windows
from sentei.families.base import Family
from sentei.families.modeling_sentei import LowRankLinear
from sentei.families.parts import MATRICES_OF
from sentei.families.surgery import head_rows, sliced
from sentei.measure.stream import cross, gram, tap
from sentei.plan import BlockPlan, Plan
from sentei.prune.compensation import Compensation, Fit


def set_product(linear: nn.Module, u: Tensor, v: Tensor) -> None:
    """Puts `u` `[out, R]` times `v` `[R, in]` into a low-rank matrix, in the form that it stores."""
    assert isinstance(linear, LowRankLinear)  # the skeleton made it so where the plan has a rank
    if linear.pivoted:
        order, rows, mix = pivot(u, v)
        linear.order.copy_(order)
        linear.a.weight.copy_(rows)
        linear.b.weight.copy_(mix)
    else:
        linear.a.weight.copy_(v)
        linear.b.weight.copy_(u)


class Streams:
    """Hidden states `[windows, length, hidden]` of the dense and of the cut model, and whether they differ yet.

    `dense_read`, `cut_read`: what parts read: the streams, or in parallel blocks what entered the block.
    """

    def __init__(self, windows: Windows, dense: Tensor, cut: Tensor) -> None:
        self.windows, self.dense, self.cut, self.differ = windows, dense, cut, False
        self.dense_read, self.cut_read = dense, cut

    def enter_parallel(self) -> None:
        """A block begins whose parts all read what enters it."""
        self.dense_read, self.cut_read = self.dense.clone(), self.cut.clone()


class Part:
    """One attention or FFN part of both models."""

    def __init__(self, family: Family, dense: Any, pruned: Any, plan: Plan, index: int, part: str) -> None:
        self.family, self.part, self.head_dim, self.config = family, part, plan.dense.head_dim, dense.config
        self.heads_per_group = plan.dense.blocks[index].heads_per_group
        self.block: BlockPlan = plan.blocks[index]
        self.old_block, self.new_block = family.block(dense, index), family.block(pruned, index)
        self.old, self.new = _runner(family, dense, index, part), _runner(family, pruned, index, part)
        self.old_members, self.new_members = (family.members(b, part) for b in (self.old_block, self.new_block))
        self.ranks = {name: rank for name, rank in self.block.ranks.items() if name in MATRICES_OF[part]}

    @property
    def old_linears(self) -> dict[str, nn.Linear]:
        """The matrices of the dense part; empty where it was removed."""
        return self.old_members[0] if self.old_members else {}

    @property
    def new_linears(self) -> dict[str, nn.Linear]:
        """Those of the cut part."""
        return self.new_members[0] if self.new_members else {}

    @property
    def _columns(self) -> Tensor:
        """Inputs of the part's output matrix that stay."""
        device = next(self.old_block.parameters()).device
        if self.part == "ffn":
            return torch.tensor(self.block.ffn, device=device)
        return head_rows(self.block, self.heads_per_group, self.head_dim, device)[0]

    def _sliced(self, name: str) -> Tensor:
        """What the plan keeps of a dense matrix."""
        return sliced(self.old_linears[name], name, self.block, self.heads_per_group, self.head_dim)[0]

    def _residual(self, compensation: Compensation) -> float:
        """The share of the stream's error that is aimed at, in the unit of the part's output."""
        if self.family.layout(self.part).after is not None:
            return 0.0  # behind a norm nothing can be added to the stream on purpose
        return compensation.residual / self.family.factor(self.config)

    def _importance(self, output: Tensor, weight: Tensor | None) -> Tensor | None:
        """What each token's error counts, [tokens]; where a norm follows, an error is one of the normalised output."""
        if self.family.layout(self.part).after is None:
            return weight
        inverse = 1 / output.float().square().mean(-1).flatten().clamp_min(torch.finfo(torch.float32).tiny)
        return inverse if weight is None else inverse * weight

    def _joins(self, block: nn.Module, output: Tensor) -> Tensor:
        return self.family.joins(self.config, block, self.part, output)

    @property
    def is_cut(self) -> bool:
        """Whether anything of the part goes."""
        old, new = ([list(own.values())[-1].in_features for own in m] for m in (self.old_members, self.new_members))
        return old != new or bool(self.ranks)

    def run(self, streams: Streams, compensation: Compensation) -> None:
        """Runs both models through the part, fits the cut one's matrices, and moves both streams on."""
        if self.new is None or not (self.is_cut or streams.differ):
            self._pass_on(streams)
            return
        self._fit(streams, compensation)
        streams.differ = True

    def _fit(self, streams: Streams, compensation: Compensation) -> None:
        assert self.old is not None and self.new is not None  # a part that stays was there
        *inner, output = self.new_linears
        if self.new_linears[output].bias is None:  # a part that loses nothing gets no bias: none is fitted either
            compensation = replace(compensation, bias=False)
        if any(name in self.ranks for name in inner):
            self._fit_inner([name for name in inner if name in self.ranks], streams)
        linear = self.new_linears[output]
        residual = self._residual(compensation)
        fit = Fit(compensation, self._sliced(output).float(), squares=compensation.weights or output in self.ranks)
        inputs = torch.empty(
            *streams.cut.shape[:2], linear.in_features, dtype=streams.cut.dtype, device=streams.cut.device
        )
        for where in streams.windows.batches():
            before = streams.dense[where]
            with tap(output=self.old_linears[output]) as dense_seen:
                wanted = self.old(streams.dense_read[where])
            with tap(output=linear) as seen:
                self.new(streams.cut_read[where])
            x = seen["output"]
            inputs[where] = x.view(inputs[where].shape)
            if not compensation.weights:  # the mean of what goes, in the dense model: see `BIAS`
                x = dense_seen["output"].index_select(1, self._columns)
            target = wanted.float() + residual * (before.float() - streams.cut[where].float())
            if linear.bias is not None:
                target = target - linear.bias.float()
            weight = self._importance(wanted, streams.windows.weight(where, x.device))
            fit.add(x, target.flatten(0, 1), weight)
            streams.dense[where] = before + self._joins(self.old_block, wanted)
        found = fit.solve(self.ranks.get(output))
        if found.product is not None:
            set_product(linear, *found.product)
        else:
            linear.weight.copy_(found.weight)
        if found.bias is not None:
            assert linear.bias is not None  # else none is fitted
            linear.bias.add_(found.bias)
        for where in streams.windows.batches():
            streams.cut[where] += self._joins(self.new_block, linear(inputs[where]))

    def _pass_on(self, streams: Streams) -> None:
        """Nothing to fit: the part is gone, or nothing before it was cut."""
        for where in streams.windows.batches():
            if self.old is not None:
                streams.dense[where] += self._joins(self.old_block, self.old(streams.dense_read[where]))
            if not (self.is_cut or streams.differ):
                streams.cut[where] = streams.dense[where]
        streams.differ = streams.differ or self.is_cut

    def _fit_inner(self, names: list[str], streams: Streams) -> None:
        """Low-rank matrices before the output matrix: the dense matrix's outputs from the cut model's inputs."""
        weights = {name: self._sliced(name) for name in names}
        grams: Tensor | float = 0.0
        crosses: dict[str, Tensor] = {}
        for where in streams.windows.batches():
            x = self.family.reads(self.new_block, self.part, streams.cut_read[where]).flatten(0, 1)
            weight = streams.windows.weight(where, x.device)
            grams = grams + gram(x, weight)
            if streams.differ:
                dense_x = self.family.reads(self.old_block, self.part, streams.dense_read[where]).flatten(0, 1)
                for name, matrix in weights.items():
                    crosses[name] = crosses.get(name, 0) + cross(x, dense_x @ matrix.T, weight).T
        for name, matrix in weights.items():
            found = factors(matrix, torch.as_tensor(grams), target_cross=crosses.get(name))
            set_product(self.new_linears[name], found.u[:, : self.ranks[name]], found.v[: self.ranks[name]])


def _runner(family: Family, model: nn.Module, index: int, part: str) -> Callable[[Tensor], Tensor] | None:
    """The output of the part's last matrix as a function of what the part reads; None where it was removed."""
    if family.part(family.block(model, index), part) is None:
        return None
    return lambda stream: family.run_part(model, index, part, stream)
