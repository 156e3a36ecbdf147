from __future__ import annotations

import numpy as np
import pytest

from sentei.metrics import intervals
from sentei.metrics.intervals import (
    bootstrap,
    difference_interval,
    mean_interval,
    mean_of,
    paired_bootstrap,
    ratio_bootstrap,
    ratio_interval,
)


def test_it_agrees_with_the_normal_approximation_and_is_seeded() -> None:
    values = (np.random.default_rng(0).random(800) < 0.3).astype(float).tolist()
    low, high = bootstrap(values)
    width = 1.96 * np.std(values) / np.sqrt(len(values))
    assert low == pytest.approx(np.mean(values) - width, abs=0.004)
    assert high == pytest.approx(np.mean(values) + width, abs=0.004)
    assert bootstrap(values) == (low, high) != bootstrap(values, seed=1)


def test_chunks_do_not_change_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [float(i % 7) for i in range(50)]
    whole = bootstrap(values)
    monkeypatch.setattr(intervals, "_CHUNK", 120)
    assert bootstrap(values) == whole


def test_pairs_are_narrower_where_rows_go_together() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 5, 300)
    other = base + 0.5 + rng.normal(0, 0.1, 300)
    low, high = paired_bootstrap(other.tolist(), base.tolist())
    assert 0.45 < low < 0.5 < high < 0.55
    with pytest.raises(ValueError, match="equally many"):
        paired_bootstrap([1.0], [1.0, 2.0])


def test_a_broken_value_has_no_interval() -> None:
    assert np.isnan(bootstrap([1.0, float("nan")])).all()
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_the_ratio_of_means_of_pairs() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(1, 9, 400)
    low, high = ratio_bootstrap((0.4 * base + rng.normal(0, 0.1, 400)).tolist(), base.tolist())
    assert 0.395 < low < 0.4 < high < 0.405, "much narrower than the means themselves"
    assert ratio_bootstrap([1.0, 1.0], [2.0, 2.0]) == (0.5, 0.5)
    # Fieller's interval, by the delta method: sd of (a − r·b) / mean(b) / √n
    a, b = rng.normal(3, 1, 500), rng.normal(5, 1, 500)
    ratio = a.mean() / b.mean()
    width = 1.96 * (a - ratio * b).std() / b.mean() / np.sqrt(500)
    assert ratio_bootstrap(a.tolist(), b.tolist()) == pytest.approx((ratio - width, ratio + width), abs=0.003)


def test_a_ratio_that_is_none() -> None:
    assert np.isnan(ratio_bootstrap([1.0, 2.0], [0.0, 0.0])).all()
    assert np.isnan(ratio_bootstrap([1.0, float("nan")], [1.0, 1.0])).all()
    with pytest.raises(ValueError, match="equally many"):
        ratio_bootstrap([1.0], [1.0, 2.0])


def test_right_and_wrong_get_intervals_of_proportions_and_all_else_a_bootstrap() -> None:
    assert mean_interval([0.0] * 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert difference_interval([1.0] * 10, [1.0] * 10) == pytest.approx((-0.2775, 0.2775), abs=1e-4)
    low, high = ratio_interval([1.0] * 10, [1.0] * 10)
    assert low < 0.85 and high > 1.15
    assert mean_interval([0.5, 1.0, 0.0]) == bootstrap([0.5, 1.0, 0.0])
    assert difference_interval([0.5, 1.0], [0.0, 1.0]) == paired_bootstrap([0.5, 1.0], [0.0, 1.0])
    assert ratio_interval([0.5, 1.0], [0.7, 1.0]) == ratio_bootstrap([0.5, 1.0], [0.7, 1.0])
    assert np.isnan(mean_interval([1.0, float("nan")])).all()
    with pytest.raises(ValueError, match="equally many"):
        difference_interval([1.0], [1.0, 0.0])


def test_the_mean_of_estimates() -> None:
    assert mean_of([0.5, 0.7], [(0.4, 0.6), (0.6, 0.8)]) == pytest.approx((0.6 - 0.0707, 0.6 + 0.0707), abs=1e-4)
    assert mean_of([0.0], [(0.0, 0.3)]) == (0.0, 0.3), "the ends need not be alike"
    assert mean_of([0.5, 0.7], [(0.4, 0.6), None]) is None and mean_of([], []) is None
