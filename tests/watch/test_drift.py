"""Statistics of drift on synthetic embeddings: how often they err where nothing changed, and what they find."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sentei.recover.select.reference import Reference
from sentei.watch.capabilities import assign, beyond, moved, uncovered
from sentei.watch.distinct import apart, first_of_each
from sentei.watch.drift import Growth, benjamini_hochberg, classify, delong, growth, mmd
from sentei.watch.verdict import is_drift

WIDTH, TOPICS = 32, 6
CENTRES = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0][: TOPICS + 1]


def rows(rng: np.random.Generator, topics: np.ndarray) -> np.ndarray:
    """Unit vectors around the centres of topics; the last topic is in no reference."""
    found = CENTRES[topics] + rng.normal(0, 0.12, (len(topics), WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def sample(rng: np.random.Generator, count: int, shares: list[float] | None = None, new: float = 0.0) -> np.ndarray:
    fresh = round(new * count)
    topics = rng.choice(TOPICS, count - fresh, p=shares)
    return rows(rng, np.concatenate([topics, np.full(fresh, TOPICS)]))


def found(x: np.ndarray, y: np.ndarray) -> Growth:
    return growth(classify(x, y))


def test_unchanged_traffic_raises_no_alarm() -> None:
    rng = np.random.default_rng(1)
    drifts = mmds = aucs = 0
    for window in range(100):
        x, y = sample(rng, 200), sample(rng, 120)
        drifts += is_drift(found(x, y))
        mmds += mmd(x, y, permutations=99, seed=window).p <= 0.05
        aucs += classify(x, y).interval[0] > 0.55
    assert drifts == 0
    assert mmds <= 11, "binomial of 100 at 5 %: above 11 in 0.4 % of such tests"
    assert aucs <= 8


def test_alarms_of_capabilities_are_rare_together() -> None:
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(60):
        topics = np.arange(300) % TOPICS
        x, y = rows(rng, topics), sample(rng, 150, [1 / TOPICS] * TOPICS)
        reference = Reference.of(x, topics, "none", 0)
        then, now = assign(x, reference, topics), assign(y, reference)
        alarms += any(move.alarm for move in moved(x, y, then, now, TOPICS))
    assert alarms <= 8, "binomial of 60 at 5 %: above 8 in 0.2 % of such tests"


@pytest.mark.parametrize("new", [0.2, 1.0])
def test_a_new_topic_is_a_drift(new: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        x, y = sample(rng, 300), sample(rng, 150, new=new)
        classified = classify(x, y)
        grown = growth(classified)
        assert is_drift(grown) and grown.now >= 0.9 * min(new, 0.5) and grown.then <= 0.05
        assert mmd(x, y).p <= 0.01
        strangest = np.argsort(-classified.window)[:20]
        assert (strangest >= len(y) - round(new * len(y))).mean() >= 0.9, "the examples are those of the new topic"


def test_another_mix_of_the_same_topics_is_none() -> None:
    """Half of the topics vanish, the others double: what a pool has, in the shares that use happens to have."""
    rng = np.random.default_rng(4)
    for _ in range(10):
        x, y = sample(rng, 300), sample(rng, 300, [1 / 3] * 3 + [0.0] * 3)
        assert not is_drift(found(x, y)) and mmd(x, y).p <= 0.01, "another mix, clearly, but nothing new"


def test_a_topic_that_grows_tenfold_is_one_that_a_capability_covers() -> None:
    rng = np.random.default_rng(5)
    shares = [0.05, *[0.19] * 5]
    topics = rng.choice(TOPICS, 600, p=shares)
    x, y = rows(rng, topics), sample(rng, 300, [0.5, *[0.1] * 5])
    reference = Reference.of(x, topics, "none", 0)
    classified = classify(x, y)
    grown = growth(classified)
    assert is_drift(grown)
    then, now = assign(x, reference, topics), assign(y, reference)
    new, old = classified.window >= grown.least, classified.reference >= grown.least
    outside = beyond(then, now, TOPICS)[1]
    assert uncovered(new, old, then, now, outside).sum() <= 0.2 * new.sum()
    move = moved(x, y, then, now, TOPICS)[0]
    assert move.grew and abs(move.share_then - 0.05) < 0.03 and abs(move.share_now - 0.5) < 0.08
    y = sample(rng, 300, shares, new=0.4)
    classified = classify(x, y)
    new = classified.window >= growth(classified).least
    old = classified.reference >= growth(classified).least
    now = assign(y, reference)
    strange = uncovered(new, old, then, now, beyond(then, now, TOPICS)[1])
    assert strange[180:].sum() >= 0.9 * new[180:].sum(), "what no capability has"
    last = moved(x, y, then, now, TOPICS)[-1]
    assert last.cluster is None and last.grew


def test_mmd_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(7, 3)), rng.normal(1, 1, size=(5, 3))
    both = np.concatenate([x, y])
    distances = np.linalg.norm(both[:, None] - both, axis=2)
    width = np.sqrt(np.median(distances[np.triu_indices(12, 1)] ** 2))
    kernel = np.exp(-(distances**2) / (2 * width**2))
    first = sum(kernel[i, j] for i in range(7) for j in range(7) if i != j) / (7 * 6)
    second = sum(kernel[i, j] for i in range(7, 12) for j in range(7, 12) if i != j) / (5 * 4)
    across = sum(kernel[i, j] for i in range(7) for j in range(7, 12)) / (7 * 5)
    result = mmd(x, y, permutations=20)
    assert result.value == pytest.approx(first + second - 2 * across) and result.width == pytest.approx(width)
    assert 1 / 21 <= result.p <= 1 and result.rows == (7, 5)


def test_large_samples_are_drawn_from() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(50, 4))
    assert mmd(x, x, permutations=5, most=20).rows == (20, 20)


def test_delong_is_the_share_of_pairs() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, 5, 30).astype(float), rng.integers(1, 6, 20).astype(float)
    auc, (low, high) = delong(a, b)
    assert auc == pytest.approx(np.mean([(y > x) + 0.5 * (y == x) for x in a for y in b]))
    assert 0 <= low < auc < high <= 1
    covered = 0
    truth = stats.norm.cdf(1 / np.sqrt(2))
    for _ in range(300):
        low, high = delong(rng.normal(0, 1, 40), rng.normal(1, 1, 40))[1]
        covered += low <= truth <= high
    assert covered / 300 >= 0.91


def test_benjamini_hochberg() -> None:
    assert benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.5])).tolist() == pytest.approx(
        [0.04, 0.16 / 3, 0.16 / 3, 0.5]
    )
    assert benjamini_hochberg(np.array([])).tolist() == []


def test_requests_that_say_the_same_count_once() -> None:
    texts = [
        "Where is order 17?",
        "where is  order 4711?",
        "Where is my refund?",
        "Where is order 17?",
        "Where is order A17?",
    ]
    assert first_of_each(texts) == [0, 2, 4]
    vectors = np.array([[1, 0], [0.999, 0.0447], [0, 1]], dtype=np.float32)
    assert apart(vectors).tolist() == [0, 2]
