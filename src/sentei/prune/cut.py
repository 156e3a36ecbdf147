"""`cut`: removes what a plan removes, and fits what stays, block by block.

Two streams of hidden states run side by side: the dense model's and the cut model's. Each part is fitted for the inputs
that the already cut parts before it now feed it, against what the dense part does on the dense inputs, so errors do not
pile up. Cost: one dense pass, one pass of the cut model, and one Gram matrix per part; a part with low-rank matrices
before its output matrix costs a second one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sentei.algebra.lowrank import factors, pivot
from sentei.data.calibration import as_windows
from sentei.data.windows import Windows
from sentei.errors import SenteiError
from sentei.families import family_of
from sentei.families.base import Family
from sentei.families.modeling_sentei import LowRankLinear
from sentei.families.parts import MATRICES_OF, PARTS
from sentei.families.streamed import streamed_blocks
from sentei.families.surgery import fill, head_rows, skeleton, sliced
from sentei.measure.stream import cross, embed, gram, tap
from sentei.memory import check_memory
from sentei.models.identity import check_same
from sentei.models.load import as_loaded
from sentei.plan import BlockPlan, ModelShape, Plan
from sentei.progress import Progress, shown
from sentei.prune.compensation import COMPENSATIONS, Compensation, Fit


def cut(
    model: Any,
    plan: Plan,
    data: Any,
    *,
    tokens: int = 65536,
    window: int = 512,
    tokenizer: Any = None,
    memory: int | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
) -> PreTrainedModel:
    """Cuts `model` by `plan`; the model itself stays as it is.

    Args:
        model: a `Loaded` or in-memory model: the one that the plan was made for.
        plan: what to keep and how to compensate.
        data: calibration data: token windows (which may weigh tokens), texts, or a source. Not read where the plan
            neither compensates nor refines.
        tokens: at most this many calibration tokens are read.
        window: tokens per window.
        tokenizer: needed for texts where `model` carries none.
        memory: bytes that the process may use; refused before the work where it needs more.
        work: a directory where the blocks of a cut streamed model are, which is streamed too; it has to stay as long
            as that model is used.
        progress: told about every block.

    Raises:
        InputError: the plan is for another model, the data cannot be used, or the memory does not suffice.
    """
    loaded = as_loaded(model, tokenizer)
    dense, family = loaded.model, family_of(loaded.model.config)
    check_same(loaded, plan.model, plan.dense, "the plan")
    pruned = skeleton(dense, plan.shape(), work if streamed_blocks(dense) is not None else None)
    compensation = COMPENSATIONS[plan.compensation]
    windows = None
    if compensation is not COMPENSATIONS["none"] or plan.refine != "none":
        windows = as_windows(data, loaded.tokenizer, window=window, tokens=tokens)
    progress = shown(progress)
    needed = _memory_needed(plan, windows, dense.dtype.itemsize)
    if windows is not None or memory is not None:
        read = "" if windows is None else f"{windows.tokens:,} tokens, "
        progress.say(f"  cut: {read}{needed / 1e9:.1f} GB of memory beside the two models")
    check_memory(memory, needed, "cut", "allow more" if windows is None else "read fewer --tokens")
    with torch.no_grad(), progress.stage("cut", total=len(plan.blocks), unit="blocks") as bar:
        streams = None
        if windows is not None and compensation is not COMPENSATIONS["none"]:
            entered = embed(family, dense, windows)
            streams = _Streams(windows, entered, entered.clone())
        for index, block in enumerate(plan.blocks):
            new, old = family.block(pruned, index), family.block(dense, index)
            fill(family, new, old, block, plan.dense)
            if streams is not None and family.is_parallel(dense.config):
                streams.enter_parallel()
            for part in PARTS:
                if streams is None:
                    _truncate(family, new, old, plan, index, part)
                else:
                    _Part(family, dense, pruned, plan, index, part).run(streams, compensation)
            _check_finite(new, f"block {index}: ")
            bar.advance()
    if plan.refine == "block":
        from sentei.prune.refine import refine_blocks

        assert windows is not None  # wanted above
        refine_blocks(dense, pruned, windows, progress=progress)
        for index in range(len(plan.blocks)):
            _check_finite(family.block(pruned, index), f"block {index}: ")
    return pruned


def cut_bytes(dense: ModelShape, tokens: int, itemsize: int) -> int:
    """Bytes that a cut takes beside the models: of copying the largest block, or of fitting its largest part.

    Copying: two blocks, and the file of one, which is mapped while it is read. Fitting: both streams, the inputs of a
    part, weights of two blocks in fp32, sums of both shares, and the fp64 system.

    Args:
        dense: the model that is cut.
        tokens: that are read to fit; 0: nothing is fitted.
        itemsize: of the dtype that is computed in.
    """
    sizes = [(dense.attention_params(block) + dense.ffn_params(block)) for block in dense.blocks]
    if not tokens:
        return 3 * max(sizes) * itemsize
    widths = [max(b.ffn, b.kv_groups * b.heads_per_group * dense.head_dim) for b in dense.blocks]
    states = tokens * (2 * dense.hidden + max(widths)) * itemsize
    fits = [2 * 4 * size + n * (n + dense.hidden) * (2 * 4 + 4 * 8) for n, size in zip(widths, sizes, strict=True)]
    return states + max(fits)


def _memory_needed(plan: Plan, windows: Windows | None, itemsize: int) -> int:
    needed = cut_bytes(plan.dense, 0 if windows is None else windows.ids.numel(), itemsize)
    if windows is None or plan.refine == "none":
        return needed
    from sentei.prune.refine import refine_bytes

    return max(needed, refine_bytes(plan, windows, itemsize))


def _truncate(family: Family, new: nn.Module, old: nn.Module, plan: Plan, index: int, part: str) -> None:
    """Low-rank matrices without data: the best product of the weights themselves."""
    block, dense = plan.blocks[index], family.linears(old, part)
    for name, linear in family.linears(new, part).items():
        if name in block.ranks:
            heads_per_group = plan.dense.blocks[index].heads_per_group
            weight, _ = sliced(dense[name], name, block, heads_per_group, plan.dense.head_dim)
            found = factors(weight, torch.eye(weight.shape[1], device=weight.device))
            set_product(linear, found.u[:, : block.ranks[name]], found.v[: block.ranks[name]])


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


class _Streams:
    """Hidden states `[windows, length, hidden]` of the dense and of the cut model, and whether they differ yet.

    `dense_read`, `cut_read`: what parts read: the streams, or in parallel blocks what entered the block.
    """

    def __init__(self, windows: Windows, dense: Tensor, cut: Tensor) -> None:
        self.windows, self.dense, self.cut, self.differ = windows, dense, cut, False
        self.dense_read, self.cut_read = dense, cut

    def enter_parallel(self) -> None:
        """A block begins whose parts all read what enters it."""
        self.dense_read, self.cut_read = self.dense.clone(), self.cut.clone()


class _Part:
    """One attention or FFN part of both models."""

    def __init__(self, family: Family, dense: Any, pruned: Any, plan: Plan, index: int, part: str) -> None:
        self.family, self.part, self.head_dim, self.config = family, part, plan.dense.head_dim, dense.config
        self.heads_per_group = plan.dense.blocks[index].heads_per_group
        self.block: BlockPlan = plan.blocks[index]
        self.old_block, self.new_block = family.block(dense, index), family.block(pruned, index)
        self.old, self.new = _runner(family, dense, index, part), _runner(family, pruned, index, part)
        self.old_linears = family.linears(self.old_block, part)
        self.new_linears = family.linears(self.new_block, part)
        self.columns = self._columns(output_of=part)
        self.ranks = {name: rank for name, rank in self.block.ranks.items() if name in MATRICES_OF[part]}

    def _columns(self, output_of: str) -> Tensor:
        """Inputs of the part's output matrix that stay."""
        device = next(self.old_block.parameters()).device
        if output_of == "ffn":
            return torch.tensor(self.block.ffn, device=device)
        return head_rows(self.block, self.heads_per_group, self.head_dim, device)[0]

    def _sliced(self, name: str) -> Tensor:
        """What the plan keeps of a dense matrix."""
        return sliced(self.old_linears[name], name, self.block, self.heads_per_group, self.head_dim)[0]

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
        if not self.old_linears:
            return False
        sizes = [list(linears.values())[-1].in_features for linears in (self.old_linears, self.new_linears) if linears]
        return len(set(sizes)) != 1 or not self.new_linears or bool(self.ranks)

    def run(self, streams: _Streams, compensation: Compensation) -> None:
        """Runs both models through the part, fits the cut one's matrices, and moves both streams on."""
        if self.new is None or not (self.is_cut or streams.differ):
            self._pass_on(streams)
            return
        assert self.old is not None  # a part that stays was there
        *inner, output = self.new_linears
        if self.new_linears[output].bias is None:  # a part that loses nothing gets no bias: none is fitted either
            compensation = replace(compensation, bias=False)
        if any(name in self.ranks for name in inner):
            self._fit_inner([name for name in inner if name in self.ranks], streams)
        linear = self.new_linears[output]
        # Behind a norm nothing can be added to the stream on purpose: the part's own output is what is fitted.
        after = self.family.layout(self.part).after
        residual = 0.0 if after is not None else compensation.residual / self.family.factor(self.config)
        fit = Fit(compensation, self._sliced(output).float())
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
                x = dense_seen["output"].index_select(1, self.columns)
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
        streams.differ = True

    def _pass_on(self, streams: _Streams) -> None:
        """Nothing to fit: the part is gone, or nothing before it was cut."""
        for where in streams.windows.batches():
            if self.old is not None:
                streams.dense[where] += self._joins(self.old_block, self.old(streams.dense_read[where]))
            if not (self.is_cut or streams.differ):
                streams.cut[where] = streams.dense[where]
        streams.differ = streams.differ or self.is_cut

    def _fit_inner(self, names: list[str], streams: _Streams) -> None:
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


def _check_finite(block: nn.Module, where: str) -> None:
    for name, parameter in block.named_parameters():
        if not torch.isfinite(parameter).all():
            raise SenteiError(
                f"{where}{name} is not finite after the cut; use more calibration data or --dtype float32"
            )
