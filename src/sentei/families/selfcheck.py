"""Does a family describe what its model computes? One short window through both, before anything is measured.

A family that was written from facts alone is silently wrong where the architecture has more: a multiplier on the
embedding or on what a part adds (Granite), a norm behind a part, parts side by side, a soft cap on the logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from sentei.errors import InputError
from sentei.families.base import Family
from sentei.families.parts import PARTS
from sentei.families.streamed import StreamedBlocks, stream, streamed_blocks
from sentei.families.surgery import on_meta, pruned_config, ready

TOKENS = 64  # of the window


@dataclass
class _Seen:
    """What went into and came out of a module."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def check_family(family: Family, model: nn.Module, ids: Tensor) -> None:
    """Compares what the family says with what the model does.

    Checked: the embedding against what enters block 0; what each part reads, its last matrix, and the sum of the parts
    against each block; each block alone against the block in the model; final norm and head against the logits; and the
    class of pruned models, with nothing removed, against the model.

    Args:
        family: of the model.
        model: a causal language model, dense or pruned, in any dtype.
        ids: [1, T] token ids; the first `TOKENS` are read.

    Raises:
        InputError: a difference beyond rounding, with the block and the part.
    """
    ids = ids[:1, :TOKENS].to(next(model.parameters()).device)
    blocks = list(family.blocks(model))
    parts = {(i, name): family.part(block, name) for i, block in enumerate(blocks) for name in PARTS}
    watched: dict[Any, nn.Module] = dict(enumerate(blocks))
    for (i, name), part in parts.items():
        if part is not None:
            reads, writes = family.ends(blocks[i], name)
            watched |= {(i, name): part, (i, name, "reads"): reads, (i, name, "writes"): writes}
    with _watch(watched) as seen:
        logits = cast(Any, model)(ids, use_cache=False).logits
    if not torch.isfinite(logits).all():
        return  # measuring names the block where this begins
    config = cast(Any, model).config
    check = _Checker(family.name, max(4 * torch.finfo(logits.dtype).eps, 1e-5))
    check("the embedding", family.embed(model, ids), seen[0].inputs[0])
    for i in range(len(blocks)):
        block = family.block(model, i)
        entered, left = seen[i].inputs[0], seen[i].outputs[0]
        total = entered
        for name in PARTS:
            if parts[i, name] is None:
                continue
            where, output = f"block {i}, {name} part", seen[i, name].outputs[0]
            read = entered if family.is_parallel(config) else total
            check(f"{where}: what it reads", family.reads(block, name, read), seen[i, name, "reads"].inputs[0])
            check(f"{where}: its last matrix", seen[i, name, "writes"].outputs[0], output)
            total = total + family.joins(config, block, name, output)
        check(f"block {i}: the sum of its parts", total, left)
        check(f"block {i} alone", _output(block(entered, **family.block_inputs(model, entered, i))), left)
    check("final norm and head", family.logits(model, seen[len(blocks) - 1].outputs[0]), logits)
    whole = _as_pruned(family, model)
    # Where a router all but hesitates between two experts, a rounding before it sends the token to the other one.
    share = 0.5 if any(family.experts(block) for block in blocks) else 1.0
    check("the class of pruned models, nothing removed", whole(ids, use_cache=False).logits, logits, 4, share)


class _Checker:
    """Compares token by token; `limit`: relative error that rounding explains."""

    def __init__(self, family: str, limit: float) -> None:
        self.family, self.limit = family, limit

    def __call__(self, where: str, ours: Tensor, real: Tensor, slack: float = 1, share: float = 1) -> None:
        """Refuses a difference; `share`: of the tokens that must agree."""
        same = ours.shape == real.shape
        off = float("inf")
        if same:
            a, b = ours.double(), real.double()
            off = float(((a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(1e-30)).quantile(share))
        if not off <= slack * self.limit:
            by = f"off by {off:.2g} of its size, rounding explains {slack * self.limit:.1g}"
            raise InputError(
                f"family {self.family} computes something else than the model at {where} "
                f"({by if same else f'shape {list(ours.shape)}, expected {list(real.shape)}'}); "
                "docs/add-a-family.md says what a family must describe"
            )


def _as_pruned(family: Family, model: nn.Module) -> Any:
    """The model as the class that a cut makes, sharing its weights."""
    net = cast(Any, model)
    config = pruned_config(net.config, family.shape(net.config))
    new = on_meta(family.pruned_class("ForCausalLM"), config, net.dtype)
    new.load_state_dict(net.state_dict(), assign=True)
    if (streamed := streamed_blocks(model)) is not None:
        stream(new, StreamedBlocks(family.blocks(new), streamed.read, device=net.device))
    return ready(new, net.device)


def _output(out: Any) -> Tensor:
    return cast(Tensor, out[0] if isinstance(out, tuple) else out)  # a tuple before transformers 4.54


@contextlib.contextmanager
def _watch(modules: dict[Any, nn.Module]) -> Iterator[dict[Any, _Seen]]:
    seen = {key: _Seen() for key in modules}

    def hook(key: Any) -> Any:
        def keep(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            seen[key].inputs.append(args[0] if args else kwargs["hidden_states"])
            seen[key].outputs.append(_output(output))

        return keep

    handles = [module.register_forward_hook(hook(key), with_kwargs=True) for key, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
