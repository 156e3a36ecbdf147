"""`refine: block`: a few hundred optimiser steps on each cut block against the dense block's output.

Closed-form compensation refits one matrix of a part; here every parameter of the block moves: norms, queries, keys,
gates, low-rank factors. As in `cut`, two streams of hidden states run side by side, and each block is trained on what
the already refined blocks before it put out, so errors do not pile up. No backward pass goes through more than one
block. Source: Puzzle's blockwise local distillation (arXiv 2411.19146), here one block after the other.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sentei.data.batches import shuffled
from sentei.data.windows import Windows
from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.base import Family
from sentei.measure.stream import embed, run_block
from sentei.memory import EXPERT_KERNELS
from sentei.plan import Plan
from sentei.progress import Bar, Progress, duration
from sentei.prune.compensation import HELD_OUT, RESIDUAL_SHARE

LOOKS = 8  # times that a block's held-out error is looked at
WARMUP = 0.1  # share of the steps in which the learning rate rises
BETAS = (0.9, 0.95)
OUTPUTS = ("o_proj", "down_proj")
Parameters = Literal["all", "output"]


@dataclass(frozen=True)
class Settings:
    """How blocks are refined.

    Attributes:
        steps: of Adam in each block.
        learning_rate: the highest: after a linear warm-up it falls to nothing along a cosine.
        parameters: "all" of the block, or only its "output" matrices (o_proj and down_proj).
        residual: the target is the dense block's output less `1 - residual` of the error that came in: the share of
            the stream's error that a block is asked to mend, as in `compensation`.
        batch_tokens: tokens of a step, padding included; at least one window.
        seed: of the order of the windows.
    """

    steps: int = 200
    learning_rate: float = 3e-4
    parameters: Parameters = "all"
    residual: float = RESIDUAL_SHARE
    batch_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("steps", self.steps >= 1, "at least 1"),
            ("learning_rate", self.learning_rate > 0, "more than 0"),
            ("parameters", self.parameters in ("all", "output"), "all or output"),
            ("residual", 0 <= self.residual <= 1, "0 to 1"),
            ("batch_tokens", self.batch_tokens >= 1, "at least 1"),
        ):
            if not good:
                raise InputError(f"refine: {name} is {getattr(self, name)}, expected {expected}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = max(1, round(WARMUP * self.steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


@dataclass(frozen=True)
class BlockRefined:
    """What refinement did to one block.

    Attributes:
        block: its index.
        before: held-out squared error, as a share of the energy that the dense block adds to the stream.
        after: the same afterwards.
        step: after which the best state was seen; 0: nothing was better, and the block was left as it was.
        seconds: that it took.
    """

    block: int
    before: float
    after: float
    step: int
    seconds: float


@dataclass
class Refined:
    """What `refine_blocks` did: its settings, and one entry for each block that was trained."""

    settings: Settings
    tokens: int
    blocks: list[BlockRefined] = field(default_factory=list)
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


def refine_bytes(plan: Plan, windows: Windows, itemsize: int, settings: Settings | None = None) -> int:
    """Memory of `refine_blocks` beside the models: three streams, and the largest block while it is trained.

    Of that block: the parameters, gradients and both moments in fp32, two copies in its own dtype and the dense block,
    and what a step keeps for its backward pass: all that linears and activations put out, in fp32.
    """
    settings, shape = settings or Settings(), plan.shape()
    size = max(shape.attention_params(block) + shape.ffn_params(block) for block in shape.blocks)
    inner = [shape.top_k * max(b.experts) if b.experts else b.ffn for b in shape.blocks]
    heads = [b.kv_groups * b.heads_per_group * shape.head_dim for b in shape.blocks]
    width = max(4 * (ffn + queries) for ffn, queries in zip(inner, heads, strict=True))
    kernels = EXPERT_KERNELS if any(b.experts for b in shape.blocks) else 0
    tokens = max(settings.batch_tokens, windows.ids.shape[1])
    streams = 3 * windows.ids.numel() * shape.hidden * itemsize
    dense = max(plan.dense.attention_params(block) + plan.dense.ffn_params(block) for block in plan.dense.blocks)
    trained = size * (4 * 4 + 2 * itemsize) + 2 * dense * itemsize + tokens * 4 * (width + 8 * shape.hidden)
    return streams + trained + kernels


def refine_blocks(
    dense: Any, pruned: Any, windows: Windows, settings: Settings | None = None, *, progress: Progress | None = None
) -> Refined:
    """Trains the blocks of `pruned`, in place and in order, to put out what those of `dense` put out.

    Every eighth window is held out and judges: a block ends in the best state it was seen in, and is left as it was
    where the held-out error never falls. A block that still is the dense one, on the dense inputs, is not trained.

    Args:
        dense: the model that `pruned` was cut from; it stays as it is.
        pruned: as many blocks; it is changed in place. Each is trained in fp32, and judged in its own dtype.
        windows: calibration tokens and their weights; two windows at least.
        settings: steps, learning rate and so on.
        progress: told about every step.

    Raises:
        InputError: fewer than two windows, or no weight on those held out or on the others.
    """
    settings, progress, started = settings or Settings(), progress or Progress(), time.monotonic()
    family = family_of(pruned.config)
    work = _Refiner(family, dense, pruned, windows, settings)
    found = Refined(settings, windows.tokens)
    count = len(family.blocks(pruned))
    needed = 3 * work.into.numel() * work.into.element_size()
    progress.say(f"  refine: {windows.tokens:,} tokens, {needed / 1e9:.1f} GB of memory beside the two models")
    with progress.stage("refine", total=count * settings.steps, unit="steps") as bar:
        for index in range(count):
            work.run_dense(index)
            before, done, begun = work.heldout(index), bar.done, time.monotonic()
            masters = work.trainable(index)
            if before > 0 and any(p.requires_grad for p in masters.values()):
                if not found.blocks:
                    progress.say(f"  refine: about {duration(work.estimate(index, masters) * (count - index))}")
                after, step = work.train(index, masters, before, bar)
                found.blocks.append(BlockRefined(index, before, after, step, time.monotonic() - begun))
            work.run_cut(index)
            bar.advance(done + settings.steps - bar.done)  # of a block that was not trained, or not to its end
    found.seconds = time.monotonic() - started
    return found


class _Refiner:
    """The streams of hidden states, `[windows, length, hidden]`, and the training of one block."""

    def __init__(self, family: Family, dense: nn.Module, pruned: nn.Module, windows: Windows, settings: Settings):
        count = len(windows.ids)
        if count < 2:
            raise InputError(f"refine: {count} calibration window; it needs two at least, as one is held out")
        self.family, self.dense, self.pruned, self.windows, self.settings = family, dense, pruned, windows, settings
        step = min(HELD_OUT, count)
        self.held = torch.arange(step - 1, count, step)
        self.held_windows = windows.pick(self.held)
        self.train_rows = torch.tensor([row for row in range(count) if row % step != step - 1])
        self.into = embed(family, dense, windows)  # what enters the dense block
        self.out = torch.empty_like(self.into)  # what leaves it
        self.cut = self.into.clone()  # what enters the refined block
        self.weights = torch.ones(windows.ids.shape) if windows.weights is None else windows.weights.float()
        for rows, which in ((self.held, "held-out"), (self.train_rows, "other")):
            if not self.weights[rows].sum() > 0:
                raise InputError(f"refine: all tokens of the {which} windows have weight 0; use more calibration data")

    @torch.no_grad()
    def run_dense(self, index: int) -> None:
        """Block `index` of the dense model over all windows."""
        if index:
            self.into, self.out = self.out, self.into
        for where in self.windows.batches():
            self.out[where] = run_block(self.family, self.dense, index, self.into[where])

    @torch.no_grad()
    def run_cut(self, index: int) -> None:
        """Block `index` of the refined model over all windows, in place."""
        for where in self.windows.batches():
            self.cut[where] = run_block(self.family, self.pruned, index, self.cut[where])

    def trainable(self, index: int) -> dict[str, Tensor]:
        """fp32 copies of all parameters of block `index`, by name; those that are trained require gradients."""
        masters = {name: p.detach().float().clone() for name, p in self._block(index).named_parameters()}
        for name, value in masters.items():
            value.requires_grad_(self.settings.parameters == "all" or any(o in name.split(".") for o in OUTPUTS))
        return masters

    def _block(self, index: int) -> nn.Module:
        return self.family.block(self.pruned, index)

    @torch.no_grad()
    def heldout(self, index: int) -> float:
        """Weighted squared error of the held-out windows over the energy that the dense block adds to them."""
        error = energy = 0.0
        for rows, columns in self.held_windows.batches():
            at = self.held[rows], columns
            x = self.cut[at]
            error += self._error(run_block(self.family, self.pruned, index, x), at).item()
            added = (self.out[at].float() - self.into[at].float()).square().sum(-1)
            energy += (added * self.weights[at].to(added.device)).sum().item()
        return error / max(energy, 1e-30)

    def _error(self, output: Tensor, where: tuple[Tensor, slice]) -> Tensor:
        """Weighted sum of squared errors of the refined block's output for some windows, fp32."""
        missing = self.into[where].float() - self.cut[where].float()
        target = self.out[where].float() - (1 - self.settings.residual) * missing
        return ((output.float() - target).square().sum(-1) * self.weights[where].to(output.device)).sum()

    def _batches(self, index: int) -> Iterator[tuple[Tensor, slice]]:
        """Batches of the windows that are not held out, of similar length, in a new order each time round."""
        lengths = [self.windows.lengths[row] for row in self.train_rows]
        for epoch in itertools.count():
            seed = (self.settings.seed * 100_003 + index) * 100_003 + epoch
            for batch in shuffled(lengths, self.settings.batch_tokens, seed):
                yield self.train_rows[batch], slice(0, max(lengths[i] for i in batch))

    def _loss(self, index: int, masters: dict[str, Tensor], where: tuple[Tensor, slice]) -> Tensor:
        """Mean squared error of a block with these parameters, all of it in fp32.

        On CPUs that is faster than bf16, whose products of transposed matrices are slow, and needs no loss scaling.
        """
        x = self.cut[where].float()
        inputs = self.family.block_inputs(self.pruned, x, index)
        out = torch.func.functional_call(self._block(index), masters, (x,), inputs)
        out = out[0] if isinstance(out, tuple) else out
        return self._error(out, where) / self.weights[where].sum().clamp_min(1e-30)

    def estimate(self, index: int, masters: dict[str, Tensor]) -> float:
        """Seconds that one block takes, from a step that changes nothing (a second one: the first warms up)."""
        where = next(self._batches(index))
        for _ in range(2):
            started = time.monotonic()
            trained = [p for p in masters.values() if p.requires_grad]
            torch.autograd.grad(self._loss(index, masters, where), trained, materialize_grads=True)  # idle experts
        tokens = len(where[0]) * (where[1].stop or 0)
        # a backward pass costs two forward passes
        passes = 3 * self.settings.steps * tokens + LOOKS * self.held_windows.tokens + 2 * self.windows.tokens
        return (time.monotonic() - started) / (3 * tokens) * passes

    def train(self, index: int, masters: dict[str, Tensor], before: float, bar: Bar) -> tuple[float, int]:
        """Trains one block and leaves it in its best state; the held-out error and step (0: the start) of that."""
        settings, block = self.settings, self._block(index)
        trained = [p for p in masters.values() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=settings.learning_rate, betas=BETAS, fused=True)
        best, at, kept = before, 0, {name: p.detach().clone() for name, p in block.named_parameters()}
        every = math.ceil(settings.steps / LOOKS)
        for step, where in enumerate(itertools.islice(self._batches(index), settings.steps), 1):
            optimizer.param_groups[0]["lr"] = settings.rate(step - 1)
            optimizer.zero_grad()
            self._loss(index, masters, where).backward()
            optimizer.step()
            bar.advance()
            if step % every and step != settings.steps:
                continue
            _copy(masters, block)  # judged as it will be used, rounded to the model's dtype
            error = self.heldout(index)
            if not math.isfinite(error):
                break  # diverged: the best state before is kept
            if error < best:
                best, at, kept = error, step, {name: p.detach().clone() for name, p in block.named_parameters()}
        _copy(kept, block)
        return best, at


@torch.no_grad()
def _copy(values: dict[str, Tensor], block: nn.Module) -> None:
    for name, parameter in block.named_parameters():
        parameter.copy_(values[name])
