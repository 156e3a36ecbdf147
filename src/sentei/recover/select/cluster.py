"""Clusters of instructions (S2RIC of PASER, arXiv 2502.12594) in linear memory and time: spectral, over landmarks.

The published code holds several dense N × N matrices (21.6 GB each for 52,002 rows). Here every row is tied to its few
nearest of p landmarks (Chen and Cai, AAAI 2011), and everything after that is p × p:

    Z [N, p]           Gaussian weights to the nearest landmarks; each row sums to one, `SPARSE` entries are not zero
    Ẑ = Z Λ^(-1/2)     Λ the column sums. ẐẐᵀ is an affinity between rows of which every row sums to one, so
                       L = I - ẐẐᵀ is its symmetric normalised Laplacian, already normalised
    ẐᵀẐ = V (I - λ) Vᵀ the same λ in p × p; ψ = Ẑ V (I - λ)^(-1/2) are the eigenvectors of L
    exp(-tλ) ψ         the diffusion coordinates; the constant one, λ = 0, is left out
    V exp(-tλ) Vᵀ      diffusion between landmarks. It is exp(-t) exp(t ẐᵀẐ), so no entry is negative, and it can be
                       factorised as it is, without splitting signs: ≈ H Hᵀ with H [p, K] ≥ 0
    argmax ẐH          the cluster of each row

With this factorisation two seeds agreed to an adjusted Rand index of 0.54 on 2,000, 13,000 and 52,002 alpaca
instructions (mean over three diffusion times), with k-means on the same coordinates to 0.47, with NMF of their positive
and negative parts to 0.42; its clusters were also the most cohesive of the three each time.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray

from sentei.errors import InputError
from sentei.progress import Progress

LANDMARKS, SPARSE = 1000, 5  # landmarks at most; how many of them a row is tied to
MOST = 64  # clusters that the rule chooses at most
_GAP, _FLOOR = 2.0, 0.01  # what counts as a gap between two eigenvalues, and what both are raised by
_DAMPED = 3.0  # t λ of the first coordinate that no cluster stands for
_CHUNK = 2048  # rows whose distances to all landmarks are held at a time

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Clustering:
    """What `cluster` found.

    Attributes:
        labels: int32 [N], 0 is the largest cluster.
        coordinates: float32 [N, 2], for a picture.
        clusters: how many there are.
        rule: what the rule for their number saw, for JSON.
    """

    labels: NDArray[np.int32]
    coordinates: NDArray[np.float32]
    clusters: int
    rule: dict[str, Any]


def cluster(
    embeddings: NDArray[np.float32], *, clusters: int | None = None, seed: int = 0, progress: Progress | None = None
) -> Clustering:
    """Groups rows by meaning.

    The rows are brought into an order of their own first, so the partition does not depend on the order of the pool.
    A cluster with fewer than `N / (20 K)` rows is dissolved: its rows go to the nearest mean of those that stay.

    Args:
        embeddings: [N, d], unit rows.
        clusters: how many; by default `choose_clusters` decides. Fewer come out where fewer can be told apart.
        seed: of the landmarks and of the first guess.
        progress: told of the four steps.

    Raises:
        InputError: no rows, values that are not finite, or a number of clusters outside 1 … N.
    """
    rows = len(embeddings)
    if embeddings.ndim != 2 or not rows:
        raise InputError(f"embeddings have shape {list(embeddings.shape)}, expected [rows, dimensions] with rows")
    if clusters is not None and not 1 <= clusters <= rows:
        raise InputError(f"{clusters} clusters are asked of {rows} rows; expected 1 to {rows}")
    if not np.isfinite(embeddings).all():
        wrong = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
        raise InputError(f"the embedding of row {wrong} is not finite; use another embedding model")
    order = np.lexsort(embeddings.T[:4])
    x = np.ascontiguousarray(embeddings[order], dtype=np.float32)
    with (progress or Progress()).stage("cluster", total=4, unit="steps") as bar:
        landmarks = _landmarks(x, seed)
        bar.advance()
        z, masses = _graph(x, landmarks)
        bar.advance()
        lambdas, vectors = _spectrum(z, masses)
        count, rule = choose_clusters(lambdas, rows, clusters)
        time = _DAMPED / max(lambdas[min(count, len(lambdas) - 1)], _FLOOR)
        memberships, error = _factorise(lambdas, vectors, masses, count, time, seed)
        bar.advance()
        found = _dissolve(x, np.asarray(z @ memberships).argmax(axis=1), rows // (20 * count))
        places = _coordinates(z, lambdas, vectors, masses, count, time)
        bar.advance()
    labels, coordinates = np.empty(rows, dtype=np.int32), np.empty((rows, 2), dtype=np.float32)
    labels[order], coordinates[order] = found, places
    sizes = np.bincount(labels)
    rule |= {
        "clusters": len(sizes),
        "sizes": sizes.tolist(),
        "landmarks": len(landmarks),
        "diffusion_time": float(time),
        "nmf_error": error,
    }
    return Clustering(labels, coordinates, len(sizes), rule)


def choose_clusters(lambdas: Matrix, rows: int, asked: int | None = None) -> tuple[int, dict[str, Any]]:
    """The number of clusters, from the eigenvalues of the Laplacian, ascending, and the number of rows.

    "The number that minimises the NMF error", as published, is no rule: that error only falls. This one: the usual
    number is the cube root of the rows (13 of 2,000, 37 of 52,002), at most 64. Between a third of it and three times
    it (at most 64) the largest gap `(λ_k + 0.01) / (λ_(k-1) + 0.01)` decides if it is at least 2: then k groups hang
    together much better than k + 1 would. Instructions rarely have such a gap (alpaca: at most 1.2 there), and the
    usual number is taken. There are never more clusters than landmarks that differ.

    Returns:
        The number, and what the rule saw.
    """
    usual = min(MOST, max(1, round(rows ** (1 / 3))))
    low, high = max(2, usual // 3), min(MOST, 3 * usual, len(lambdas) - 1)
    gaps = [(float((lambdas[k] + _FLOOR) / (lambdas[k - 1] + _FLOOR)), k) for k in range(low, high + 1)]
    gap, at = max(gaps, key=lambda pair: (pair[0], -pair[1]), default=(0.0, 0))
    clear = gap >= _GAP
    number, reason = (asked, "asked for") if asked else (at, "gap") if clear else (usual, "cube root of the rows")
    return min(number, len(lambdas)), {
        "reason": reason,
        "range": [low, high],
        "usual": usual,
        "largest_gap": {"ratio": gap, "clusters": at},
        "eigenvalues": [round(float(value), 4) for value in lambdas[: MOST + 1]],
    }


def _landmarks(x: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """[p, d], all different; all rows themselves where there are few."""
    number = min(LANDMARKS, max(len(x) // 4, min(len(x), 64)))
    points = x
    if number < len(x):
        from sklearn.cluster import MiniBatchKMeans

        means = MiniBatchKMeans(
            number, init="random", n_init=1, max_iter=5, batch_size=4096, max_no_improvement=None, random_state=seed
        )
        points = means.fit(x).cluster_centers_
    return np.unique(np.round(points, 5), axis=0).astype(np.float32)


def _graph(x: NDArray[np.float32], landmarks: NDArray[np.float32]) -> tuple[scipy.sparse.csr_matrix, Matrix]:
    """Ẑ [N, p], and Λ / N, the share of the rows that hangs on each landmark [p]."""
    rows, count, near = len(x), len(landmarks), min(SPARSE, len(landmarks))
    indices, distances = np.empty((rows, near), dtype=np.int64), np.empty((rows, near))
    norms = (landmarks * landmarks).sum(axis=1)
    for start in range(0, rows, _CHUNK):
        chunk = x[start : start + _CHUNK]
        squared = (chunk * chunk).sum(axis=1, keepdims=True) - 2 * chunk @ landmarks.T + norms
        nearest = np.argpartition(squared, near - 1, axis=1)[:, :near]
        indices[start : start + _CHUNK] = nearest
        distances[start : start + _CHUNK] = np.take_along_axis(squared, nearest, axis=1)
    width = max(float(distances.mean()), 1e-12)
    weights = np.exp((distances.min(axis=1, keepdims=True) - distances) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    ends = np.arange(0, rows * near + 1, near)
    z = scipy.sparse.csr_matrix((weights.ravel(), indices.ravel(), ends), shape=(rows, count))
    sums = np.asarray(z.sum(axis=0)).ravel()
    return z @ scipy.sparse.diags(np.where(sums > 0, 1, 0) / np.sqrt(np.maximum(sums, 1e-12))), sums / rows


def _spectrum(z: scipy.sparse.csr_matrix, masses: Matrix) -> tuple[Matrix, Matrix]:
    """λ [p], ascending, and V [p, p]; the first is the constant one, also where the graph falls into pieces."""
    gram = (z.T @ z).toarray()
    constant = np.sqrt(masses)
    # raises the constant direction above all others with eigenvalue 1, which it would mix with
    values, vectors = scipy.linalg.eigh(gram + np.outer(constant, constant))
    lambdas = np.clip(1 - values[::-1], 0.0, 1.0)
    return lambdas, vectors[:, ::-1]


def _factorise(
    lambdas: Matrix, vectors: Matrix, masses: Matrix, count: int, time: float, seed: int
) -> tuple[Matrix, float]:
    """H [p, K] ≥ 0 with HHᵀ ≈ V exp(-tλ) Vᵀ, and the relative error that is left.

    Multiplicative updates of symmetric NMF (Ding, He and Simon, SDM 2005), from k-means on the diffusion coordinates.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    heat = np.maximum((vectors * np.exp(-time * lambdas)) @ vectors.T, 0.0)
    roots = np.sqrt(masses)[:, None]
    places = vectors[:, 1:count] * np.exp(-time * lambdas[1:count]) / np.maximum(roots, 1e-12)
    guess = np.zeros(len(heat), dtype=np.int64)
    if count > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different places than asked for: fewer clusters
            guess = KMeans(count, n_init=4, random_state=seed).fit_predict(places, sample_weight=masses)
    h = np.where(guess[:, None] == np.arange(count), 1.0, 0.1) * roots
    h *= np.sqrt((h * (heat @ h)).sum() / np.square(h.T @ h).sum())
    size, error = np.square(heat).sum(), np.inf
    for _ in range(30):
        for _ in range(10):
            h *= 0.5 + 0.5 * (heat @ h) / np.maximum(h @ (h.T @ h), 1e-30)
        before, error = error, float(size - 2 * (h * (heat @ h)).sum() + np.square(h.T @ h).sum()) / size
        if before - error < 1e-5:
            break
    return h, float(np.sqrt(max(error, 0.0)))


