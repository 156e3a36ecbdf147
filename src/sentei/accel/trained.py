"""What is trained in between cuts: all parameters of the blocks, or an adapter that is cut with the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from sentei.accel.moments import Tensors, carry, weights_of, without_moments
from sentei.accel.settings import Settings
from sentei.errors import InputError, unknown
from sentei.families import family_of
from sentei.plan import ModelShape, Plan
from sentei.recover.tune.adapters import ADAPTERS

if TYPE_CHECKING:
    from sentei.recover.tune.impact import Impact

FULL_RATE = 1e-4  # of full training between cuts; that of `tune`'s adapter of that name is for a whole model


def trained(settings: Settings, impact: Callable[[Any], Impact]) -> Trained:
    """The way of that name; `impact`: see `Adapted`."""
    if settings.train == "full":
        return Full(settings)
    from sentei.accel.adapters import Adapted

    return Adapted(settings, impact)


def check_trained(name: str) -> None:
    """Refuses what cannot be trained between cuts.

    Raises:
        InputError: unknown, or an adapter that is no effective weight.
    """
    from sentei.accel.adapters import SUITABLE

    known = ("full", *SUITABLE)
    if name in ADAPTERS and name not in known:
        raise InputError(f"adapter {name!r} is no effective weight, which a cut goes through; use {' or '.join(known)}")
    if name not in known:
        raise unknown("adapter", name, known)


def check_suits(name: str, shape: ModelShape) -> None:
    """Refuses what cannot be trained of a model.

    Raises:
        InputError: an adapter, and experts.
    """
    if name != "full" and any(block.experts for block in shape.blocks):
        raise InputError(f"train: {name!r} does not go through cuts of experts, which this model has; use full")


def rate_of(settings: Settings) -> float:
    """The highest learning rate."""
    own = FULL_RATE if settings.train == "full" else ADAPTERS[settings.train].learning_rate
    return own if settings.learning_rate is None else settings.learning_rate


class Trained(Protocol):
    """A way to train; its state is that of a `Trainer`, with what else makes the model."""

    base: str  # kind of the tensors that hold the weights of the blocks

    def start(self, model: Any) -> Tensors:
        """The state of a model that was cut and not yet trained."""
        ...

    def effective(self, model: Any, tensors: Mapping[str, Tensor]) -> Any:
        """The plain model of a state, from one that holds its `base` tensors."""
        ...

    def wrap(self, model: Any, tensors: Mapping[str, Tensor]) -> Any:
        """Such a model ready for a `Trainer`, which then loads the state."""
        ...

    def state(self, adapted: Any, tensors: Tensors) -> Tensors:
        """The state after training, from what `wrap` gave and the trainer's."""
        ...

    def plain(self, adapted: Any) -> Any:
        """The model as it is saved, measured and cut; `adapted` is used up."""
        ...

    def cut(self, tensors: Tensors, before: Any, after: Any, plan: Plan) -> Tensors:
        """The state after a cut; `before` and `after` are plain models."""
        ...


class Full:
    """All parameters of the blocks, in fp32 whatever the model is computed in."""

    base = "value"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def start(self, model: Any) -> Tensors:
        """See `Trained`."""
        return weights_of(model, "value")

    def effective(self, model: Any, tensors: Mapping[str, Tensor]) -> Any:
        """See `Trained`."""
        return model

    def wrap(self, model: Any, tensors: Mapping[str, Tensor]) -> Any:
        """See `Trained`."""
        model.requires_grad_(False)
        family_of(model.config).blocks(model).requires_grad_(True)
        return model

    def state(self, adapted: Any, tensors: Tensors) -> Tensors:
        """See `Trained`."""
        return tensors

    def plain(self, adapted: Any) -> Any:
        """See `Trained`."""
        adapted.requires_grad_(False)
        return adapted.eval()

    @torch.no_grad()
    def cut(self, tensors: Tensors, before: Any, after: Any, plan: Plan) -> Tensors:
        """See `Trained`."""
        found = carry(tensors, before, after, plan, self.settings.refitted)
        return without_moments(found) if self.settings.moments == "restart" else found
