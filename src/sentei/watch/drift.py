"""Whether two samples of embeddings differ, by how much, and which rows make the difference.

No library that is light and maintained tests embeddings, so these are written out, from the papers that they name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sentei.metrics.proportions import z_of

GROWTH = 3.0  # times as much of the traffic as of the reference: from here on a region is something else
PARTS = (0.05, 0.1, 0.2, 0.5, 1.0)  # of the window, the most foreign first, that are looked at
LEVEL = 0.05  # of all tests
FOLDS = 5
MMD_ROWS = 1000  # of each sample in a kernel matrix

Vectors = NDArray[np.float32]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Mmd:
    """Unbiased MMD², its p-value, and how both were found."""

    value: float
    p: float
    width: float
    permutations: int
    rows: tuple[int, int]


def mmd(x: Vectors, y: Vectors, *, permutations: int = 499, most: int = MMD_ROWS, seed: int = 0) -> Mmd:
    """Maximum mean discrepancy between two samples, tested by permuting the pooled rows.

    `MMD²ᵤ = Σ_{i≠j} k(x_i, x_j) / (n(n-1)) + Σ_{i≠j} k(y_i, y_j) / (m(m-1)) - 2 Σ k(x_i, y_j) / (nm)` with
    `k(a, b) = exp(-‖a - b‖² / (2σ²))` and σ the median distance of the pooled rows: Gretton et al., JMLR 13 (2012),
    723, lemma 6 and section 8. The p-value is `(1 + permutations that reach the value) / (1 + permutations)`.

    Args:
        x: [n, d], at least two rows.
        y: [m, d], likewise.
        permutations: of the pooled rows.
        most: rows of each that enter the kernel matrix; of more, so many are drawn.
        seed: of what is drawn.
    """
    generator = np.random.default_rng(seed)
    x, y = (drawn(sample, most, generator) for sample in (x, y))
    n, m = len(x), len(y)
    both = np.concatenate([x, y]).astype(np.float64)
    squares = (both * both).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * both @ both.T, 0.0)
    width = float(np.median(distances[np.triu_indices(n + m, 1)]))
    kernel = np.exp(-distances / (2 * max(width, 1e-12)))
    np.fill_diagonal(kernel, 0.0)
    first = np.zeros((n + m, permutations + 1))
    first[:n, 0] = 1.0
    for column in range(1, permutations + 1):
        first[generator.permutation(n + m)[:n], column] = 1.0
    within = (first * (kernel @ first)).sum(axis=0)
    across = kernel.sum(axis=1) @ first - within
    others = kernel.sum() - 2 * across - within
    values = within / (n * (n - 1)) + others / (m * (m - 1)) - 2 * across / (n * m)
    reached = int((values[1:] >= values[0] - 1e-12).sum())
    return Mmd(float(values[0]), (1 + reached) / (1 + permutations), math.sqrt(width), permutations, (n, m))


@dataclass(frozen=True)
class Classified:
    """A classifier that tells two samples apart.

    Attributes:
        reference, window: log-odds of being of the window, of each row, by a classifier that did not see it.
        auc: the chance that a row of the window has more than one of the reference; 0.5 where nothing differs.
        interval: of it, 95 %.
    """

    reference: Scores
    window: Scores
    auc: float
    interval: tuple[float, float]


def classify(x: Vectors, y: Vectors, *, seed: int = 0) -> Classified:
    """Logistic regression on embeddings, cross-validated: x [n, d] is the reference, y [m, d] the window.

    A classifier two-sample test (Lopez-Paz and Oquab, ICLR 2017), with the interval of its AUC from DeLong et al.,
    Biometrics 44 (1988), 837. Both samples weigh the same, so log-odds are those of `density of y : density of x`.

    Raises:
        ValueError: fewer rows than folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    both, of_y = np.concatenate([x, y]), np.repeat([0, 1], [len(x), len(y)])
    scores = np.empty(len(both))
    for seen, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(both, of_y):
        model = LogisticRegression(class_weight="balanced", max_iter=200).fit(both[seen], of_y[seen])
        scores[held] = model.decision_function(both[held])
    a, b = scores[: len(x)], scores[len(x) :]
    auc, interval = delong(a, b)
    return Classified(a, b, auc, interval)


def delong(a: Scores, b: Scores, *, level: float = 0.95) -> tuple[float, tuple[float, float]]:
    """The chance that a value of b is above one of a (half of the ties), and its interval; at least two of each."""
    n, m = len(a), len(b)
    ranks = stats.rankdata(np.concatenate([a, b]))
    above = (ranks[n:] - stats.rankdata(b)) / n  # of each of b, the share of a below it
    below = 1 - (ranks[:n] - stats.rankdata(a)) / m
    auc = float(above.mean())
    half = z_of(level) * math.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n)
    return auc, (max(0.0, auc - half), min(1.0, auc + half))


@dataclass(frozen=True)
class Growth:
    """The part of the window in which it is densest against the reference.

    Attributes:
        p: that this part holds more than `GROWTH` times its share of the reference, corrected for the parts looked at.
        now, then: the shares of the window and of the reference that it holds.
        least: log-odds from which a row is in it.
    """

    p: float
    now: float
    then: float
    least: float


def growth(found: Classified, *, times: float = GROWTH) -> Growth:
    """Whether a part of the window is over `times` as frequent there as in the reference.

    A test for any difference is of no use where the reference is a pool: traffic never has the mix of a pool, and with
    enough requests every difference is clear. This asks for one that matters. Parts are what held-out scores put first;
    of w rows of the window and r of the reference in a part, w is binomial of w + r with the chance `m·times /
    (m·times + n)` where the rates differ by just `times` (Przyborowski and Wilenski, Biometrika 31 (1940), 313); the
    smallest p-value is multiplied by the number of parts (Bonferroni).
    """
    n, m = len(found.reference), len(found.window)
    best = Growth(1.0, 0.0, 0.0, math.inf)
    for part in PARTS:
        least = float(np.quantile(found.window, 1 - part, method="higher"))
        w, r = int((found.window >= least).sum()), int((found.reference >= least).sum())
        p = min(1.0, len(PARTS) * float(stats.binom.sf(w - 1, w + r, m * times / (m * times + n))))
        if p < best.p:
            best = Growth(p, w / m, r / n, least)
    return best


def drawn(sample: Vectors, most: int, generator: np.random.Generator) -> Vectors:
    """All rows, or `most` of them at random."""
    return sample if len(sample) <= most else sample[np.sort(generator.permutation(len(sample))[:most])]


def benjamini_hochberg(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values, adjusted so that those below a level are false in that share at most: JRSS B 57 (1995), 289."""
    order = np.argsort(p)
    raised = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(raised[::-1])[::-1])
    return adjusted
