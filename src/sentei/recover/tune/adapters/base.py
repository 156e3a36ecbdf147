"""What an adapter is: the contract, and which linears there are to adapt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sentei.families import family_of

if TYPE_CHECKING:
    from sentei.recover.tune.impact import Impact


@dataclass(frozen=True)
class Context:
    """What an adapter may ask for.

    Attributes:
        impact: makes or reads the gradients of the linears; called only by adapters that choose by them.
        seed: of what is drawn.
        criterion: what counts as gain, for adapters that choose by gradients; see `sentei.recover.tune.allocate`.
        rank_worth: of its components against its entries; see there.
    """

    impact: Callable[[], Impact]
    seed: int = 0
    criterion: str = "gradient"
    rank_worth: float = 1.0


@dataclass(frozen=True)
class Adapter:
    """A named way to choose what is trained.

    Attributes:
        learning_rate: where to start from, for Adam.
        wrap: `wrap(model, budget, context)` freezes the model, but for about `budget` parameters, and returns it in the
            form to train: a PeftModel whose trainable parameters are fp32 (it contains `model`, which is changed), or,
            for "full", the model. What the budget became is `count(trainable(...))`.
        line: one line for people, with the source.
        budgeted: whether the budget matters.
        sparse: whether it has sparse entries, which a learned mask can move.
    """

    name: str
    learning_rate: float
    wrap: Callable[[Any, int, Context], nn.Module]
    line: str
    budgeted: bool = True
    sparse: bool = False


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear of the decoder blocks, by its full name; parts that were removed have none."""
    inside = {id(module) for module in family_of(model.config).blocks(model).modules()}
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside}


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name, in a fixed order."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def count(parameters: dict[str, Tensor]) -> int:
    """How many numbers there are in them."""
    return sum(value.numel() for value in parameters.values())


def uniform_rank(modules: dict[str, nn.Linear], budget: int) -> int:
    """The largest rank, the same for all modules, that fits into a budget of parameters; at least 1."""
    return max(1, budget // sum(m.in_features + m.out_features for m in modules.values()))
