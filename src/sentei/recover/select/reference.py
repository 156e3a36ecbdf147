"""What the pool looked like to the embedder, kept with a selection: later requests are compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sentei.errors import InputError, one_line

FILE = "reference.safetensors"
MOST = 4096  # rows that are kept: 6 MB at 384 dimensions
_ARRAYS = ("rows", "labels", "vectors", "sums", "sizes")


@dataclass(frozen=True)
class Reference:
    """Rows of a pool as an embedder saw them.

    Attributes:
        embedder: its name, as `embed` takes it.
        rows: their positions in the pool, ascending, int64 [n]; all of them, or `MOST` drawn with the seed.
        labels: their clusters, int64 [n].
        vectors: unit rows, float32 [n, d].
        sums: of the vectors of all rows of each cluster, float32 [K, d].
        sizes: rows of each cluster, int64 [K].
    """

    embedder: str
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    vectors: NDArray[np.float32]
    sums: NDArray[np.float32]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, vectors: NDArray[np.float32], labels: NDArray[np.int64], embedder: str, seed: int) -> Reference:
        """Of all rows of a pool: unit `vectors` [N, d] and their clusters [N], 0 to K - 1, none empty."""
        sizes = np.bincount(labels)
        sums = np.stack([vectors[labels == k].sum(axis=0, dtype=np.float64) for k in range(len(sizes))])
        rows = np.arange(len(vectors))
        if len(rows) > MOST:
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST])
        kept = rows.astype(np.int64)
        return cls(embedder, kept, labels[kept], vectors[kept], sums.astype(np.float32), sizes.astype(np.int64))

    def save(self, directory: Path) -> None:
        """Writes `reference.safetensors`."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        save_file(arrays, directory / FILE, metadata={"embedder": self.embedder})


def read_reference(directory: Path, rows: int, clusters: int) -> Reference | None:
    """The reference of a selection of so many rows and clusters; None: an earlier version of sentei made it.

    Raises:
        InputError: it is corrupt, or not that of the selection.
    """
    path = directory / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            embedder = (file.metadata() or {}).get("embedder")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is truncated or corrupt ({one_line(error)}); select again") from error
    count, width = found["vectors"].shape if getattr(found.get("vectors"), "ndim", 0) == 2 else (0, 0)
    expected = {"rows": (count,), "labels": (count,), "vectors": (count, width)}
    expected |= {"sums": (clusters, width), "sizes": (clusters,)}
    for name, shape in expected.items():
        got = found[name].shape if name in found else "nothing"
        if got != shape or not count:
            raise InputError(f"{path}: {name}: expected shape {list(shape)}, got {got}; select again")
        if not np.isfinite(found[name]).all():
            raise InputError(f"{path}: {name} has values that are not finite; select again")
    if not (np.diff(found["rows"], prepend=-1) > 0).all() or found["rows"][-1] >= rows or found["sizes"].sum() != rows:
        raise InputError(f"{path} is not that of a pool of {rows:,} rows; select again")
    if not (found["labels"].min() >= 0 and found["labels"].max() < clusters):
        raise InputError(f"{path}: labels: expected 0 to {clusters - 1}, the clusters of selection.json; select again")
    if embedder is None:
        raise InputError(f"{path} does not name its embedder; select again")
    return Reference(embedder, *(found[name] for name in _ARRAYS))
