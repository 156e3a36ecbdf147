"""Intervals of proportions: of one, of the difference of two paired ones, of their ratio.

A bootstrap has nothing to draw from where all rows agree: it says 0 to 0 for ten wrong answers of ten. These hold
there too.
Counts need not be whole numbers, so that they can say what more rows like these would give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float]


def z_of(level: float) -> float:
    """The two-sided quantile of the normal distribution: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson(hits: float, n: float, *, level: float = 0.95) -> Interval:
    """Score interval of a proportion of `hits` in `n`.

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927), 209.
    """
    return _score(hits, n, z_of(level))


@dataclass(frozen=True)
class Pairs:
    """Rows that two models answered, by who was right: `both`, only the `first`, only the `second`, or `neither`."""

    both: float
    first: float
    second: float
    neither: float

    @classmethod
    def of(cls, a: Sequence[float], b: Sequence[float]) -> Pairs:
        """Of outcomes 0 and 1 of the first model and of the second, row by row."""
        x, y = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
        return cls(int((x & y).sum()), int((x & ~y).sum()), int((~x & y).sum()), int((~x & ~y).sum()))

    def times(self, factor: float) -> Pairs:
        """So many times as many rows, in the same proportions."""
        return Pairs(self.both * factor, self.first * factor, self.second * factor, self.neither * factor)

    def difference(self, *, level: float = 0.95) -> Interval:
        """Interval of the first proportion minus the second: two Wilson intervals, joined by the rows' correlation.

        Source: Newcombe, Statistics in Medicine 17 (1998), 2635, method 10.
        """
        n = self.both + self.first + self.second + self.neither
        hits = self.both + self.first, self.both + self.second
        p, q = hits[0] / n, hits[1] / n
        (low_p, high_p), (low_q, high_q) = (wilson(x, n, level=level) for x in hits)
        phi = self._correlation(n)

        def reach(a: float, b: float) -> float:
            return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

        return p - q - reach(p - low_p, high_q - q), p - q + reach(high_p - p, q - low_q)

    def ratio(self, *, level: float = 0.95) -> Interval:
        """Interval of the first proportion over the second; (nan, nan) where the second was never right.

        Source: Bonett and Price, Confidence intervals for a ratio of binomial proportions based on paired data,
        Statistics in Medicine 25 (2006), 3039.
        """
        n = self.both + self.first + self.second  # rows that neither has right say nothing of the ratio
        x, y = self.both + self.first, self.both + self.second
        if not y:
            return math.nan, math.nan
        p, q = (x + 1) / (n + 2), (y + 1) / (n + 2)
        joint = math.sqrt((self.first + self.second + 2) / ((x + 1) * (y + 1)))
        z = z_of(level) * joint / (math.sqrt((1 - p) / (x + 1)) + math.sqrt((1 - q) / (y + 1)))
        (low_x, high_x), (low_y, high_y) = _score(x, n, z), _score(y, n, z)
        return low_x / high_y, high_x / low_y

    def _correlation(self, n: float) -> float:
        """φ of the two outcomes, drawn towards 0 where it is positive (Newcombe's continuity correction)."""
        margins = math.prod(
            (self.both + self.first, self.second + self.neither, self.both + self.second, self.first + self.neither)
        )
        if not margins:
            return 0.0
        joint = self.both * self.neither - self.first * self.second
        return (max(joint - n / 2, 0.0) if joint > 0 else joint) / math.sqrt(margins)


def _score(hits: float, n: float, z: float) -> Interval:
    share, more = hits / n, z * z / n
    middle, reach = share + more / 2, z * math.sqrt((share * (1 - share) + more / 4) / n)
    low, high = (middle - reach) / (1 + more), (middle + reach) / (1 + more)
    # exactly the ends, where rounding would miss them
    return 0.0 if hits == 0 else max(0.0, low), 1.0 if hits == n else min(1.0, high)
