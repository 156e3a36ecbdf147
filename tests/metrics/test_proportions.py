from __future__ import annotations

import math

import numpy as np
import pytest

from sentei.metrics.proportions import Pairs, wilson


@pytest.mark.parametrize(
    ("hits", "n", "wanted"),
    [
        (81, 263, (0.2553, 0.3662)),  # Newcombe 1998, Statistics in Medicine 17, 857, table I, method 3
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_as_published(hits: int, n: int, wanted: tuple[float, float]) -> None:
    assert wilson(hits, n) == pytest.approx(wanted, abs=5e-5)
    low, high = wilson(n - hits, n)
    assert (1 - high, 1 - low) == pytest.approx(wanted, abs=5e-5)


def test_the_ends_are_in_the_interval_and_not_all_of_it() -> None:
    for n in (1, 3, 10, 1000):
        assert wilson(0, n)[0] == 0.0 < wilson(0, n)[1] < 1 and wilson(n, n)[1] == 1.0 > wilson(n, n)[0] > 0
    assert wilson(5, 10, level=0.99)[0] < wilson(5, 10)[0]


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [  # Newcombe 1998, Statistics in Medicine 17, 2635, table II, method 10
        (Pairs(36, 12, 2, 0), (0.0569, 0.3404)),
        (Pairs(54, 0, 0, 0), (-0.0664, 0.0664)),
        (Pairs(0, 54, 0, 0), (0.9061, 1.0)),
    ],
)
def test_paired_differences_as_published(pairs: Pairs, wanted: tuple[float, float]) -> None:
    assert pairs.difference() == pytest.approx(wanted, abs=2e-4)


def test_an_example_of_both_as_published() -> None:
    """Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014), 2850: airway hyper-responsiveness."""
    assert Pairs(1, 1, 7, 12).difference() == pytest.approx((-0.507, -0.026), abs=1e-3)
    assert Pairs(1, 1, 7, 12).ratio() == pytest.approx((0.067, 0.923), abs=1e-3)
    assert all(map(math.isnan, Pairs(0, 3, 0, 4).ratio()))


@pytest.mark.parametrize("n", [10, 40, 200])
@pytest.mark.parametrize("shares", [(1.0, 0.0, 0.0), (0.9, 0.1, 0.0), (0.6, 0.04, 0.02), (0.5, 0.2, 0.1)])
def test_they_cover_what_is_true(n: int, shares: tuple[float, float, float]) -> None:
    both, first, second = shares
    drawn = np.random.default_rng(0).multinomial(n, [*shares, max(0.0, 1 - sum(shares))], size=400)
    hits = {"difference": 0, "ratio": 0}
    truth = {"difference": first - second, "ratio": (both + first) / (both + second)}
    for row in drawn.tolist():
        for name, true in truth.items():
            low, high = getattr(Pairs(*row), name)()
            hits[name] += low - 1e-9 <= true <= high + 1e-9
    assert min(hits.values()) >= 0.92 * 400, hits


def test_pairs_are_counted_and_multiplied() -> None:
    pairs = Pairs.of([1.0, 1, 0, 0, 1], [1.0, 0, 1, 0, 1])
    assert pairs == Pairs(2, 1, 1, 1) and pairs.times(2) == Pairs(4, 2, 2, 2)
    low, high = Pairs.of([1.0] * 8 + [0.0] * 2, [1.0] * 8 + [0.0] * 2).difference()
    assert -0.3 < low < 0 < high < 0.3
