"""Capability by capability: how much of the traffic it gets now, and whether something else is asked of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sentei.recover.select.reference import Reference
from sentei.watch.drift import LEVEL, Mmd, Vectors, benjamini_hochberg, mmd

EDGE = 0.05  # share of a capability's reference rows that counts as beyond it
COVERED = 1 / 3  # share of a capability's reference rows that look new, from which it covers what does
LEAST_SHARE = 0.02  # change of a share from which it matters
INSIDE = 30  # requests of a capability, then and now, from which its inside is compared
INSIDE_ROWS, PERMUTATIONS = 400, 1999  # of that comparison; many, for p-values are divided among capabilities


@dataclass(frozen=True)
class Assigned:
    """Where rows belong.

    Attributes:
        capability: the cluster with the nearest mean, int64 [n].
        near: cosine to that mean [n].
    """

    capability: NDArray[np.int64]
    near: NDArray[np.float64]


@dataclass(frozen=True)
class Moved:
    """What became of a capability, or of what is beyond all of them.

    Attributes:
        cluster: its number; None: beyond all.
        then, now: requests of the reference and of the window.
        p: of the share, two-sided (Fisher's exact test), adjusted over all tests of capabilities.
        inside: MMD of its own requests, where there are enough; None elsewhere.
        inside_p: adjusted.
        share_then, share_now: of all requests.
    """

    cluster: int | None
    then: int
    now: int
    share_then: float
    share_now: float
    p: float
    inside: Mmd | None
    inside_p: float | None

    @property
    def shifted(self) -> bool:
        """Whether its share changed, clearly and by enough to matter."""
        return self.p <= LEVEL and abs(self.share_now - self.share_then) >= LEAST_SHARE

    @property
    def grew(self) -> bool:
        """Whether it gets more of the traffic than before."""
        return self.shifted and self.share_now > self.share_then

    @property
    def changed_inside(self) -> bool:
        """Whether other things are asked of it."""
        return self.inside_p is not None and self.inside_p <= LEVEL

    @property
    def alarm(self) -> bool:
        """Whether there is something to say."""
        return self.shifted or self.changed_inside


def assign(vectors: Vectors, reference: Reference, own: NDArray[np.int64] | None = None) -> Assigned:
    """The capability of each row: that with the nearest mean.

    Args:
        vectors: unit rows [n, d].
        reference: with the sums of the clusters.
        own: the cluster that each row was counted into [n], for rows of the reference: they are left out of its mean,
            or they would be nearer to it than any new request.
    """
    sums = reference.sums.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(sums, axis=1), 1e-12)
    near = vectors @ (sums / lengths[:, None]).T
    if own is not None:
        left = sums[own] - vectors
        near[np.arange(len(own)), own] = (left * vectors).sum(axis=1) / np.maximum(np.linalg.norm(left, axis=1), 1e-12)
    best = near.argmax(axis=1)
    return Assigned(best.astype(np.int64), near[np.arange(len(best)), best])


def beyond(then: Assigned, now: Assigned, clusters: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows of the reference and of the window are farther from their capability than `EDGE` of the reference."""
    edges = np.full(clusters, -np.inf)
    for k in range(clusters):
        if (members := then.near[then.capability == k]).size:
            edges[k] = np.quantile(members, EDGE)
    return then.near < edges[then.capability], now.near < edges[now.capability]


def uncovered(
    new: NDArray[np.bool_], old: NDArray[np.bool_], then: Assigned, now: Assigned, outside: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which new requests are like no capability, [m].

    The nearest mean alone says little: texts in a language that the embedder hardly knows are near to some mean, too. A
    capability covers new requests only where the classifier takes a good part of its own rows for new as well.

    Args:
        new: rows of the window that the classifier finds new [m].
        old: rows of the reference that it would call new, too [n].
        then: where the rows of the reference belong.
        now: where those of the window do.
        outside: rows of the window that are beyond all capabilities [m].
    """
    clusters = int(max(then.capability.max(), now.capability.max())) + 1
    rows = np.bincount(then.capability, minlength=clusters)
    alike = np.bincount(then.capability[old], minlength=clusters) >= np.maximum(1, COVERED * rows)
    result: NDArray[np.bool_] = new & (outside | ~alike[now.capability])
    return result


def moved(x: Vectors, y: Vectors, then: Assigned, now: Assigned, clusters: int, *, seed: int = 0) -> list[Moved]:
    """Every capability, and at the end what is beyond all of them.

    Args:
        x: the reference, unit rows [n, d].
        y: the window, unit rows [m, d].
        then: where the rows of the reference belong.
        now: where those of the window do.
        clusters: how many capabilities there are.
        seed: of permutations.

    Returns:
        One per cluster, then one with `cluster` None. The p-values of all shares and insides are adjusted together.
    """
    n, m = len(x), len(y)
    pairs = [(int((then.capability == k).sum()), int((now.capability == k).sum())) for k in range(clusters)]
    outside = beyond(then, now, clusters)
    pairs.append((int(outside[0].sum()), int(outside[1].sum())))
    shares = [float(stats.fisher_exact([[a, n - a], [b, m - b]])[1]) for a, b in pairs]
    insides = {
        k: mmd(x[then.capability == k], y[now.capability == k], permutations=PERMUTATIONS, most=INSIDE_ROWS, seed=seed)
        for k in range(clusters)
        if min(pairs[k]) >= INSIDE
    }
    adjusted = benjamini_hochberg(np.array([*shares, *(inside.p for inside in insides.values())]))
    inner = dict(zip(insides, adjusted[len(pairs) :].tolist(), strict=True))
    return [
        Moved(k if k < clusters else None, a, b, a / n, b / m, float(adjusted[k]), insides.get(k), inner.get(k))
        for k, (a, b) in enumerate(pairs)
    ]
