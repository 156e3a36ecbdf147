"""`cut`: removes what a plan removes, and fits what stays, block by block.

Two streams of hidden states run side by side: the dense model's and the cut model's. Each part is fitted for the inputs
that the already cut parts before it now feed it, against what the dense part does on the dense inputs, so errors do not
pile up. Cost: one dense pass, one pass of the cut model, and one Gram matrix per part; a part with low-rank matrices
before its output matrix costs a second one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sentei.algebra.lowrank import factors
from sentei.data.windows import Windows
from sentei.errors import SenteiError
from sentei.families import family_of
from sentei.families.base import Family
from sentei.families.parts import MATRICES_OF, PARTS
from sentei.families.streamed import streamed_blocks
from sentei.families.surgery import fill, skeleton, sliced
from sentei.measure.reading import read_windows
from sentei.measure.stream import embed
from sentei.memory import EXPERT_KERNELS, check_memory
from sentei.models.identity import check_same
from sentei.models.load import as_loaded
from sentei.plan import ModelShape, Plan
from sentei.progress import Progress, shown
from sentei.prune.compensation import COMPENSATIONS
from sentei.prune.mixture import Mixture
from sentei.prune.parts import Part, Streams, set_product


def cut(
    model: Any,
    plan: Plan,
    data: Any,
    *,
    tokens: int = 65536,
    window: int = 512,
    own_text: int | Tensor | None = None,
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
        own_text: as of `measure`; default: as many tokens as the plan's profile read. A profile has them (`own_text`),
            which spares writing them again.
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
    windows, progress = None, shown(progress)
    if compensation is not COMPENSATIONS["none"] or plan.refine != "none":
        own = plan.own_text if own_text is None else own_text
        windows, _ = read_windows(loaded, data, window=window, tokens=tokens, own_text=own, progress=progress)
    needed = _memory_needed(plan, windows, dense.dtype.itemsize)
    if windows is not None or memory is not None:
        read = "" if windows is None else f"{windows.tokens:,} tokens, "
        progress.say(f"  cut: {read}{needed / 1e9:.1f} GB of memory beside the two models")
    check_memory(memory, needed, "cut", "allow more" if windows is None else "read fewer --tokens")
    with torch.no_grad(), progress.stage("cut", total=len(plan.blocks), unit="blocks") as bar:
        streams = None
        if windows is not None and compensation is not COMPENSATIONS["none"]:
            entered = embed(family, dense, windows)
            streams = Streams(windows, entered, entered.clone())
        for index, block in enumerate(plan.blocks):
            new, old = family.block(pruned, index), family.block(dense, index)
            fill(family, new, old, block, plan.dense)
            if streams is not None and family.is_parallel(dense.config):
                streams.enter_parallel()
            for part in PARTS:
                if streams is None:
                    _truncate(family, new, old, plan, index, part)
                else:
                    kind = Mixture if part == "ffn" and family.experts(old) else Part
                    kind(family, dense, pruned, plan, index, part).run(streams, compensation)
            _check_finite(new, f"block {index}: ")
            bar.advance()
    if plan.refine == "block":
        from sentei.prune.refine import refine_blocks

        assert windows is not None  # wanted above
        refine_blocks(dense, pruned, windows, progress=progress)
        for index in range(len(plan.blocks)):
            _check_finite(family.block(pruned, index), f"block {index}: ")
    return pruned


def cut_bytes(dense: ModelShape, tokens: int, itemsize: int, *, squares: bool = True) -> int:
    """Bytes that a cut takes beside the models: of copying the largest block, or of fitting its largest part.

    Copying: two blocks, and the file of one, which is mapped while it is read. Fitting: both streams, the inputs of a
    part, weights of two blocks in fp32, sums of both shares, and the fp64 system.

    Args:
        dense: the model that is cut.
        tokens: that are read to fit; 0: nothing is fitted.
        itemsize: of the dtype that is computed in.
        squares: whether Gram matrices are summed: not for a bias alone.
    """
    sizes = [(dense.attention_params(block) + dense.ffn_params(block)) for block in dense.blocks]
    if not tokens:
        return 3 * max(sizes) * itemsize
    heads = [b.kv_groups * b.heads_per_group * dense.head_dim for b in dense.blocks]
    widths = [max(n, *(b.experts or (b.ffn,))) for n, b in zip(heads, dense.blocks, strict=True)]
    # A token is an input of every expert that computes it; what each of them shall add is kept in fp32.
    each = [max(n, dense.top_k * max(b.experts, default=0)) for n, b in zip(widths, dense.blocks, strict=True)]
    experts = any(b.experts for b in dense.blocks)
    missing = 4 * tokens * dense.hidden + EXPERT_KERNELS if experts else 0
    states = tokens * (2 * dense.hidden + max(each)) * itemsize + missing
    squares = squares or experts  # which share one fit
    sums = [n * (n + dense.hidden) * (2 * 4 + 4 * 8) if squares else 2 * 8 * n * dense.hidden for n in widths]
    fits = [2 * 4 * size + summed for summed, size in zip(sums, sizes, strict=True)]
    return states + max(fits)


def _memory_needed(plan: Plan, windows: Windows | None, itemsize: int) -> int:
    squares = COMPENSATIONS[plan.compensation].weights or any(block.ranks for block in plan.blocks)
    needed = cut_bytes(plan.dense, 0 if windows is None else windows.ids.numel(), itemsize, squares=squares)
    if windows is None or plan.refine == "none":
        return needed
    from sentei.prune.refine import refine_bytes

    return max(needed, refine_bytes(plan, windows, itemsize))


def _truncate(family: Family, new: nn.Module, old: nn.Module, plan: Plan, index: int, part: str) -> None:
    """Low-rank matrices without data: the best product of the weights themselves."""
    block = plan.blocks[index]
    for name in block.ranks:
        if name in MATRICES_OF[part]:
            linear, dense = family.linears(new, part)[name], family.linears(old, part)[name]
            heads_per_group = plan.dense.blocks[index].heads_per_group
            weight, _ = sliced(dense, name, block, heads_per_group, plan.dense.head_dim)
            found = factors(weight, torch.eye(weight.shape[1], device=weight.device))
            set_product(linear, found.u[:, : block.ranks[name]], found.v[: block.ranks[name]])


def _check_finite(block: nn.Module, where: str) -> None:
    for name, parameter in block.named_parameters():
        if not torch.isfinite(parameter).all():
            raise SenteiError(
                f"{where}{name} is not finite after the cut; use more calibration data or --dtype float32"
            )
