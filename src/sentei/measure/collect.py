"""`measure`: one pass over the calibration data, block by block, after a short gradient pass over some of its windows.

Statistics are means over tokens in fp32; the model keeps its own dtype. Whatever needs a block's Gram matrices (removal
curves, losses of ranks) is computed while they are in memory, on the model's device. Sources: the Gram matrices serve
Numerical Pruning (arXiv 2412.12441, eq. 6 and 11), FLAP and OBS; the angle serves Adapt-Pruner (arXiv 2502.03460) and
ShortGPT.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sentei.data.windows import Windows, spread
from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.base import Family
from sentei.families.parts import PARTS
from sentei.families.selfcheck import check_family
from sentei.families.streamed import streamed_blocks
from sentei.files import hash_json
from sentei.measure.blocks import StoredBlocks
from sentei.measure.gradients import GradientPass
from sentei.measure.needs import Needs
from sentei.measure.profile import Profile
from sentei.measure.ranking import gram_scores, rank_measured
from sentei.measure.reading import OWN_TEXT, read_windows
from sentei.measure.scores import SCORES
from sentei.measure.states import States, Store, claim
from sentei.measure.statistics import BlockStats, Matrices, PartStats
from sentei.measure.stored import Contents
from sentei.measure.stream import Gram, column_sum, per_input, run_block, tap, tap_tokens
from sentei.models.identity import made_with
from sentei.models.load import as_loaded
from sentei.progress import Progress, shown


def measure(
    model: Any,
    data: Any,
    *,
    tokens: int = 131072,
    window: int = 1024,
    gradient_tokens: int = 8192,
    own_text: int | Tensor = OWN_TEXT,
    keep_grams: bool = False,
    scores: Sequence[str] | None = None,
    ranks: bool = True,
    tokenizer: Any = None,
    memory: int | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Measures what each part of `model` does for `data`.

    Args:
        model: a `Loaded` model or an in-memory causal LM of a known family. It is not changed.
        data: token windows, texts, or a source that `sentei.data` reads. `Windows` may weigh tokens and say which
            are answers: the gradients are then those of the loss on answers.
        tokens: at most this many calibration tokens are read.
        window: tokens per window.
        gradient_tokens: how many of them the gradient pass reads, rounded up to a window; 0 leaves it out, and with it
            the scores that need gradients.
        own_text: tokens that the model writes itself, to be read beside texts, at most as many as are read of these, or
            windows of them; 0: none. See `sentei.inference.own_text`.
        keep_grams: keep each block's Gram matrices too, which candidates in place (`choose`, `fit`) and scores of your
            own need; without them a profile is a hundredth as large.
        scores: whose removal curves are made, of those that need Gram matrices; default: all of them. Curves are most
            of the time on a small set.
        ranks: whether the losses of low ranks are computed, which methods with low-rank matrices need.
        tokenizer: needed for texts where `model` carries none.
        memory: bytes that the process may use; refused before the work where it needs more.
        work: a directory where every block's statistics are written as soon as they are made, with what a later call
            for the same model, data and settings needs to go on after a kill. It has to stay as long as the profile is
            used, or until it is saved.
        progress: told about every block.

    Raises:
        InputError: unknown architecture, unusable data, a family that describes another computation than the model's,
            too little memory or disk, work of another measurement, or a model whose activations are not finite (block
            named).
    """
    loaded = as_loaded(model, tokenizer)
    net, family = loaded.model, family_of(loaded.model.config)
    progress = shown(progress)
    windows, own = read_windows(
        loaded, data, window=window, tokens=tokens, own_text=own_text, work=work, progress=progress
    )
    picked = _graded(windows, gradient_tokens)
    graded = windows.pick(picked)
    shape = family.shape(net.config)
    if keep_grams and any(block.experts for block in shape.blocks):
        raise InputError(
            f"{loaded.name} has experts, whose Gram matrices are not kept: candidates in place (choose, fit) and other "
            "users of them know no experts; measure without --keep-grams, and use plan and cut"
        )
    if any(block.ranks for block in shape.blocks):
        raise InputError(f"{loaded.name} has low-rank matrices already; measure the model that it was made from")
    for name in scores or ():
        SCORES[name]  # refuses what is none
    chosen = [one for one in gram_scores(graded=len(picked) > 0) if scores is None or one.name in scores]
    contents = Contents(shape, len(picked) > 0, tuple(score.name for score in chosen), keep_grams, ranks)
    streamed = streamed_blocks(net)
    needs = Needs(contents, windows.ids.numel(), graded.ids.numel(), net.dtype.itemsize, streamed is not None)
    spilled = needs.check(memory, work, progress)  # before a first pass over the model
    check_family(family, net, windows.ids)
    data_digest = _data_digest(windows)
    if work is not None:
        asked = [keep_grams, contents.scores, ranks]
        claim(work, hash_json([loaded.digest, str(net.dtype), data_digest, len(picked), *asked]))
    count = len(shape.blocks)
    blocks: list[BlockStats] | StoredBlocks = [] if work is None else StoredBlocks(work, contents)
    with progress.stage("measure", total=count * (2 if len(picked) else 1), unit="blocks") as bar:
        gradients = GradientPass(family, net, graded, shape, Store(work)) if len(picked) else None
        if gradients is not None:
            gradients.run(bar.advance)
        place = (*windows.ids.shape, shape.hidden)
        states = States(place, net.dtype, net.device, work, spilled=spilled)
        begun = states.block
        if begun is None:
            _embed(family, net, windows, states)
        for _ in range(begun or 0):
            bar.advance()
        for index in range(begun or 0, count):
            found = _Block(family, net, windows, contents, index).run(states)
            stats = found.statistics(gradients.of(index) if gradients else {}, ranks=ranks)
            if streamed is not None:
                streamed.leave()  # its weights make room for the curves
            for score in chosen:
                rank_measured(stats, shape, index, score)
            stats = stats.settled(keep_grams)
            if isinstance(blocks, StoredBlocks):
                blocks.write(index, stats)
            else:
                blocks.append(stats)
            states.enter(index + 1)
            bar.advance()
    return Profile(
        shape=shape,
        model_digest=loaded.digest,
        data_digest=data_digest,
        tokens=windows.tokens,
        window=windows.ids.shape[1],
        gradient_tokens=graded.tokens if len(picked) else 0,
        blocks=blocks,
        own_text=own,
        info={"model": loaded.name, "data": data if isinstance(data, str) else "in memory", **made_with(loaded)},
    )


