"""Intervals of means, of their differences and ratios: of proportions where all values are 0 or 1, else by bootstrap.

`mean_interval`, `difference_interval` and `ratio_interval` choose. Bootstraps are seeded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sentei.metrics.proportions import Interval, Pairs, wilson

__all__ = [
    "Interval",
    "bootstrap",
    "difference_interval",
    "mean_interval",
    "mean_of",
    "paired_bootstrap",
    "proportions",
    "ratio_bootstrap",
    "ratio_interval",
]

_CHUNK = 1 << 22  # draws held at a time: 16 MB


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Interval of the mean: Wilson's where all values are 0 or 1, else a bootstrap over rows.

    Returns:
        (low, high); (nan, nan) where a value is not finite.
    """
    return wilson(sum(values), len(values), level=level) if proportions(values) else bootstrap(values, level=level)


def difference_interval(a: Sequence[float], b: Sequence[float], *, level: float = 0.95) -> Interval:
    """Interval of mean(a) - mean(b), rows paired: Newcombe's where all values are 0 or 1, else a bootstrap.

    Raises:
        ValueError: the lengths differ.
    """
    if _paired(a, b) and proportions(a) and proportions(b):
        return Pairs.of(a, b).difference(level=level)
    return paired_bootstrap(a, b, level=level)


def ratio_interval(a: Sequence[float], b: Sequence[float], *, level: float = 0.95, seed: int = 0) -> Interval:
    """Interval of mean(a) / mean(b), rows paired: Bonett and Price's where all values are 0 or 1, else a bootstrap.

    Returns:
        (low, high); (nan, nan) where a value is not finite, or b can be all 0.

    Raises:
        ValueError: the lengths differ.
    """
    if _paired(a, b) and proportions(a) and proportions(b):
        return Pairs.of(a, b).ratio(level=level)
    return ratio_bootstrap(a, b, level=level, seed=seed)


def mean_of(values: Sequence[float], intervals: Sequence[Interval | None]) -> Interval | None:
    """Interval of the mean of independent estimates, from theirs; None where one has none.

    The distances to the ends are added in squares, on each side (MOVER: Zou and Donner, Statistics in Medicine 27
    (2008), 1693).
    """
    known = [interval for interval in intervals if interval is not None]
    if not values or len(known) < len(values):
        return None
    middle = sum(values) / len(values)
    below = math.hypot(*(value - low for value, (low, _) in zip(values, known, strict=True)))
    above = math.hypot(*(high - value for value, (_, high) in zip(values, known, strict=True)))
    return middle - below / len(values), middle + above / len(values)


def proportions(values: Sequence[float]) -> bool:
    """Whether there are values, and all are 0 or 1."""
    data = np.asarray(values, dtype=np.float64)
    return bool(data.size) and bool(((data == 0) | (data == 1)).all())


def bootstrap(values: Sequence[float], *, samples: int = 4000, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of the mean of `values`, by drawing them again with replacement `samples` times.

    Returns:
        (low, high); (nan, nan) where a value is not finite.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    data = np.asarray(values, dtype=np.float64)
    return _ends(_means(data, samples, seed), level) if _usable(data) else (float("nan"), float("nan"))


def paired_bootstrap(a: Sequence[float], b: Sequence[float], **options: float) -> Interval:
    """Interval of mean(a) - mean(b), where a[i] and b[i] belong to the same row, so rows are drawn as pairs.

    Raises:
        ValueError: the lengths differ.
    """
    _paired(a, b)
    return bootstrap(np.subtract(a, b).tolist(), **options)  # type: ignore[arg-type]


def ratio_bootstrap(
    a: Sequence[float], b: Sequence[float], *, samples: int = 4000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of mean(a) / mean(b), where a[i] and b[i] belong to the same row, so rows are drawn as pairs.

    Returns:
        (low, high); (nan, nan) where a value is not finite, or a draw of b has mean 0.

    Raises:
        ValueError: the lengths differ.
    """
    _paired(a, b)
    data = np.stack([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)], axis=1)
    if not _usable(data):
        return float("nan"), float("nan")
    means = _means(data, samples, seed)
    if not means[:, 1].all():
        return float("nan"), float("nan")
    return _ends(means[:, 0] / means[:, 1], level)


def _paired(a: Sequence[float], b: Sequence[float]) -> bool:
    if len(a) != len(b):
        raise ValueError(f"paired values must be equally many, got {len(a)} and {len(b)}")
    return True


def _usable(data: NDArray[np.float64]) -> bool:
    if not data.size:
        raise ValueError("no values to draw from")
    return bool(np.isfinite(data).all())


def _means(data: NDArray[np.float64], samples: int, seed: int) -> NDArray[np.float64]:
    """Means over rows of `data` [n, …], drawn again `samples` times: [samples, …]."""
    generator = np.random.default_rng(seed)
    rows, count = max(1, _CHUNK // data.size), len(data)
    return np.concatenate(
        [
            data[generator.integers(0, count, (min(rows, samples - start), count), dtype=np.int32)].mean(1)
            for start in range(0, samples, rows)
        ]
    )


def _ends(means: NDArray[np.float64], level: float) -> Interval:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
