"""The impact pass: what a first small step would gain in every weight of every linear, from one sweep of gradients.

For a linear with inputs X [tokens, in] and output gradients dY [tokens, out], a batch's weight gradient is `dYᵀX`. It
is taken from hooks (as RoSA does, arXiv 2401.04679), so that no weight needs a gradient of its own, and summed at once:
what is held is one mean gradient and, where wanted, one mean square per linear, whatever the number of batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sentei.errors import InputError


@dataclass(frozen=True)
class Impact:
    """Gradients of linears, by full name; all of [out, in].

    Attributes:
        gradient: mean over batches of `dYᵀX`, fp32.
        fisher: mean over batches of its square, fp32: the empirical Fisher's diagonal with a batch as one sample (FISH
            mask, arXiv 2111.09839). Empty where it was not asked for.
        weight: the weights themselves, in their own dtype; references, not copies.
        batches: how many there were.
    """

    gradient: dict[str, Tensor]
    fisher: dict[str, Tensor]
    weight: dict[str, Tensor]
    batches: int


def measure_impact(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Tensor],
    names: Sequence[str],
    *,
    fisher: bool = True,
) -> Impact:
    """Gradients of the loss with respect to the named linears. The model is left exactly as it was.

    Args:
        model: a plain causal language model; run in eval mode, so that dropout does not enter.
        batches: what `loss` understands.
        loss: `loss(model, batch)`, a scalar that depends on the model's input embeddings.
        names: full names of `nn.Linear` modules. One that a batch does not reach has no gradient in it.
        fisher: keep the mean squares too.

    Raises:
        InputError: no batches, or a loss (its batch is named, from 0) or gradient (its module) that is not finite.
    """
    modules = {name: model.get_submodule(name) for name in names}
    weight = {name: module.weight.detach() for name, module in modules.items() if isinstance(module, nn.Linear)}
    gradient = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weight.items()}
    square = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weight.items()} if fisher else {}
    total = 0
    for batch in batches:
        sums: dict[str, Tensor] = {}
        with _tapped(model, modules, sums) as entered, torch.enable_grad():
            value = loss(model, batch)
            if not torch.isfinite(value):
                raise InputError(f"the loss of batch {total} is {value.item()}; load the model with --dtype float32")
            torch.autograd.grad(value, entered)
        for name, found in sums.items():
            gradient[name] += found
            if fisher:
                square[name].addcmul_(found, found)
        total += 1
    if not total:
        raise InputError("no batches to take gradients of; expected at least one row with response tokens")
    for found in (*gradient.values(), *square.values()):
        found /= total
    for name, found in gradient.items():
        if not torch.isfinite(found).all():
            raise InputError(f"{name}: the gradient is not finite; load the model with --dtype float32")
    return Impact(gradient, square, weight, total)


@contextlib.contextmanager
def _tapped(model: nn.Module, modules: dict[str, nn.Module], sums: dict[str, Tensor]) -> Iterator[list[Tensor]]:
    """Adds each linear's `dYᵀX` to `sums`; gives the list that the input embeddings are put into during forward.

    Everything downstream of the embeddings then has a gradient, though every parameter is frozen meanwhile.
    """
    entered: list[Tensor] = []
    frozen = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    handles = [modules[name].register_forward_hook(_watch(sums, name)) for name in modules]
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    handles.append(embedding.register_forward_hook(lambda _module, _inputs, out: entered.append(out.requires_grad_())))
    try:
        model.eval().requires_grad_(False)
        yield entered
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required in frozen:
            parameter.requires_grad_(required)
        for module, training in modes:
            module.training = training


def _watch(sums: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(_module: nn.Module, inputs: Any, output: Tensor) -> None:
        x = inputs[0].detach().flatten(0, -2)

        def add(grad: Tensor) -> None:
            found = (grad.flatten(0, -2).T @ x).float()
            sums[name] = sums[name] + found if name in sums else found

        output.register_hook(add)

    return hook
