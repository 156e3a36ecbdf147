"""A learned mask: while training, the sparse entries that stayed smallest move to where the gradient is largest.

SpIEL with accumulated gradients (arXiv 2401.16405), in the first half of training. After
every `REGROW` steps, in each linear, the share `p(t) = SHARE · (1 − t/T)` of the entries with the smallest |value| is
given up, and as many inactive entries start at 0: those with the largest |Σ gradient| over the last `WATCH` steps. The
dense gradient is looked at inside backward only (`effective_linear` makes it there anyhow); between steps stay k
candidates, the inactive entries with the largest gradient in the first of these steps, and their sums. Two things
differ from SpIEL: it replaces every entry the first time, which an informed start does not need, and it seeds Adam.

Adam's moments of a new entry start at 0, while the step that corrects their bias stays that of the whole tensor. The
entry then warms up within about ten steps and can never step further than
`(1−β₁) / √(1−β₂) / √(1−β₁²/β₂) = 1.16` learning rates (Cauchy-Schwarz over its gradients, for β = 0.9, 0.95). SpIEL
seeds them with the mean gradient and square instead, which needs an age per entry, a second sum, and the factor by
which every step's gradient was clipped; and the mean is biased upwards, as entries are chosen for it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sentei.errors import InputError, unknown
from sentei.recover.tune.adapters import ADAPTERS
from sentei.recover.tune.adapters.layer import SparseLoraLinear

MASKS = ("static", "grow")
REGROW = 20  # steps from one move to the next
WATCH = 5  # steps before a move whose gradients count
SHARE = 0.2  # of the entries that would move at step 0
UNTIL = 0.5  # share of the steps after which nothing moves any more


def check_mask(mask: str, adapter: str) -> None:
    """Whether there is such a mask, for such an adapter.

    Raises:
        InputError: an unknown mask or adapter, or "grow" for an adapter without sparse entries.
    """
    if mask not in MASKS:
        raise unknown("mask", mask, MASKS)
    if mask == "grow" and not ADAPTERS[adapter].sparse:
        able = ", ".join(name for name in ADAPTERS if ADAPTERS[name].sparse)
        raise InputError(
            f"--mask grow moves sparse entries, and adapter {adapter!r} has none; use one of {able}, or --mask static"
        )


class Regrow:
    """Moves the sparse entries of a model while a `Trainer` trains it.

    The number of entries never changes, and the indices of every linear stay ascending and without repetition.

    Args:
        model: adapted; see `sentei.recover.tune.adapters.layer`.
        steps: of the whole training.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLoraLinear) and m.lora_S}
        self.steps = steps
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}  # candidates [c] ascending, sum of their gradients [c] fp32
        self.start = {name: _entries(layer)[1].clone() for name, layer in self.layers.items()}

    def due(self) -> list[int]:
        """The numbers of steps done after which entries move."""
        return list(range(REGROW, int(UNTIL * self.steps) + 1, REGROW))

    def moved(self) -> int:
        """Entries that are elsewhere than they were before training."""
        return sum(
            int(torch.isin(_entries(layer)[1], start, invert=True).sum())
            for layer, start in zip(self.layers.values(), self.start.values(), strict=True)
        )

    @contextlib.contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Around forward and backward of a step (the first is 0): looks at the gradient if a move is near."""
        if not any(0 <= due - 1 - step < WATCH for due in self.due()):
            yield
            return
        for name, layer in self.layers.items():
            layer.watch = functools.partial(self._watch, name)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.watch = None

    @torch.no_grad()
    def _watch(self, name: str, d_weight: Tensor) -> None:
        """Adds up a gradient [out, in] of the effective weight; the first one chooses the candidates."""
        gradient = d_weight.view(-1)
        if name not in self.seen:
            indices = _entries(self.layers[name])[1]
            size = gradient.abs().index_fill_(0, indices.long(), 0)
            largest = size.topk(min(len(indices), len(size) - len(indices)))
            candidates = largest.indices[largest.values > 0].sort().values
            self.seen[name] = candidates, torch.zeros(len(candidates), device=candidates.device)
        candidates, total = self.seen[name]
        total += gradient.index_select(0, candidates)

    @torch.no_grad()
    def move(self, done: int, optimizer: torch.optim.Optimizer) -> None:
        """Moves entries if it is time, `done` steps after the start. A linear without gradient keeps its own."""
        if done not in self.due():
            return
        for name, (candidates, total) in self.seen.items():
            values, indices = _entries(self.layers[name])
            state = optimizer.state[values]
            tensors = [values, indices, state["exp_avg"], state["exp_avg_sq"]]
            count = min(round(SHARE * (1 - done / self.steps) * len(values)), len(candidates))
            weakest = values.abs().argsort(stable=True)[:count]
            strongest = total.abs().argsort(stable=True, descending=True)[:count]
            for tensor in tensors:
                tensor[weakest] = 0
            indices[weakest] = candidates[strongest].to(indices.dtype)
            order = indices.argsort()
            for tensor in tensors:  # in place: the optimiser and the checkpoint hold these very tensors
                tensor.copy_(tensor[order])
        self.seen = {}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside values, indices and moments: what was seen since the last move."""
        pairs = self.seen.items()
        return {f"{kind}.{name}": t for name, pair in pairs for kind, t in zip(("at", "sum"), pair, strict=True)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to what `state` gave."""
        names = [name for name in self.layers if f"at.{name}" in state]
        device = {name: _entries(self.layers[name])[1].device for name in names}
        self.seen = {n: (state[f"at.{n}"].to(device[n]), state[f"sum.{n}"].to(device[n])) for n in names}


def _entries(layer: Any) -> tuple[Tensor, Tensor]:
    """Values [k], fp32 and trained, and indices [k] of a linear: the tensors themselves."""
    _, _, _, values, indices = layer.parts(layer.active_adapters[0])
    return values, indices
