"""What one block does for some data: the statistics that every score and allocation is a function of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sentei.errors import InputError
from sentei.measure.curves import BlockCurves


@dataclass(frozen=True)
class Matrices:
    """What is as large as the part itself; `n` counts the inputs of its row-pruned matrix (o, down).

    Attributes:
        weight: `[hidden, n]` of the row-pruned matrix, in the model's dtype.
        gram: `[n, n]` mean over tokens of `x xᵀ`, x the matrix's inputs.
        input_gram: `[hidden, hidden]` mean of `x xᵀ` of the part's first linears (q, k, v; gate, up); None of experts,
            whose matrices get no ranks.
        output_grad: `[hidden, hidden]` mean of `g gᵀ`, g the gradient of a token's loss at the part's output; or None.
    """

    weight: Tensor
    gram: Tensor
    input_gram: Tensor | None
    output_grad: Tensor | None = None


@dataclass
class PartStats:
    """Statistics of one attention or FFN part; `n` counts the inputs of its row-pruned matrix (o, down).

    Attributes:
        mean: `[n]` mean over tokens of x, the inputs of the row-pruned matrix.
        norm: `[n]` sum of squared weights of each input's group: its rows and columns in all matrices of the part.
        energy: mean over tokens of the squared norm of the residual stream behind the part.
        input_energy: `[n]` mean over tokens of x².
        weight_energy: `[n]` squared norms of the columns of the row-pruned matrix.
        grad_energy: mean squared gradient of a token's loss at a component of the part's output; or None.
        taylor: `[n]` sum of `|weight · gradient|` over each input's group: an order, no growth of a loss; or None.
        ranks: by matrix, `[K + 1]` growth of the loss (nats per token) when it keeps rank 0 … K; empty without
            gradients.
        alone: by score, `[n]` what each input costs alone.
        matrices: the Gram matrices, or what reads them; None where they were not kept.
        members: of a part with experts the statistics of each, with its matrices, until they are settled; the inputs of
            the part are theirs, one expert after the other.
    """

    mean: Tensor
    norm: Tensor
    energy: float
    input_energy: Tensor
    weight_energy: Tensor
    grad_energy: float | None = None
    taylor: Tensor | None = None
    ranks: dict[str, Tensor] = field(default_factory=dict)
    alone: dict[str, Tensor] = field(default_factory=dict)
    matrices: Matrices | Callable[[], Matrices] | None = field(default=None, repr=False)
    members: list[PartStats] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, matrices: Matrices, mean: Tensor, norm: Tensor, energy: float, taylor: Tensor | None) -> PartStats:
        """With the energies that the matrices hold."""
        grads = matrices.output_grad
        return cls(
            mean=mean,
            norm=norm,
            energy=energy,
            input_energy=matrices.gram.diagonal().clone(),
            weight_energy=matrices.weight.float().square().sum(0),
            grad_energy=None if grads is None else grads.diagonal().mean().item(),
            taylor=taylor,
            matrices=matrices,
        )

    @classmethod
    def side_by_side(cls, members: list[PartStats]) -> PartStats:
        """Of a part whose experts these are; what the part puts out is the sum of what they do."""
        values: dict[str, Any] = {"members": members}
        for key, value in vars(members[0]).items():
            if isinstance(value, Tensor):
                values[key] = torch.cat([getattr(member, key) for member in members])
            elif key in ("energy", "grad_energy"):
                values[key] = value
        return cls(**values)

    def whole(self) -> Matrices:
        """The matrices, read if need be.

        Raises:
            InputError: they were not kept.
        """
        if self.matrices is None:
            raise InputError(NO_GRAMS)
        return self.matrices() if callable(self.matrices) else self.matrices

    def settled(self, keep_grams: bool) -> PartStats:
        """On the CPU; the matrices where they are kept."""
        kept = _on_cpu(self.whole()) if keep_grams else None
        values: dict[str, Any] = dict(vars(self), matrices=kept, members=[])
        for key, value in values.items():
            if isinstance(value, Tensor):
                values[key] = value.cpu()
            elif isinstance(value, dict):
                values[key] = {name: tensor.cpu() for name, tensor in value.items()}
        return PartStats(**values)

    @property
    def weight(self) -> Tensor:
        """As of `Matrices`; raises as `whole`."""
        return self.whole().weight

    @property
    def gram(self) -> Tensor:
        """As of `Matrices`; raises as `whole`."""
        return self.whole().gram

    @property
    def input_gram(self) -> Tensor | None:
        """As of `Matrices`; raises as `whole`."""
        return self.whole().input_gram

    @property
    def output_grad(self) -> Tensor | None:
        """As of `Matrices`; raises as `whole`."""
        return self.whole().output_grad


def _on_cpu(matrices: Matrices) -> Matrices:
    moved: dict[str, Any] = {key: value if value is None else value.cpu() for key, value in vars(matrices).items()}
    return Matrices(**moved)


NO_GRAMS = (
    "the profile holds no Gram matrices, which this needs; measure again with --keep-grams (keep_grams=True) "
    "or without --scores"
)


@dataclass
class BlockStats:
    """Statistics of one block.

    Attributes:
        attention: of the attention part; None where it is gone.
        ffn: of the FFN part, likewise.
        angle: mean cosine between the block's input and its output.
        curves: by score, the removal curves of the scores that need Gram matrices.
    """

    attention: PartStats | None
    ffn: PartStats | None
    angle: float
    curves: dict[str, BlockCurves] = field(default_factory=dict)

    def settled(self, keep_grams: bool) -> BlockStats:
        """On the CPU; the matrices where they are kept."""
        attention, ffn = (part and part.settled(keep_grams) for part in (self.attention, self.ffn))
        return BlockStats(attention, ffn, self.angle, self.curves)

    def part(self, name: str) -> PartStats:
        """Statistics of the "attention" or the "ffn" part, which has to be there."""
        stats = self.attention if name == "attention" else self.ffn
        assert stats is not None  # a part with linears was measured
        return stats
