"""Token windows: what `measure` and `cut` read, and how much each token counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sentei.data.batches import fill

Where = tuple[slice, slice]


@dataclass(frozen=True)
class Windows:
    """Token windows, and how much each token counts.

    Attributes:
        ids: `[windows, length]`, int64. Rows of a task are padded at the end and sorted by length.
        weights: `[windows, length]`, fp32: how much each token counts in statistics and fits, 0 for padding; None: 1.
        answers: `[windows, length]`, bool: the tokens whose loss the gradient pass follows; None: all.
    """

    ids: Tensor
    weights: Tensor | None = None
    answers: Tensor | None = None

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each window up to its last that counts."""
        length = self.ids.shape[1]
        if self.weights is None:
            return [length] * len(self.ids)
        places = torch.arange(1, length + 1)
        return [int(n) for n in (places * (self.weights.cpu() > 0)).amax(1).clamp_min(2)]

    @cached_property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(self.lengths)

    def batches(self) -> Iterator[Where]:
        """Indices of batches of neighbours; eight or more where windows allow."""
        for rows in fill(range(len(self.ids)), self.lengths, most=max(1, len(self.ids) // 8)):
            yield slice(rows[0], rows[-1] + 1), slice(0, max(self.lengths[row] for row in rows))

    def weight(self, where: Where, device: Any = "cpu") -> Tensor | None:
        """Weights of a batch, `[tokens]`; None where every token counts alike."""
        return None if self.weights is None else self.weights[where].flatten().to(device)

    def first(self, tokens: int) -> Windows:
        """At most so many tokens, at least one window: the first windows, or every k-th where lengths differ."""
        length = self.ids.shape[1]
        if self.weights is None:
            return Windows(self.ids[: max(1, tokens // length)])
        return self.pick(spread(self, tokens)) if tokens < self.tokens else self

    def pick(self, rows: Tensor) -> Windows:
        """Some of the windows, by their indices."""
        chosen = (None if value is None else value[rows] for value in (self.weights, self.answers))
        return Windows(self.ids[rows], *chosen)


def spread(windows: Windows, tokens: int) -> Tensor:
    """Indices of windows, evenly spread, that hold about so many tokens; ascending."""
    count = len(windows.ids)
    share = min(1.0, tokens / max(windows.tokens, 1))
    return torch.linspace(0, count - 1, max(1, round(count * share))).round().long().unique()
