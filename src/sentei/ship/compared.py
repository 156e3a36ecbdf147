"""The largest deviations of an engine from the reference, and where the likeliest words differ."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sentei.errors import InputError
from sentei.ship.engines import LogProbs


@dataclass
class Compared:
    """What was found over some positions.

    Attributes:
        positions: how many.
        delta: largest |Δ log p| over the vocabulary; infinite where the engine gave no number.
        worst: where that was: text (its number), token_index, token (its id).
        flips: positions where the likeliest word differs although the reference has no tie.
        ties: positions where the two likeliest words of what the engine should say are too close to tell.
    """

    positions: int = 0
    delta: float = 0.0
    worst: dict[str, int] = field(default_factory=dict)
    flips: int = 0
    ties: int = 0

    def add(
        self,
        wanted: LogProbs,
        got: LogProbs,
        *,
        text: int,
        first: int,
        tolerance: float,
    ) -> None:
        """Counts rows [n, V] of one text, for the prefixes that end with token `first` and the ones after it.

        Args:
            wanted: what the engine should say.
            got: the engine's.
            text: number of the text.
            first: its token.
            tolerance: half of what two words must be apart to be told from each other.
        """
        if wanted.shape != got.shape:
            raise InputError(
                f"the engine gave log-probabilities {list(got.shape)}, expected {list(wanted.shape)} (positions × "
                "words); export and model do not belong together"
            )
        delta = np.abs(wanted - got)
        delta[~np.isfinite(delta)] = np.inf
        row, token = divmod(int(delta.argmax()), delta.shape[1])
        if not self.positions or delta[row, token] > self.delta:
            self.delta = float(delta[row, token])
            self.worst = {"text": text, "token_index": first + row, "token": token}
        second, top = np.partition(wanted, -2, axis=1)[:, -2:].T
        tie = top - second < 2 * tolerance
        self.positions += len(wanted)
        self.ties += int(tie.sum())
        self.flips += int((~tie & (wanted.argmax(1) != got.argmax(1))).sum())
