"""Rows that cannot be used: counted by reason, the first ones named."""

from __future__ import annotations

import re
from collections import Counter

from sentei.data.rows import refuse

NAMED = 3  # rows that are named
REASONS = 5  # that are listed
_NUMBER = re.compile(r"(?<![\w-])\d+\b")


class Skipped:
    """Counts bad rows; called with the place of each and what is wrong there, as the rest of a sentence.

    Args:
        strict: refuse the first one.

    Attributes:
        count: how many there were.
        examples: the first ones, with their places.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.examples: list[str] = []
        self._reasons: Counter[str] = Counter()

    def __call__(self, place: str, why: str) -> None:
        """Counts one row.

        Raises:
            InputError: `strict` is on.
        """
        if self.strict:
            refuse(place, why)
        if len(self.examples) < NAMED:
            self.examples.append(f"{place} {why}")
        self._reasons[_NUMBER.sub("N", why.partition("; ")[0])] += 1  # the same fault in another column is the same

    @property
    def count(self) -> int:
        """Rows so far."""
        return self._reasons.total()

    def reasons(self) -> str:
        """The most frequent reasons, each with its number of rows."""
        listed = [f"{count:,} × {why}" for why, count in self._reasons.most_common(REASONS)]
        more = len(self._reasons) - len(listed)
        return "; ".join([*listed, *([f"{more} more reasons"] if more else [])])

    def lines(self, what: str) -> list[str]:
        """How many rows `what` ("are skipped"), why, and the first of them; nothing where there are none."""
        if not self.count:
            return []
        return [f"{self.count:,} rows {what}: {self.reasons()}", *(f"  {example}" for example in self.examples)]
