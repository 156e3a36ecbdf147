"""What a score is: the contract, and the simple case in which losses add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from sentei.measure.statistics import PartStats

Scale = Literal["nats", "output", "none"]


class Remover(Protocol):
    """A part from which units are taken, one set of inputs after another."""

    def losses(self, units: Tensor) -> Tensor:
        """Loss increase of removing each unit now, `[k]`. `units`: `[k, size]` inputs of the row-pruned matrix."""

    def remove(self, units: Tensor) -> float:
        """Removes all of `units` (`[k, size]`) together and returns the loss increase."""

    def order(self) -> tuple[Tensor, Tensor]:
        """Removes all inputs one by one, the cheapest first: which, `[n]`, and the loss increase of each, `[n]`."""


@dataclass(frozen=True)
class Score:
    """A named way to tell how much a unit matters.

    Attributes:
        start: makes the remover of a part; gets the part's statistics and a seeded generator.
        scale: what the losses measure: `nats` of the model's loss, squared error at the part's `output`, or `none` of
            these: they order units, and their sums predict nothing.
        needs_gradients: whether the profile's gradient pass is needed.
        needs_gram: whether `start` reads the part's matrices: then `measure` makes its curves while it has them.
        line: one line for people, with the source.
    """

    name: str
    start: Callable[[PartStats, torch.Generator], Remover]
    scale: Scale
    line: str
    needs_gradients: bool = False
    needs_gram: bool = False


@dataclass
class Additive:
    """A remover whose losses do not depend on what went before. `per_input`: `[n]`."""

    per_input: Tensor

    def losses(self, units: Tensor) -> Tensor:
        """Sum over each unit's inputs."""
        return self.per_input[units].sum(1)

    def remove(self, units: Tensor) -> float:
        """Sum over all units."""
        return self.losses(units).sum().item()

    def order(self) -> tuple[Tensor, Tensor]:
        """All inputs in the order of what they lose alone."""
        inputs = torch.arange(len(self.per_input), device=self.per_input.device)
        losses, order = self.losses(inputs[:, None]).sort(stable=True)
        return order, losses
