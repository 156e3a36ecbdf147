"""`measure`: one pass over the calibration data, block by block, and a short gradient pass over its first windows.

Statistics are means over tokens in fp32; the model keeps its own dtype. Sources: the Gram matrices serve Numerical
Pruning (arXiv 2412.12441, eq. 6 and 11), FLAP and OBS; the angle serves Adapt-Pruner (arXiv 2502.03460) and ShortGPT;
`output_grad` is the output factor of a Kronecker-factored empirical Fisher.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sentei.data.windows import as_windows
from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.base import Family
from sentei.measure.profile import BlockStats, PartStats, Profile
from sentei.measure.stream import PARTS, batches, column_sum, embed, gram, part_linears, run_block, tap
from sentei.models.load import as_loaded
from sentei.plan import BlockShape, ModelShape
from sentei.progress import Progress

LOGIT_ROWS = 256  # rows of logits at a time: a chunk of the vocabulary's width stays in cache


def measure(
    model: Any,
    data: Any,
    *,
    tokens: int = 131072,
    window: int = 1024,
    gradient_tokens: int = 8192,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> Profile:
    """Measures what each part of `model` does for `data`.

    Args:
        model: a `Loaded` model or an in-memory causal LM of a known family. It is not changed.
        data: token windows `[windows, length]`, texts, or a source that `sentei.data` reads.
        tokens: at most this many calibration tokens are read.
        window: tokens per window.
        gradient_tokens: how many of them the gradient pass reads, rounded up to a window; 0 leaves it out, and with it
            the scores that need gradients.
        tokenizer: needed for texts where `model` carries none.
        progress: told about every block.

    Raises:
        InputError: unknown architecture, unusable data, or a model whose activations are not finite (block named).
    """
    loaded = as_loaded(model, tokenizer)
    net, family = loaded.model, family_of(loaded.model.config)
    windows = as_windows(data, loaded.tokenizer, window=window, tokens=tokens)
    graded = min(len(windows), -(-gradient_tokens // windows.shape[1]))
    shape = family.shape(net.config)
    progress = progress or Progress()
    needed = _memory_needed(shape, windows.numel(), graded * windows.shape[1], net.dtype.itemsize)
    progress.say(f"  measure: {windows.numel():,} tokens, {needed / 1e9:.1f} GB of memory beside the model")
    with progress.stage("measure", total=len(shape.blocks) * (2 if graded else 1), unit="blocks") as bar:
        hidden = embed(family, net, windows)
        blocks: list[BlockStats] = []
        entered: list[Tensor] = []  # what enters each block, of the windows that the gradient pass reads
        for index in range(len(shape.blocks)):
            entered.append(hidden[:graded].clone())
            stats = _block_stats(family, net, hidden, shape, index)
            blocks.append(stats)
            bar.advance()
        if graded:
            grad = _loss_gradient(family, net, hidden[:graded], windows[:graded])
            for index in reversed(range(len(blocks))):
                grad = _block_gradients(family, net, index, entered.pop(), grad, shape, blocks[index])
                bar.advance()
    return Profile(
        shape=shape,
        model_digest=loaded.digest,
        data_digest=hashlib.sha256(windows.cpu().numpy().tobytes()).hexdigest(),
        tokens=windows.numel(),
        window=windows.shape[1],
        gradient_tokens=graded * windows.shape[1],
        blocks=blocks,
        info={"model": loaded.name, "data": data if isinstance(data, str) else "in memory", "dtype": str(net.dtype)},
    )


def _memory_needed(shape: ModelShape, tokens: int, gradient_tokens: int, itemsize: int) -> int:
    """Bytes of the hidden states (all once, the gradient pass's at every block) and of the statistics in fp32."""
    states = (tokens + gradient_tokens * len(shape.blocks)) * shape.hidden * itemsize
    numbers = 0
    for block in shape.blocks:
        for n in (block.kv_groups * block.heads_per_group * shape.head_dim, block.ffn):
            numbers += n * (n + shape.hidden) + (2 if gradient_tokens else 1) * shape.hidden**2
    return states + 4 * numbers


@torch.no_grad()
def _block_stats(family: Family, model: nn.Module, hidden: Tensor, shape: ModelShape, index: int) -> BlockStats:
    """Runs one block over all windows, in place in `hidden`, and returns its statistics."""
    block = family.blocks(model)[index]
    parts_linears = {part: part_linears(family, block, part) for part in PARTS}
    watched: dict[str, nn.Linear] = {}
    for part, linears in parts_linears.items():
        if linears:
            watched |= {f"{part}_in": next(iter(linears.values())), part: list(linears.values())[-1]}
    sums: dict[str, Tensor] = {}
    count = hidden.shape[0] * hidden.shape[1]
    angle = torch.zeros((), dtype=torch.float64)
    energy = {"attention": 0.0, "ffn": 0.0}
    for where in batches(*hidden.shape[:2]):
        before = hidden[where]
        with tap(**watched) as seen:
            after = run_block(family, model, index, before)
        for name, x in seen.items():
            sums[f"{name}.gram"] = sums.get(f"{name}.gram", 0) + gram(x)
            sums[f"{name}.mean"] = sums.get(f"{name}.mean", 0) + column_sum(x)
        a, b = before.float(), after.float()
        squares = (a * a).sum(-1), (b * b).sum(-1)
        angle += ((a * b).sum(-1) / (squares[0] * squares[1]).sqrt().clamp_min(1e-20)).sum().double().cpu()
        energy["attention"] += squares[0].sum().item()
        energy["ffn"] += squares[1].sum().item()
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
                weight=watched[name].weight.detach().float(),
                gram=sums[f"{name}.gram"] / count,
                mean=sums[f"{name}.mean"] / count,
                norm=_per_input(name, shape.blocks[index], squared),
                energy=energy[name] / count,
                input_gram=sums[f"{name}_in.gram"] / count,
            )
    return BlockStats(angle=(angle / count).item(), **parts)


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


