"""Seeded bootstrap intervals of means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
_CHUNK = 1 << 22  # draws held at a time: 16 MB


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
    if len(a) != len(b):
        raise ValueError(f"paired values must be equally many, got {len(a)} and {len(b)}")
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
    if len(a) != len(b):
        raise ValueError(f"paired values must be equally many, got {len(a)} and {len(b)}")
    data = np.stack([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)], axis=1)
    if not _usable(data):
        return float("nan"), float("nan")
    means = _means(data, samples, seed)
    if not means[:, 1].all():
        return float("nan"), float("nan")
    return _ends(means[:, 0] / means[:, 1], level)


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
