"""What can be chosen of pruning and training in turns. No torch here: recipes read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Targets = Literal["linear", "cosine", "ratio"]
Slices = Literal["linear", "constant", "cosine"]
Select = Literal["none", "damage"]
Moments = Literal["carry", "restart"]
Refitted = Literal["keep", "scale", "drop"]


@dataclass(frozen=True)
class Settings:
    """How often to cut, what to train in between, and from what.

    Attributes:
        stages: cuts, each followed by training.
        tokens: that are trained on in all stages together, prompts included.
        targets: sizes after each stage; see `sentei.accel.schedule.targets`.
        slices: shares of the tokens; see `sentei.accel.schedule.shares`.
        select: "none": the pool in random order; "damage": at each stage from each capability as much as the cut
            damaged it; see `sentei.accel.feed.ByDamage`.
        train: "full" (all parameters of the blocks), or an adapter of effective weights, such as "lora+sparse".
        budget_params: trainable parameters of an adapter: "1%" of the block params, a share, or a number.
        loss: a name in `sentei.recover.tune.loss.LOSSES` that needs no scoring of the pool beforehand.
        learning_rate: the highest; default: that of `sentei.accel.schedule.RATES`.
        rewarm: steps after each cut but the first in which the learning rate rises again from nothing.
        moments: whether Adam's moments are cut with the weights, or begin anew after every cut.
        refitted: what becomes of the first moment of matrices that a compensation refitted: kept, taken times the
            cosine between the matrix before and after, or dropped.
        batch_tokens: of a step, padding included; default: a hundredth of the tokens, from 256 to 2,048: Adam's first
            steps cost more than they give, and few large ones are nothing but first steps.
        length: tokens at which a row is cut.
        epochs: how often the pool may be read.
        calibration: tokens that each stage's importance and refit are measured on.
        gradient_tokens: of them, for scores that need gradients.
        window: tokens of a window of these.
        seed: of order, held-out rows and starts.
    """

    stages: int = 10
    tokens: int = 2_000_000
    targets: Targets = "linear"
    slices: Slices = "linear"
    select: Select = "none"
    train: str = "full"
    budget_params: str | float = "1%"
    loss: str = "kl"
    learning_rate: float | None = None
    rewarm: int = 0
    moments: Moments = "carry"
    refitted: Refitted = "drop"
    batch_tokens: int | None = None
    length: int = 512
    epochs: int = 1
    calibration: int = 4096
    gradient_tokens: int = 1024
    window: int = 256
    seed: int = 0

    @property
    def step_tokens(self) -> int:
        """Of a step."""
        return max(256, min(2048, self.tokens // 100)) if self.batch_tokens is None else self.batch_tokens
