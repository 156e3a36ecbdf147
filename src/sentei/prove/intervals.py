"""Seeded bootstrap intervals of means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]
_CHUNK = 1 << 22  # draws held at a time: 16 MB


def bootstrap(values: Sequence[float], *, samples: int = 4000, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of the mean of `values`, by drawing them again with replacement `samples` times.

    Returns:
        (low, high); (nan, nan) where a value is not finite.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    data = np.asarray(values, dtype=np.float64)
    if not data.size:
        raise ValueError("no values to draw from")
    if not np.isfinite(data).all():
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // data.size)
    means = np.concatenate(
        [
            data[generator.integers(0, data.size, (min(rows, samples - start), data.size), dtype=np.int32)].mean(1)
            for start in range(0, samples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(a: Sequence[float], b: Sequence[float], **options: float) -> Interval:
    """Interval of mean(a) - mean(b), where a[i] and b[i] belong to the same row, so rows are drawn as pairs.

    Raises:
        ValueError: the lengths differ.
    """
    if len(a) != len(b):
        raise ValueError(f"paired values must be equally many, got {len(a)} and {len(b)}")
    return bootstrap(np.subtract(a, b).tolist(), **options)  # type: ignore[arg-type]
