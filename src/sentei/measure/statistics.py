"""What one block does for some data: the statistics that every score and allocation is a function of."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class PartStats:
    """Statistics of one attention or FFN part, on the CPU; `n` counts the inputs of its row-pruned matrix (o, down).

    Attributes:
        weight: `[hidden, n]` of the row-pruned matrix, as in the model.
        gram: `[n, n]` mean over tokens of `x xᵀ`, x the matrix's inputs.
        mean: `[n]` mean over tokens of x.
        norm: `[n]` sum of squared weights of each input's group: its rows and columns in all matrices of the part.
        energy: mean over tokens of the squared norm of the residual stream behind the part.
        input_gram: `[hidden, hidden]` mean of `x xᵀ` of the part's first linears (q, k, v; gate, up).
        output_grad: `[hidden, hidden]` mean of `g gᵀ`, g the gradient of a token's loss at the part's output; or None.
        taylor: `[n]` sum of `|weight · gradient|` over each input's group: an order, no growth of a loss; or None.
        ranks: by matrix, `[K + 1]` growth of the loss (nats per token) when it keeps rank 0 … K; empty without
            gradients.
    """

    weight: Tensor
    gram: Tensor
    mean: Tensor
    norm: Tensor
    energy: float
    input_gram: Tensor
    output_grad: Tensor | None = None
    taylor: Tensor | None = None
    ranks: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class BlockStats:
    """Statistics of one block; `angle` is the mean cosine between its input and its output."""

    attention: PartStats | None
    ffn: PartStats | None
    angle: float

    def part(self, name: str) -> PartStats:
        """Statistics of the "attention" or the "ffn" part, which has to be there."""
        stats = self.attention if name == "attention" else self.ffn
        assert stats is not None  # a part with linears was measured
        return stats
