"""`effective_linear`: a frozen linear with a low-rank and a sparse change, as one product with an effective weight.

The usual wrapper computes `x Wᵀ + s·(x Aᵀ) Bᵀ`: two thin products, casts and sums over all tokens for every linear.
Here `W + s·B A + S` is built anew (0.3 ms for 1,536 × 576, against 12 ms for the product with 2,048 tokens) and dropped
after use, in forward and again in backward, so that what is held in between is the input and references to parameters.
SHiRA and Supertuning in peft hold a dense copy of every adapted weight instead.

The effective weight is summed in the adapter's precision (fp32) and rounded once to the weight's. So the adapted model
computes exactly what the merged one will, and training sees the rounding that merging brings: its gradient passes
straight through to the fp32 master values, as in mixed-precision training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def effective_weight(weight: Tensor, A: Tensor, B: Tensor, scale: float, values: Tensor, indices: Tensor) -> Tensor:
    """`W + scale · B A + S`, [out, in] in the dtype of `weight`, always a new tensor.

    Args:
        weight: [out, in].
        A: [r, in]; r may be 0.
        B: [out, r].
        scale: of the low-rank part.
        values: [k], the entries of S; k may be 0.
        indices: [k] integers, where they are in the flattened weight; equal ones add up.
    """
    wide = weight.to(torch.promote_types(weight.dtype, values.dtype), copy=True)
    if A.shape[0]:
        wide.addmm_(B, A, alpha=scale)
    if len(values):
        wide.view(-1).index_add_(0, indices, values)
    return wide.to(weight.dtype)


def effective_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    values: Tensor,
    indices: Tensor,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """`x (W + scale · B A + S)ᵀ + bias`, differentiable with respect to x, A, B and values.

    Args:
        x: [..., in] in the dtype of `weight`.
        weight: [out, in], frozen: gets no gradient.
        bias: [out], frozen, or None.
        A: [r, in] in the precision of training (fp32); so are `B` and `values`, and the gradients of the three.
        B: [out, r].
        scale: of the low-rank part.
        values: [k], see `effective_weight`.
        indices: [k].
        watch: is shown the gradient of the effective weight, [out, in] in the dtype of `weight`, in backward; it is
            not to be kept. Only where there are values.

    Returns:
        [..., out] in the dtype of `weight`.
    """
    return cast(Tensor, _EffectiveLinear.apply(x, weight, bias, A, B, scale, values, indices, watch))


class _EffectiveLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scale: float,
        values: Tensor,
        indices: Tensor,
        watch: Callable[[Tensor], None] | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, A, B, values, indices)
        ctx.scale, ctx.watch = scale, watch
        return F.linear(x, effective_weight(weight, A, B, scale, values, indices), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B, values, indices = ctx.saved_tensors
        for_x, _, _, for_a, for_b, _, for_values, *_ = ctx.needs_input_grad
        d_x = d_a = d_b = d_values = None
        if for_x:  # not in the first block, whose input is an embedding
            d_x = grad @ effective_weight(weight, A, B, ctx.scale, values, indices)
        rows, d_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        if for_values and len(values):
            d_weight = d_rows.T @ rows
            if ctx.watch is not None:
                ctx.watch(d_weight)
            d_values = d_weight.view(-1).index_select(0, indices).to(values.dtype)
            if for_a or for_b:
                d_a, d_b = _from_weight(d_weight.to(A.dtype), A, B, ctx.scale)
        elif for_a or for_b:
            if thin_is_cheaper(len(rows), weight.shape[0], weight.shape[1], len(A)):
                d_a, d_b = _from_rows(d_rows, rows, A, B, ctx.scale)
            else:
                d_a, d_b = _from_weight((d_rows.T @ rows).to(A.dtype), A, B, ctx.scale)
        return d_x, None, None, d_a, d_b, None, d_values, None, None


def thin_is_cheaper(tokens: int, out: int, inputs: int, rank: int) -> bool:
    """Whether the gradients of A and B cost fewer multiplications by thin products than through `dYᵀX`.

    Sparse values need `dYᵀX` anyhow; then the other two follow from it at `2 · rank · out · in`, whatever the tokens.
    Gathering the products of single entries instead costs as much as the dense product from k ≈ 0.35 % of the entries
    on (2,048 tokens, 1,536 × 576, bf16), which is too few to be a third route.
    """
    return 2 * tokens * rank * (out + inputs) < tokens * out * inputs + 2 * rank * out * inputs


def _from_weight(d_weight: Tensor, A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradients of A and B from that of the weight, dW = dYᵀX [out, in]: s·Bᵀ dW and s·dW Aᵀ."""
    return (B.T @ d_weight).mul_(scale), (d_weight @ A.T).mul_(scale)


def _from_rows(grad: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same as s·(dY B)ᵀ X and s·dYᵀ (X Aᵀ), in the dtype of the rows: [tokens, out] and [tokens, in]."""
    d_a = (grad @ B.to(grad.dtype)).T @ x
    d_b = grad.T @ (x @ A.to(x.dtype).T)
    return d_a.to(A.dtype).mul_(scale), d_b.to(B.dtype).mul_(scale)