def _loss_gradient(family: Family, model: nn.Module, hidden: Tensor, windows: Tensor) -> Tensor:
    """Gradient of each token's loss (nats, next token) at the last block's output: `[windows, length, hidden]`.

    Logits are made for a few rows at a time, so the vocabulary's width never meets the whole batch.
    """
    rows = hidden[:, :-1].flatten(0, 1)
    labels = windows[:, 1:].flatten().to(rows.device)
    grads = []
    with torch.enable_grad():
        for x, y in zip(rows.split(LOGIT_ROWS), labels.split(LOGIT_ROWS), strict=True):
            x = x.detach().requires_grad_()
            logits = family.head(model)(family.final_norm(model)(x)).float()
            (grad,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
            grads.append(grad)
    full = torch.zeros_like(hidden)
    full[:, :-1] = torch.cat(grads).view(hidden.shape[0], -1, hidden.shape[2])
    return full


def _block_gradients(
    family: Family, model: nn.Module, index: int, entered: Tensor, grad: Tensor, shape: ModelShape, stats: BlockStats
) -> Tensor:
    """Backward through one block, recomputed: adds `output_grad` and `taylor`, returns the gradient at its input."""
    block = family.blocks(model)[index]
    linears = {part: found for part in PARTS if (found := part_linears(family, block, part))}
    outputs = {part: list(found.values())[-1] for part, found in linears.items()}
    flat = [linear.weight for found in linears.values() for linear in found.values()]
    frozen = [(p, p.requires_grad) for p in block.parameters()]
    taylor: dict[int, Tensor] = {}
    squares = {name: torch.zeros(shape.hidden, shape.hidden, device=grad.device) for name in outputs}
    count = entered.shape[0] * entered.shape[1]
    back = torch.empty_like(grad)
    for p, _ in frozen:
        p.requires_grad_(False)
    for w in flat:
        w.requires_grad_(True)
    try:
        for where in batches(*entered.shape[:2]):
            x = entered[where].detach().requires_grad_()
            tapped: dict[str, Tensor] = {}
            handles = [linear.register_forward_hook(_keep_output(tapped, name)) for name, linear in outputs.items()]
            try:
                with torch.enable_grad():
                    y = run_block(family, model, index, x)
                    grads = torch.autograd.grad(y, [x, *tapped.values(), *flat], grad[where])
            finally:
                for handle in handles:
                    handle.remove()
            back[where] = grads[0]
            for name, g in zip(tapped, grads[1:], strict=False):
                squares[name] += gram(g.flatten(0, -2))
            for w, g in zip(flat, grads[1 + len(tapped) :], strict=True):
                taylor[id(w)] = taylor.get(id(w), 0) + g.float()
    finally:
        for p, required in frozen:
            p.requires_grad_(required)
    for name, found_linears in linears.items():
        weights = {key: linear.weight for key, linear in found_linears.items()}
        values = {key: (w.detach().float() * taylor[id(w)] / count).abs() for key, w in weights.items()}
        part_stats = stats.attention if name == "attention" else stats.ffn
        assert part_stats is not None  # a part with linears was measured
        part_stats.taylor = _per_input(name, shape.blocks[index], values)
        part_stats.output_grad = squares[name] / count
    return back


def _keep_output(into: dict[str, Tensor], name: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        into[name] = output

    return hook
