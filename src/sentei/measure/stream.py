"""Runs a model block by block over stored hidden states, and shows what goes into each linear.

Only one block works at a time, so a later pass can read blocks from disk; the stored states are `[windows, length,
hidden]` in the model's dtype.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sentei.algebra.triangle import add_product, mirror
from sentei.data.windows import Windows
from sentei.families.base import Family
from sentei.plan import BlockShape


@torch.no_grad()
def embed(family: Family, model: nn.Module, windows: Windows) -> Tensor:
    """Hidden states that enter block 0: `[windows, length, hidden]`."""
    device = next(model.parameters()).device
    return torch.cat([family.embed(model, windows.ids[rows].to(device)) for rows, _ in windows.batches()])


def run_block(family: Family, model: nn.Module, index: int, hidden: Tensor) -> Tensor:
    """Block `index` on `hidden` `[B, T, hidden]`, without cache or padding."""
    out = family.block(model, index)(hidden, **family.block_inputs(model, hidden, index))
    return cast(Tensor, out[0] if isinstance(out, tuple) else out)  # a tuple before transformers 4.54


@contextlib.contextmanager
def tap(**linears: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects the last input of each named linear: `[tokens, features]`, without the batch dimension."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0].flatten(0, -2)

        return keep

    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def tap_tokens(experts: Sequence[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Collects which tokens were last sent to each expert, by its number; those without any are left out."""
    seen: dict[int, Tensor] = {}

    def hook(number: int) -> Any:
        def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[number] = inputs[1]

        return keep

    handles = [expert.register_forward_pre_hook(hook(number)) for number, expert in enumerate(experts)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Lets oneDNN multiply fp32 copies of bf16 numbers in bf16: exact products, fp32 sums, twice as fast on CPUs.

    Only where every operand of the product comes from bf16; the setting is put back afterwards. GPUs are not affected,
    and torch before 2.9 has no such setting: there the products are fp32's, as exact and slower.
    """
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def column_sum(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Weighted sum over the rows in fp32: a product, far faster on CPUs than a widening reduction."""
    return (torch.ones(len(x), device=x.device) if weight is None else weight) @ x.float()


def scaled(x: Tensor, weight: Tensor | None) -> Tensor:
    """Rows times the square root of their weights, in `x`'s dtype, so that Gram matrices become weighted ones."""
    return x if weight is None else x * weight.sqrt().to(x.dtype)[:, None]


def gram(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """`xᵀ diag(weight) x` in fp32; rows are tokens. bf16 inputs give exact products where no row is weighted."""
    x = scaled(x, weight)
    a = x.float()
    with exact_products() if x.dtype == torch.bfloat16 else contextlib.nullcontext():
        return a.T @ a


class Gram:
    """`Σ xᵀ diag(weight) x` over batches, in fp32; as `gram`, but one triangle is computed: up to half the work."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Adds rows of `x` `[tokens, n]`."""
        x = scaled(x, weight)
        a = x.float()
        if self.total is None:
            self.total = a.new_zeros(a.shape[1], a.shape[1])
        with exact_products() if x.dtype == torch.bfloat16 else contextlib.nullcontext():
            add_product(self.total, a)

    def mean(self, count: float) -> Tensor:
        """The sum over `count`, whole: `[n, n]`. Ends the sum."""
        assert self.total is not None  # there was a batch
        total, self.total = self.total.div_(count), None
        return mirror(total)


def cross(x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """`xᵀ diag(weight) target` in fp32; rows are tokens. With bf16 `x` the target is rounded: unbiased noise."""
    x, target = scaled(x, weight), scaled(target, weight)
    with exact_products() if x.dtype == torch.bfloat16 else contextlib.nullcontext():
        return x.float().T @ target.float()


def per_input(part: str, sizes: BlockShape, values: dict[str, Tensor]) -> Tensor:
    """Sums entry-wise values of a part's matrices per input of its row-pruned matrix: `[n]`.

    A key or value row serves all query heads of its group and is shared out evenly among them, so that the sum over a
    KV group's inputs counts each entry once, under the group's own query heads.
    """
    if part == "ffn":
        inner = sum(value.sum(1) for name, value in values.items() if name != "down_proj")
        return values["down_proj"].sum(0) + inner
    groups, repeat = sizes.kv_groups, sizes.heads_per_group
    shared = (values["k_proj"].sum(1) + values["v_proj"].sum(1)) / repeat  # [groups * head_dim]
    shared = shared.view(groups, 1, -1).expand(-1, repeat, -1).reshape(-1)
    return values["q_proj"].sum(1) + values["o_proj"].sum(0) + shared
