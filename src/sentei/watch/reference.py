"""What requests are compared with: the pool that a run's selection read, and the damage that is left in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentei.data.pools import PoolRow, read_pool
from sentei.errors import InputError
from sentei.files import hash_file
from sentei.recover.select.about import read_about, read_manifest
from sentei.recover.select.reference import FILE, Reference, read_reference
from sentei.recover.select.selection import POOL
from sentei.report.format_recovery import Capabilities
from sentei.schema import read


@dataclass(frozen=True)
class Known:
    """What a run knows.

    Attributes:
        reference: vectors of the pool.
        rows: the pool.
        names: of its clusters, the capabilities, K.
        typical: a row of each, or none.
        damage: what is left of the damage of each, nats per token, NaN where nothing is known, [K].
        measured: where the damage is from, in words.
        hash: sha256 of the file of the vectors.
    """

    reference: Reference
    rows: list[PoolRow]
    names: list[str]
    typical: list[str]
    damage: NDArray[np.float64]
    measured: str
    hash: str

    @property
    def has_system(self) -> bool:
        """Whether rows of the pool have system prompts; else those of requests are not compared."""
        return any(turn.role == "system" for row in self.rows for turn in row.turns)


def read_known(run: str | Path) -> Known:
    """Reads a run with recovery, or a selection.

    Raises:
        InputError: it is neither, or of a version of sentei that stored no vectors.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run} is no directory; give the --out of `sentei run` with recovery, or of `sentei select`")
    select, compare = _stage(run, "select"), _stage(run, "compare")
    if (run / "selection.json").is_file():
        select = run
    if select is None:
        raise InputError(
            f"{run} holds no selection, whose pool requests are compared with; give a finished run of a recipe with a "
            "section recover, or the --out of `sentei select`"
        )
    about = read_about(select)
    names, rows = about["clusters"]["names"], about["pool"]["rows"]
    reference = read_reference(select, rows, len(names))
    if reference is None:
        raise InputError(
            f"{select} has no {FILE}: an earlier version of sentei made it; run or select again into another --out"
        )
    pool = read_pool(select / POOL, format=about["pool"]["format"]).rows
    if len(pool) != rows:
        raise InputError(
            f"{select / POOL} has {len(pool):,} rows, selection.json says {rows:,}; copy the whole run again"
        )
    damage, measured = _damage(select, compare, len(names))
    typical = about["clusters"].get("typical", [])
    if typical:  # a cluster without words is named after its most typical row
        names = [row if name == "–" and row else name for name, row in zip(names, typical, strict=True)]
    return Known(reference, pool, names, typical, damage, measured, hash_file(select / FILE))


def _stage(run: Path, name: str) -> Path | None:
    """The directory of a stage of a run."""
    return next(iter(sorted(run.glob(f"stages/[0-9][0-9]-{name}"))), None)


def _damage(select: Path, compare: Path | None, clusters: int) -> tuple[NDArray[np.float64], str]:
    """Damage of each capability [K] in the model that the run ends with, and where it is from."""
    damage = np.full(clusters, np.nan)
    if compare is not None and (compare / "capabilities.json").is_file():
        found: Any = read(compare / "capabilities.json", Capabilities, "run again")
        when = "after" if found["yardstick"]["kept"] == "recovered" else "before"
        for row in found["capabilities"]:
            if row["cluster"] < clusters and row[when]["value"] is not None:
                damage[row["cluster"]] = row[when]["value"]
        return damage, f"of the {'recovered' if when == 'after' else 'pruned'} model, on held-out rows of the pool"
    values: list[list[float]] = [[] for _ in range(clusters)]
    for row in read_manifest(select):
        if row["decision"] != "rejected" and row["jsd"] is not None and row["cluster"] < clusters:
            values[row["cluster"]].append(row["jsd"])
    for cluster, of in enumerate(values):
        if of:
            damage[cluster] = float(np.mean(of))
    return damage, "of the pruned model, before recovery"
