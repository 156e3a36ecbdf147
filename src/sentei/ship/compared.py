"""The statistics of parity: the largest deviations of an engine from the reference, and what is made of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sentei.errors import InputError
from sentei.files import finite
from sentei.ship.engines import LogProbs
from sentei.ship.likeness import Judge, Likeness

# Largest |Δ log p| that is rounding: twice what was measured on SmolLM2-135M (docs/export.md). By what the engine
# computes in, and by what the export rounded the weights to where that loses something; both add up. Where something is
# rounded that finds what is grossly wrong only, and `Judge` decides.
COMPUTED = {"F32": 1e-3, "F16": 0.25, "BF16": 4.0, "Q8_0": 4.0, "INT8": 4.0}
ROUNDED = {"F16": 0.025, "BF16": 0.25, "Q8_0": 4.0, "INT8": 4.0}


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


@dataclass(frozen=True)
class Parity:
    """The outcome of parity. `texts`: whose they were; `decode` fed the end of every window token by token.

    `likeness`: where something is rounded; None where nothing is, or where a tolerance was given.
    """

    engine: str
    version: str
    texts: str
    windows: list[int]
    vocabulary: int
    dtype: str
    tolerance: float
    prefill: Compared
    decode: Compared
    likeness: Likeness | None = None

    @property
    def delta(self) -> float:
        """The larger of both deviations."""
        return max(self.prefill.delta, self.decode.delta)

    @property
    def passed(self) -> bool:
        """Within the tolerance, like the rounded model, and the same likeliest word wherever there is no tie."""
        alike = self.likeness is None or self.likeness.passed
        return alike and self.delta <= self.tolerance and not self.prefill.flips and not self.decode.flips

    def facts(self) -> dict[str, Any]:
        """For export.json."""
        values = asdict(self)
        for name in ("prefill", "decode"):
            values[name]["delta"] = finite(values[name]["delta"])
        if self.likeness is not None:
            found = asdict(self.likeness)
            values["likeness"] = {key: finite(value) for key, value in found.items()}
        return values | {"passed": self.passed}

    def verdict(self) -> str:
        """One line."""
        positions = f"{self.prefill.positions:,} tokens × {self.vocabulary:,} words"
        line = f"max |Δ log p| {self.delta:.1e} over {positions}, {self.engine} {self.version}"
        line += f"; {self.likeness}" if self.likeness else ""
        if self.passed:
            return f"parity: passed, {line}"
        name, worse = max((("prefill", self.prefill), ("decode", self.decode)), key=lambda pair: pair[1].delta)
        where = f"worst at text {worse.worst['text']}, token {worse.worst['token_index']}, word {worse.worst['token']}"
        flips = self.prefill.flips + self.decode.flips
        return (
            f"parity: FAILED, {line}; tolerance {self.tolerance:.0e}; {where} ({name}); {flips} likeliest words differ"
        )


class Comparison:
    """Counts what an engine said of some windows.

    Args:
        tolerance: largest |Δ log p| that passes.
        judge: where something is rounded.
    """

    def __init__(self, tolerance: float, judge: Judge | None) -> None:
        self._tolerance, self._judge = tolerance, judge
        self._prefill, self._decode = Compared(), Compared()
        self._vocabulary = 0

    def add(
        self, text: int, ids: list[int], start: int, *, wanted: LogProbs, prefill: LogProbs, decode: LogProbs
    ) -> None:
        """Counts a window.

        Args:
            text: number of the text that it begins with.
            ids: its T tokens.
            start: the first that was fed by itself.
            wanted: log-probabilities of the reference, [T, V].
            prefill: the engine's, [T, V].
            decode: the engine's, [T - start, V].
        """
        self._vocabulary = wanted.shape[1]
        said, close = self._judge.said(ids, wanted) if self._judge else (wanted, self._tolerance)
        for compared, first, got in ((self._prefill, 0, prefill), (self._decode, start, decode)):
            compared.add(said[first:], got, text=text, first=first, tolerance=close)
            if self._judge:
                self._judge.add(said[first:], got)

    def parity(self, *, engine: str, version: str, texts: str, windows: list[int], dtype: str) -> Parity:
        """The outcome over all windows; the arguments are those of `Parity`."""
        return Parity(
            engine=engine,
            version=version,
            texts=texts,
            windows=windows,
            vocabulary=self._vocabulary,
            dtype=dtype,
            tolerance=self._tolerance,
            prefill=self._prefill,
            decode=self._decode,
            likeness=self._judge.likeness() if self._judge else None,
        )


def rounding_tolerance(computed: str, facts: dict[str, Any]) -> float:
    """Largest |Δ log p| that rounding explains: in an engine that computes in `computed`, and in an export's weights.

    Raises:
        InputError: a format for which no such figure is known.
    """
    if computed not in COMPUTED or not (facts["lossless"] or facts["dtype"] in ROUNDED):
        raise InputError(
            f"what {facts['dtype']} rounds away is no question of parity; compare quality with sentei eval, or pass "
            "--tolerance (largest |Δ log p|)"
        )
    return COMPUTED[computed] + (0.0 if facts["lossless"] else ROUNDED[facts["dtype"]])