def _dissolve(x: NDArray[np.float32], labels: NDArray[np.int64], least: int) -> NDArray[np.int64]:
    """Labels by size, the largest first, without empty and tiny clusters."""
    sizes = np.bincount(labels)
    kept = np.argsort(-sizes, kind="stable")[: max(1, int((sizes > max(least - 1, 0)).sum()))]
    means = np.stack([x[labels == k].mean(axis=0) for k in kept])
    lost = ~np.isin(labels, kept)
    renamed = np.zeros(len(sizes), dtype=np.int64)
    renamed[kept] = np.arange(len(kept))
    result: NDArray[np.int64] = renamed[labels]
    result[lost] = ((x[lost, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    final = np.argsort(np.argsort(-np.bincount(result, minlength=len(kept)), kind="stable"), kind="stable")
    return final[result]


def _coordinates(
    z: scipy.sparse.csr_matrix, lambdas: Matrix, vectors: Matrix, masses: Matrix, count: int, time: float
) -> Matrix:
    """Places on the map [N, 2]: t-SNE of the landmarks' diffusion coordinates, and each row between its landmarks.

    Two diffusion coordinates alone would show the two most remote clusters, and all others on one heap.
    """
    roots = np.sqrt(masses)
    used = slice(1, max(count, 4))
    places = vectors[:, used] * np.exp(-time * lambdas[used]) / np.maximum(roots, 1e-12)[:, None]
    if len(places) < 5:  # too few for t-SNE: the coordinates themselves
        flat = np.zeros((len(places), 2))
        flat[:, : places.shape[1]] = places[:, :2]
    else:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits

        map_of = TSNE(2, perplexity=min(30.0, (len(places) - 1) / 3), init="pca", max_iter=500, random_state=0)
        with threadpool_limits(1):  # its sums depend on the number of threads and on chance
            flat = map_of.fit_transform(places)
    weights = (z @ scipy.sparse.diags(roots)).power(
        3
    )  # the nearest landmark counts most, or all would meet in the middle
    return weights @ flat / np.asarray(weights.sum(axis=1))
