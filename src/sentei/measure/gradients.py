"""The gradient pass: forward through all blocks over a few windows, and back through each block, recomputed.

`output_grad` is the output factor of a Kronecker-factored empirical Fisher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sentei.algebra.triangle import square, triangle
from sentei.data.windows import Windows
from sentei.families.base import Family
from sentei.families.parts import PARTS
from sentei.measure.states import Store
from sentei.measure.stream import Gram, column_sum, embed, per_input, run_block
from sentei.plan import ModelShape

LOGIT_ROWS = 256  # rows of logits at a time: a chunk of the vocabulary's width stays in cache


@dataclass(frozen=True)
class GradientPass:
    """Goes through a model once; its outcome, and what it can go on with, are in a store.

    Attributes:
        family: of the model.
        model: not changed.
        windows: that are read.
        shape: sizes of the model.
        store: holds `entered-i`, what enters block i, until block i is done; then `gradients-i`.
    """

    family: Family
    model: nn.Module
    windows: Windows
    shape: ModelShape
    store: Store

    def run(self, advance: Callable[[], object]) -> None:
        """Does what is not in the store yet; `advance` is called for every block."""
        last = len(self.shape.blocks) - 1
        done = next((i for i in range(last + 1) if f"back-{i}" in self.store), None)
        grad = self._loss() if done is None else self.store.get(f"back-{done}", self._device)["grad"]
        for index in reversed(range(last + 1)):
            if done is None or index < done:
                grad = self._back(index, grad)
            advance()

    def of(self, index: int) -> dict[str, Tensor]:
        """What the pass found at a block.

        Returns:
            `PART.taylor` [n], `PART.output_grad` [hidden, hidden], and for q, k, v, gate and up `squares.NAME` [out],
            the mean squared gradient of each output.
        """
        found = self.store.get(f"gradients-{index}", self._device)
        return {key: square(value) if key.endswith(".output_grad") else value for key, value in found.items()}

    @property
    def _device(self) -> Any:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def _loss(self) -> Tensor:
        """Forward through all blocks; the gradient of the loss at the last one's output."""
        count = len(self.shape.blocks)
        begun = max((i for i in range(count) if f"entered-{i}" in self.store), default=None)
        hidden = embed(self.family, self.model, self.windows)
        if begun is not None:
            hidden = self.store.get(f"entered-{begun}", self._device)["hidden"]
        for index in range(begun or 0, count):
            self.store.put(f"entered-{index}", hidden=hidden)
            for where in self.windows.batches():
                hidden[where] = run_block(self.family, self.model, index, hidden[where])
        return _loss_gradient(self.family, self.model, hidden, self.windows)

    def _back(self, index: int, grad: Tensor) -> Tensor:
        """Backward through one block: from the gradient at its output to the one at its input."""
        found, back = self._block(index, self.store.get(f"entered-{index}", self._device)["hidden"], grad)
        self.store.put(f"gradients-{index}", **found)
        self.store.put(f"back-{index}", grad=back)
        self.store.drop(f"back-{index + 1}")
        self.store.drop(f"entered-{index}")
        return back

    def _block(self, index: int, entered: Tensor, grad: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        block = self.family.block(self.model, index)
        members = {part: found for part in PARTS if (found := self.family.members(block, part))}
        named = {
            (part, number, name): linear
            for part, found in members.items()
            for number, linears in enumerate(found)
            for name, linear in linears.items()
        }
        writes = {part: self.family.ends(block, part)[1] for part in members}
        inner = {key[2]: linear for key, linear in named.items() if len(members[key[0]]) == 1}
        inner = {name: linear for name, linear in inner.items() if linear not in writes.values()}
        flat = [linear.weight for linear in named.values()]
        frozen = [(p, p.requires_grad) for p in block.parameters()]
        taylor: dict[tuple[str, int, str], Tensor] = {}
        outer = {part: Gram() for part in members}  # of the gradients of what a part puts out
        squares: dict[str, Tensor] = {}  # [out] of the matrices before that; not of experts, which have no ranks
        count = self.windows.tokens if self.windows.answers is None else int(self.windows.answers.sum())
        back = torch.zeros_like(grad)
        for p, _ in frozen:
            p.requires_grad_(False)
        for w in flat:
            w.requires_grad_(True)
        try:
            for where in self.windows.batches():
                x = entered[where].detach().requires_grad_()
                tapped: dict[str, Tensor] = {}
                seen = {**inner, **writes}
                handles = [module.register_forward_hook(_keep_output(tapped, name)) for name, module in seen.items()]
                try:
                    with torch.enable_grad():
                        y = run_block(self.family, self.model, index, x)
                        wanted = [x, *tapped.values(), *flat]
                        # An expert that no token is sent to has a gradient of zero.
                        grads = torch.autograd.grad(y, wanted, grad[where], materialize_grads=True)
                finally:
                    for handle in handles:
                        handle.remove()
                back[where] = grads[0]
                for name, g in zip(tapped, grads[1:], strict=False):
                    g = g.flatten(0, -2)
                    if name in outer:
                        outer[name].add(g)
                    else:
                        squares[name] = squares.get(name, 0) + column_sum(g.float().square())
                for key, g in zip(named, grads[1 + len(tapped) :], strict=True):
                    taylor[key] = taylor.get(key, 0) + g.float()
        finally:
            for p, required in frozen:
                p.requires_grad_(required)
        result = {f"squares.{name}": value / count for name, value in squares.items()}
        moved = {key: (x.weight.detach().float() * taylor[key] / count).abs() for key, x in named.items()}
        for part, found in members.items():
            each = [{name: moved[part, number, name] for name in linears} for number, linears in enumerate(found)]
            result[f"{part}.taylor"] = torch.cat([per_input(part, self.shape.blocks[index], own) for own in each])
            result[f"{part}.output_grad"] = triangle(outer[part].mean(count))
        return result, back


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
            logits = family.logits(model, x).float()
            (grad,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
            grads.append(grad)
    full[:, :-1][wanted] = torch.cat(grads)
    return full


def _keep_output(into: dict[str, Tensor], name: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        into[name] = output

    return hook
