"""`measure`: one pass over the calibration data, block by block, and a short gradient pass over its first windows.

Statistics are means over tokens in fp32; the model keeps its own dtype. Sources: the Gram matrices serve Numerical
Pruning (arXiv 2412.12441, eq. 6 and 11), FLAP and OBS; the angle serves Adapt-Pruner (arXiv 2502.03460) and ShortGPT;
`output_grad` is the output factor of a Kronecker-factored empirical Fisher.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sentei.data.calibration import as_windows
from sentei.data.windows import Windows, spread
from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.base import Family
from sentei.families.selfcheck import check_family
from sentei.families.streamed import streamed_blocks
from sentei.measure.blocks import BLOCKS, StoredBlocks
from sentei.measure.profile import Profile
from sentei.measure.statistics import BlockStats, PartStats
from sentei.measure.stream import PARTS, column_sum, embed, gram, part_linears, run_block, tap
from sentei.memory import check_memory
from sentei.models.identity import made_with
from sentei.models.load import as_loaded
from sentei.plan import BlockShape, ModelShape
from sentei.progress import Progress, shown

LOGIT_ROWS = 256  # rows of logits at a time: a chunk of the vocabulary's width stays in cache


def measure(
    model: Any,
    data: Any,
    *,
    tokens: int = 131072,
    window: int = 1024,
    gradient_tokens: int = 8192,
    tokenizer: Any = None,
    memory: int | None = None,
    into: Path | None = None,
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
        tokenizer: needed for texts where `model` carries none.
        memory: bytes that the process may use; refused before the work where it needs more.
        into: a directory where the statistics of a streamed model's blocks are written as they are made, instead of
            being kept; `Profile.write` completes it.
        progress: told about every block.

    Raises:
        InputError: unknown architecture, unusable data, a family that describes another computation than the model's,
            too little memory, or a model whose activations are not finite (block named).
    """
    loaded = as_loaded(model, tokenizer)
    net, family = loaded.model, family_of(loaded.model.config)
    windows = as_windows(data, loaded.tokenizer, window=window, tokens=tokens)
    picked = _graded(windows, gradient_tokens)
    graded = windows.pick(picked)
    shape = family.shape(net.config)
    if any(block.ranks for block in shape.blocks):
        raise InputError(f"{loaded.name} has low-rank matrices already; measure the model that it was made from")
    check_family(family, net, windows.ids)
    progress = shown(progress)
    stored = into / BLOCKS if into is not None and streamed_blocks(net) is not None else None
    needed = _memory_needed(
        shape, windows.ids.numel(), graded.ids.numel(), net.dtype.itemsize, streamed=stored is not None
    )
    progress.say(f"  measure: {windows.tokens:,} tokens, {needed / 1e9:.1f} GB of memory beside the model")
    check_memory(memory, needed, "measure", "read fewer --tokens, or leave out gradients with --gradient-tokens 0")
    with progress.stage("measure", total=len(shape.blocks) * (2 if len(picked) else 1), unit="blocks") as bar:
        hidden = embed(family, net, windows)
        blocks: list[BlockStats] | StoredBlocks = [] if stored is None else StoredBlocks(stored)
        entered: list[Tensor] = []  # what enters each block, of the windows that the gradient pass reads
        for index in range(len(shape.blocks)):
            entered.append(hidden[picked].clone())
            blocks.append(_block_stats(family, net, hidden, windows, shape, index))
            bar.advance()
        if len(picked):
            grad = _loss_gradient(family, net, hidden[picked], graded)
            for index in reversed(range(len(blocks))):
                stats = blocks[index]
                grad = _block_gradients(family, net, index, entered.pop(), graded, grad, shape, stats)
                blocks[index] = stats
                bar.advance()
    return Profile(
        shape=shape,
        model_digest=loaded.digest,
        data_digest=_data_digest(windows),
        tokens=windows.tokens,
        window=windows.ids.shape[1],
        gradient_tokens=graded.tokens if len(picked) else 0,
        blocks=blocks,
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


def _memory_needed(shape: ModelShape, tokens: int, gradient_tokens: int, itemsize: int, streamed: bool = False) -> int:
    """Bytes of the hidden states (all once, the gradient pass's at every block) and of the statistics in fp32.

    Of a streamed model one block is in memory: its weights, and what sums of its statistics take while they are packed.
    """
    states = (tokens + gradient_tokens * len(shape.blocks)) * shape.hidden * itemsize
    numbers = []
    for block in shape.blocks:
        widths = (block.kv_groups * block.heads_per_group * shape.head_dim, block.ffn)
        numbers.append(sum(n * (n + shape.hidden) + (2 if gradient_tokens else 1) * shape.hidden**2 for n in widths))
    if not streamed:
        return states + 4 * sum(numbers)
    weights = max(shape.attention_params(block) + shape.ffn_params(block) for block in shape.blocks)
    return 2 * states + 2 * 4 * max(numbers) + (itemsize + 4) * weights


@torch.no_grad()
def _block_stats(
    family: Family, model: nn.Module, hidden: Tensor, windows: Windows, shape: ModelShape, index: int
) -> BlockStats:
    """Runs one block over all windows, in place in `hidden`, and returns its statistics."""
    block = family.block(model, index)
    parts_linears = {part: part_linears(family, block, part) for part in PARTS}
    watched: dict[str, nn.Linear] = {}
    for part, linears in parts_linears.items():
        if linears:
            watched |= {f"{part}_in": next(iter(linears.values())), part: list(linears.values())[-1]}
    sums: dict[str, Tensor] = {}
    count = windows.ids.numel() if windows.weights is None else windows.weights.sum().item()
    angle = torch.zeros((), dtype=torch.float64)
    energy = {"attention": 0.0, "ffn": 0.0}
    for where in windows.batches():
        before, weight = hidden[where], windows.weight(where, hidden.device)
        with tap(**watched) as seen:
            after = run_block(family, model, index, before)
        for name, x in seen.items():
            sums[f"{name}.gram"] = sums.get(f"{name}.gram", 0) + gram(x, weight)
            sums[f"{name}.mean"] = sums.get(f"{name}.mean", 0) + column_sum(x, weight)
        a, b = before.flatten(0, 1).float(), after.flatten(0, 1).float()
        squares = (a * a).sum(-1), (b * b).sum(-1)
        cosine = (a * b).sum(-1) / (squares[0] * squares[1]).sqrt().clamp_min(1e-20)
        angle += _total(cosine, weight).double().cpu()
        energy["attention"] += _total(squares[0], weight).item()
        energy["ffn"] += _total(squares[1], weight).item()
        hidden[where] = after
    if not all(torch.isfinite(value).all() for value in sums.values()):
        raise InputError(
            f"block {index}: activations are not finite; load the model with --dtype float32 or check its weights"
        )
    parts: dict[str, PartStats | None] = dict.fromkeys(PARTS)
    for name, linears in parts_linears.items():
        if linears:
            squared = {key: linear.weight.detach().float().square() for key, linear in linears.items()}
            parts[name] = PartStats(
                weight=watched[name].weight.detach().float().cpu(),
                gram=(sums[f"{name}.gram"] / count).cpu(),
                mean=(sums[f"{name}.mean"] / count).cpu(),
                norm=_per_input(name, shape.blocks[index], squared).cpu(),
                energy=energy[name] / count,
                input_gram=(sums[f"{name}_in.gram"] / count).cpu(),
            )
    return BlockStats(angle=(angle / count).item(), **parts)


def _total(values: Tensor, weight: Tensor | None) -> Tensor:
    return values.sum() if weight is None else values @ weight


def _per_input(part: str, sizes: BlockShape, values: dict[str, Tensor]) -> Tensor:
    """Sums entry-wise values of a part's matrices per input of its row-pruned matrix: `[n]`.

    A key or value row serves all query heads of its group and is shared out evenly among them, so that the sum over a
    KV group's inputs counts each entry once, under the group's own query heads.
    """
    if part == "ffn":
        return values["gate_proj"].sum(1) + values["up_proj"].sum(1) + values["down_proj"].sum(0)
    groups, repeat = sizes.kv_groups, sizes.heads_per_group
    shared = (values["k_proj"].sum(1) + values["v_proj"].sum(1)) / repeat  # [groups * head_dim]
    shared = shared.view(groups, 1, -1).expand(-1, repeat, -1).reshape(-1)
    return values["q_proj"].sum(1) + values["o_proj"].sum(0) + shared


def _loss_gradient(family: Family, model: nn.Module, hidden: Tensor, windows: Windows) -> Tensor:
    """Gradient of each token's loss (nats, next token) at the last block's output: `[windows, length, hidden]`.

    Where there are answers, only the positions that predict them have one. Logits are made for a few rows at a time, so
    the vocabulary's width never meets the whole batch.
    """
    full = torch.zeros_like(hidden)
    if windows.answers is None:
        wanted = torch.ones(hidden.shape[0], hidden.shape[1] - 1, dtype=torch.bool, device=hidden.device)
    else:
        wanted = windows.answers[:, 1:].to(hidden.device)
    rows = hidden[:, :-1][wanted]
    labels = windows.ids[:, 1:].to(hidden.device)[wanted]
    grads = []
    with torch.enable_grad():
        for x, y in zip(rows.split(LOGIT_ROWS), labels.split(LOGIT_ROWS), strict=True):
            x = x.detach().requires_grad_()
            logits = family.head(model)(family.final_norm(model)(x)).float()
            (grad,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
            grads.append(grad)
    full[:, :-1][wanted] = torch.cat(grads)
    return full


def _block_gradients(
    family: Family,
    model: nn.Module,
    index: int,
    entered: Tensor,
    windows: Windows,
    grad: Tensor,
    shape: ModelShape,
    stats: BlockStats,
) -> Tensor:
    """Backward through one block, recomputed: fills `output_grad`, `taylor`, `ranks`; returns the input's gradient."""
    block = family.block(model, index)
    linears = {part: found for part in PARTS if (found := part_linears(family, block, part))}
    named = {name: linear for found in linears.values() for name, linear in found.items()}
    flat = [linear.weight for linear in named.values()]
    frozen = [(p, p.requires_grad) for p in block.parameters()]
    taylor: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}  # of the output gradients: [out, out] of o and down, [out] of the others
    count = windows.tokens if windows.answers is None else int(windows.answers.sum())
    back = torch.zeros_like(grad)
    for p, _ in frozen:
        p.requires_grad_(False)
    for w in flat:
        w.requires_grad_(True)
    try:
        for where in windows.batches():
            x = entered[where].detach().requires_grad_()
            tapped: dict[str, Tensor] = {}
            handles = [linear.register_forward_hook(_keep_output(tapped, name)) for name, linear in named.items()]
            try:
                with torch.enable_grad():
                    y = run_block(family, model, index, x)
                    grads = torch.autograd.grad(y, [x, *tapped.values(), *flat], grad[where])
            finally:
                for handle in handles:
                    handle.remove()
            back[where] = grads[0]
            for name, g in zip(tapped, grads[1:], strict=False):
                g = g.flatten(0, -2)
                outer = gram(g) if name in ("o_proj", "down_proj") else column_sum(g.float().square())
                squares[name] = squares.get(name, 0) + outer
            for name, g in zip(named, grads[1 + len(tapped) :], strict=True):
                taylor[name] = taylor.get(name, 0) + g.float()
    finally:
        for p, required in frozen:
            p.requires_grad_(required)
    for part, found in linears.items():
        values = {name: (x.weight.detach().float() * taylor[name] / count).abs() for name, x in found.items()}
        part_stats = stats.part(part)
        part_stats.taylor = _per_input(part, shape.blocks[index], values).cpu()
        part_stats.output_grad = (squares[list(found)[-1]] / count).cpu()
        part_stats.ranks = rank_losses(part_stats, found, {name: squares[name] / count for name in found})
    return back


def rank_losses(part: PartStats, linears: dict[str, nn.Linear], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Growth of the loss (nats) when a matrix keeps rank R, for R = 0 … min(out, in), by matrix.

    The projection is the output-aligned one (`sentei.algebra.lowrank`); its error is judged by the output gradients.
    """
    from sentei.algebra.lowrank import expected_loss, factors

    losses = {}
    for name, linear in linears.items():
        inputs = (part.gram if name in ("o_proj", "down_proj") else part.input_gram).to(linear.weight.device)
        losses[name] = expected_loss(factors(linear.weight.detach(), inputs), gradients[name]).float().cpu()
    return losses


def _keep_output(into: dict[str, Tensor], name: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        into[name] = output

    return hook
