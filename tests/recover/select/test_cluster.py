from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score as agreement

from sentei.errors import InputError
from sentei.recover.select import cluster as module
from sentei.recover.select.cluster import choose_clusters, cluster


@pytest.fixture(autouse=True)
def fewer_landmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code, quicker; p stops growing at 1,000 rows already."""
    monkeypatch.setattr(module, "LANDMARKS", 250)


def planted(
    rows: int, groups: int, *, noise: float = 0.5, dimensions: int = 64, seed: int = 0, uneven: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit rows around random directions; noise is the length of the deviation from a direction of length 1."""
    rng = np.random.default_rng(seed)
    shares = np.arange(1, groups + 1) if uneven else np.ones(groups)
    truth = rng.choice(groups, size=rows, p=shares / shares.sum())
    centres = rng.standard_normal((groups, dimensions))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    x = centres[truth] + rng.standard_normal((rows, dimensions)) * noise / np.sqrt(dimensions)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), truth


@pytest.mark.parametrize(("rows", "groups"), [(300, 4), (1200, 8), (6000, 12)])
def test_planted_groups_are_found_and_counted(rows: int, groups: int) -> None:
    x, truth = planted(rows, groups)
    found = cluster(x)
    assert found.clusters == groups and found.rule["reason"] == "gap"
    assert agreement(truth, found.labels) > 0.99


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_uneven_groups_with_much_noise_are_found_when_the_number_is_known(seed: int) -> None:
    x, truth = planted(3000, 6, noise=1.0, seed=seed, uneven=True)
    assert agreement(truth, cluster(x, clusters=6, seed=seed).labels) > 0.9


def test_diffusion_follows_a_shape_that_k_means_cuts() -> None:
    rng = np.random.default_rng(0)
    turn, inner = rng.uniform(0, 2 * np.pi, 3000), np.arange(3000) % 2
    x = np.stack([np.cos(turn), np.sin(turn)], axis=1) * np.where(inner, 0.3, 1.0)[:, None]
    x += rng.normal(scale=0.03, size=x.shape)
    assert agreement(inner, cluster(x.astype(np.float32), clusters=2).labels) > 0.95


def test_without_a_gap_the_number_follows_the_rows_and_no_cluster_takes_all() -> None:
    x = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
    found = cluster(x / np.linalg.norm(x, axis=1, keepdims=True))
    assert found.rule["reason"] == "cube root of the rows" and found.rule["usual"] == 13
    assert found.clusters >= 8 and max(found.rule["sizes"]) < 0.4 * len(x)


def test_the_partition_does_not_depend_on_the_order_of_the_rows() -> None:
    x = np.random.default_rng(3).standard_normal((1500, 16)).astype(np.float32)  # no structure: the hardest case
    order = np.random.default_rng(4).permutation(len(x))
    found, again = cluster(x), cluster(x[order])
    assert (found.labels[order] == again.labels).all()
    assert (found.coordinates[order] == again.coordinates).all()


def test_the_same_seed_gives_the_same_bits_and_another_one_other_landmarks() -> None:
    x, _ = planted(2000, 5, noise=2.0)
    found, again, other = cluster(x, seed=1), cluster(x, seed=1), cluster(x, seed=2)
    assert (found.labels == again.labels).all() and (found.coordinates == again.coordinates).all()
    assert found.rule == again.rule != other.rule


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 30, 63, 64, 65, 100, 600])
def test_small_pools(rows: int) -> None:
    x, _ = planted(rows, 3)
    found = cluster(x)
    assert found.labels.shape == (rows,) and found.labels.dtype == np.int32
    assert found.coordinates.shape == (rows, 2) and found.coordinates.dtype == np.float32
    assert np.isfinite(found.coordinates).all()
    sizes = np.bincount(found.labels, minlength=found.clusters)
    assert sizes.tolist() == found.rule["sizes"] == sorted(sizes, reverse=True) and sizes.min() > 0
    assert json.loads(json.dumps(found.rule, allow_nan=False)) == found.rule


@pytest.mark.parametrize("rows", [4, 100, 5000])
def test_rows_that_are_all_alike_are_one_cluster(rows: int) -> None:
    x = np.tile(np.array([[0.6, 0.8, 0.0]], dtype=np.float32), (rows, 1))
    assert cluster(x).clusters == 1
    assert cluster(x, clusters=3).clusters == 1


def test_duplicates_stay_together() -> None:
    x, _ = planted(400, 4, noise=1.5)
    doubled = cluster(np.concatenate([x, x]))
    assert (doubled.labels[:400] == doubled.labels[400:]).all()


def test_a_handful_of_strays_is_no_cluster() -> None:
    x, truth = planted(3000, 5, noise=0.5)
    strays = planted(3, 1, noise=0.1, seed=9)[0]
    found = cluster(np.concatenate([x, strays]), clusters=6)
    assert min(found.rule["sizes"]) > 3
    assert agreement(truth, found.labels[:3000]) > 0.7


def test_separate_pieces_do_not_mix_with_the_constant_direction() -> None:
    x = np.repeat(np.eye(5, dtype=np.float32), 40, axis=0)  # five pieces, nothing between them
    x = x + np.random.default_rng(0).normal(scale=1e-3, size=x.shape).astype(np.float32)
    assert agreement(np.repeat(np.arange(5), 40), cluster(x, clusters=5).labels) == 1.0


def test_memory_is_linear_in_the_rows() -> None:
    def peak(rows: int) -> float:
        x, _ = planted(rows, 6, dimensions=16)
        tracemalloc.start()
        cluster(x, clusters=6)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found / 2**20

    small, large = peak(4000), peak(16_000)
    assert large < 100 and large < 4 * small  # one dense 16,000 × 16,000 matrix alone is 977 MB in fp32


def test_the_rule_looks_for_gaps_near_the_usual_number_only() -> None:
    lambdas = np.concatenate([np.zeros(2), np.linspace(0.4, 0.6, 100)])
    number, rule = choose_clusters(lambdas, 8000)  # two languages, say: too coarse for a budget
    assert (number, rule["reason"], rule["range"]) == (20, "cube root of the rows", [6, 60])
    lambdas = np.concatenate([np.zeros(9), np.linspace(0.4, 0.6, 100)])
    assert choose_clusters(lambdas, 8000)[0] == 9
    assert choose_clusters(lambdas, 8000, asked=12)[0] == 12
    assert choose_clusters(np.linspace(0, 1, 900), 10**9)[0] == module.MOST


@pytest.mark.parametrize(
    ("x", "clusters", "words"),
    [
        (np.zeros((0, 4)), None, r"shape \[0, 4\], expected \[rows, dimensions\]"),
        (np.zeros(4), None, r"shape \[4\]"),
        (np.full((3, 2), np.nan), None, "row 0 is not finite"),
        (np.eye(3), 4, "4 clusters are asked of 3 rows; expected 1 to 3"),
        (np.eye(3), 0, "0 clusters"),
    ],
)
def test_what_cannot_be_clustered_is_named(x: NDArray[np.float32], clusters: int | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        cluster(x, clusters=clusters)