def _graded(windows: Windows, tokens: int) -> Tensor:
    """Indices of the windows that the gradient pass reads: the first ones, or every k-th where lengths differ."""
    if not tokens:
        return torch.arange(0)
    if windows.weights is None:
        return torch.arange(min(len(windows.ids), -(-tokens // windows.ids.shape[1])))
    return spread(windows, tokens)


def _data_digest(windows: Windows) -> str:
    """Identifies the calibration tokens and what each counts."""
    total = hashlib.sha256(windows.ids.cpu().numpy().tobytes())
    for value in (windows.weights, windows.answers):
        if value is not None:
            total.update(value.cpu().numpy().tobytes())
    return total.hexdigest()


@torch.no_grad()
def _embed(family: Family, model: nn.Module, windows: Windows, states: States) -> None:
    for where in windows.batches():
        states[where] = family.embed(model, windows.ids[where].to(states.device))
    states.enter(0)


class _Block:
    """One block of the model, and the sums that it fills."""

    def __init__(self, family: Family, model: nn.Module, windows: Windows, contents: Contents, index: int) -> None:
        self.family, self.model, self.windows, self.index = family, model, windows, index
        self.shape = contents.shape
        block = family.block(model, index)
        self.members = {part: found for part in PARTS if (found := family.members(block, part))}
        self.experts = family.experts(block)
        self.outputs = {
            f"{part}.{number}": list(linears.values())[-1]
            for part, members in self.members.items()
            for number, linears in enumerate(members)
        }
        self.inputs = {
            f"{part}_in": next(iter(members[0].values()))
            for part, members in self.members.items()
            if contents.input_grams and not (part == "ffn" and self.experts)  # whose matrices get no ranks
        }
        self.grams = {name: Gram() for name in (*self.outputs, *self.inputs)}
        self.means = {
            name: torch.zeros(linear.in_features, device=linear.weight.device) for name, linear in self.outputs.items()
        }
        self.energy = {"attention": 0.0, "ffn": 0.0}
        self.angle = torch.zeros((), dtype=torch.float64)
        self.count: float = windows.ids.numel() if windows.weights is None else windows.weights.sum().item()

    @torch.no_grad()
    def run(self, states: States) -> _Block:
        """Runs the block over all windows, which then are what enters the next one."""
        for where in self.windows.batches():
            before = states[where]
            weight = self.windows.weight(where, before.device)
            with tap(**self.outputs, **self.inputs) as seen, tap_tokens(self.experts) as tokens:
                after = run_block(self.family, self.model, self.index, before)
            for name, x in seen.items():
                own = weight
                if weight is not None and self.experts and name.startswith("ffn."):
                    own = weight[tokens[int(name.removeprefix("ffn."))]]
                self.grams[name].add(x, own)
                if name in self.outputs:
                    self.means[name] += column_sum(x, own)
            a, b = before.flatten(0, 1).float(), after.flatten(0, 1).float()
            squares = (a * a).sum(-1), (b * b).sum(-1)
            cosine = (a * b).sum(-1) / (squares[0] * squares[1]).sqrt().clamp_min(1e-20)
            self.angle += _total(cosine, weight).double().cpu()
            self.energy["attention"] += _total(squares[0], weight).item()
            self.energy["ffn"] += _total(squares[1], weight).item()
            states[where] = after
        return self

    @torch.no_grad()
    def statistics(self, gradients: Mapping[str, Tensor], *, ranks: bool) -> BlockStats:
        """The statistics of the block, on the model's device; `gradients`: as of `GradientPass.of`."""
        for name, mean in self.means.items():
            self.grams[name].add(mean.new_zeros(0, len(mean)))  # of an expert that no token was sent to
        grams = {name: gram.mean(self.count) for name, gram in self.grams.items()}
        weights = [linear.weight for members in self.members.values() for own in members for linear in own.values()]
        if not all(torch.isfinite(value).all() for value in (*weights, *grams.values(), *self.means.values())):
            raise InputError(
                f"block {self.index}: weights or activations are not finite; load the model with --dtype float32 or "
                "check its weights"
            )
        parts: dict[str, PartStats] = {}
        for part, members in self.members.items():
            taylor = gradients.get(f"{part}.taylor")
            widths = [list(linears.values())[-1].in_features for linears in members]
            shares = [None] * len(members) if taylor is None else taylor.split(widths)
            found = [
                PartStats.of(
                    Matrices(
                        weight=list(linears.values())[-1].weight.detach(),
                        gram=grams[f"{part}.{number}"],
                        input_gram=grams.get(f"{part}_in"),
                        output_grad=gradients.get(f"{part}.output_grad"),
                    ),
                    mean=self.means[f"{part}.{number}"] / self.count,
                    norm=self._norm(part, linears),
                    energy=self.energy[part] / self.count,
                    taylor=share,
                )
                for number, (linears, share) in enumerate(zip(members, shares, strict=True))
            ]
            if part == "ffn" and self.experts:
                parts[part] = PartStats.side_by_side(found)
                continue
            parts[part] = found[0]
            if gradients and ranks:
                parts[part].ranks = rank_losses(found[0].whole(), members[0], gradients)
        return BlockStats(parts.get("attention"), parts.get("ffn"), angle=(self.angle / self.count).item())

    def _norm(self, part: str, linears: Mapping[str, nn.Linear]) -> Tensor:
        squared = {name: linear.weight.detach().float().square() for name, linear in linears.items()}
        return per_input(part, self.shape.blocks[self.index], squared)


def _total(values: Tensor, weight: Tensor | None) -> Tensor:
    return values.sum() if weight is None else values @ weight


def rank_losses(part: Matrices, linears: Mapping[str, nn.Linear], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Growth of the loss (nats) when a matrix keeps rank R, for R = 0 … min(out, in), by matrix.

    The projection is the output-aligned one (`sentei.algebra.lowrank`); its error is judged by the output gradients.
    """
    from sentei.algebra.lowrank import expected_loss, factors

    output, losses = list(linears)[-1], {}
    for name, linear in linears.items():
        inputs, grads = part.input_gram, gradients.get(f"squares.{name}")
        if name == output:
            inputs, grads = part.gram, part.output_grad
        assert grads is not None and inputs is not None  # the gradient pass goes through every matrix
        losses[name] = expected_loss(factors(linear.weight.detach(), inputs), grads).float()
    return losses
