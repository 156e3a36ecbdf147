"""What a training has seen, and whether it goes on: it is stopped where it diverges, and where it gains no more."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from sentei.errors import InputError

DIVERGED = 1.0  # nats by which the held-out loss may exceed that before all training
# Training losses are of other rows at every step, and of long or short ones, so they cannot tell: where their mean over
# RECENT steps is ALARM nats above all before the last look, the held-out rows are looked at early.
ALARM, RECENT = 1.0, 8

Reason = Literal["finished", "early stop", "diverged"]


@dataclass
class History:
    """What training saw.

    Attributes:
        curve: one entry per evaluation: step, tokens so far, mean training loss since the last one, held-out loss, and
            what else is watched.
        losses: training loss of each step.
        stopped: why it ended; None while it goes on.
        note: what a person should know about the end.
    """

    curve: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    stopped: Reason | None = None
    note: str = ""

    @property
    def best(self) -> dict[str, float]:
        """The evaluation with the lowest held-out loss."""
        return min(self.curve, key=lambda point: point["heldout"])


class Guard:
    """Writes the history of a training and says when it ends.

    Args:
        patience: evaluations without a better held-out loss before an early stop; None: never.
        keeps_best: whether the best state is what a training ends with, which is said where it diverges.
    """

    def __init__(self, patience: int | None = 3, *, keeps_best: bool = True) -> None:
        self.history, self.patience, self.keeps_best = History(), patience, keeps_best

    def may_step(self, step: int, loss: float, norm: float) -> bool:
        """Whether loss and norm of the gradient are numbers; a step of others is not made and ends the training.

        Args:
            step: number of the step, the first is 0.
            loss: of its batch.
            norm: of the gradient.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            return True
        what = "gradient" if math.isfinite(loss) else "loss"
        self._diverged(f"the {what} is not a number at step {step + 1}")
        return False

    def is_alarmed(self) -> bool:
        """Whether training losses are so much higher than before that the held-out rows must be asked now."""
        losses, looked = self.history.losses, int(self.history.curve[-1]["step"])
        if len(losses) < max(looked, RECENT) + RECENT:
            return False
        ends = range(RECENT, max(looked, RECENT) + 1)
        highest = max(sum(losses[end - RECENT : end]) for end in ends) / RECENT
        return sum(losses[-RECENT:]) / RECENT - highest > ALARM

    def look(self, step: int, tokens: int, heldout: float, watch: Callable[[], dict[str, float]]) -> bool:
        """Notes an evaluation after `step` steps; whether the state that was looked at is one to keep.

        Raises:
            InputError: the first held-out loss is not a number.
        """
        history = self.history
        if not math.isfinite(heldout):
            if not history.curve:
                raise InputError(
                    "the held-out loss is not a number before any training: the model is broken, or float16 overflows; "
                    "evaluate the model, or use --dtype bfloat16"
                )
            self._diverged(f"the held-out loss is not a number after step {step}")
            return False
        recent = history.losses[int(history.curve[-1]["step"]) if history.curve else 0 :]
        point = {"step": step, "tokens": tokens, "heldout": heldout, **watch()}
        if recent:
            point["train"] = sum(recent) / len(recent)
        history.curve.append(point)
        rise = heldout - history.curve[0]["heldout"]
        if rise > DIVERGED:
            self._diverged(f"the held-out loss has risen by {rise:.1f} nats after step {step}")
            return False
        since = len(history.curve) - 1 - history.curve.index(history.best)
        if self.patience is not None and since >= self.patience:
            history.stopped = "early stop"
            history.note = f"the held-out loss has not fallen for {since} evaluations"
        return True

    def _diverged(self, what: str) -> None:
        best = f"kept is the best state before, after {self.history.best['tokens']:,.0f} tokens; "
        self.history.stopped = "diverged"
        self.history.note = (
            f"training diverged: {what}; {best if self.keeps_best else ''}lower --learning-rate, or use bfloat16 "
            "instead of float16"
        )
