"""A selection: what was chosen from a pool and why, on disk, so that it can be checked, trained on, or made again."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sentei.data.pools import Pool, read_pool
from sentei.errors import InputError, one_line
from sentei.files import write_json, write_text
from sentei.recover.select.about import read_about
from sentei.recover.select.reference import Reference, read_reference
from sentei.recover.select.scores import Scores, read_scores
from sentei.schema import read

POOL = "pool.jsonl.gz"
SCORES = "scores"


@dataclass(frozen=True)
class Scored:
    """A pool after the models have been over it: all that a selection needs, and no model.

    Attributes:
        pool: the rows, N.
        scores: damage and likelihoods of each.
        tokens: of each row, prompt and response, int64 [N].
        labels: cluster of each row, int64 [N].
        coordinates: where each row is on the map, float32 [N, 2].
        owners: the row of each sample that the models read, int64 [samples]: a template that rewrites earlier turns
            makes several of a row.
        rejections: why a filter rejected it, or None, [N].
        target: share of the wanted capability's texts in each cluster [K], or None.
        about: JSON: models, settings of the scoring, filters, names of the clusters, what a person should know.
        shards: the directory of the shards with the teacher's tokens.
        reference: what later requests are compared with; None in selections of earlier versions.
    """

    pool: Pool
    scores: Scores
    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    coordinates: NDArray[np.float32]
    owners: NDArray[np.int64]
    rejections: list[str | None]
    target: NDArray[np.float64] | None
    about: dict[str, Any]
    shards: Path
    reference: Reference | None


@dataclass(frozen=True)
class Selection:
    """A selection directory.

    Attributes:
        directory: where it is.
        about: `selection.json`.
        chosen: positions in the pool of the selected rows, as `selected.jsonl` has them.
    """

    directory: Path
    about: dict[str, Any]
    chosen: list[int]

    @classmethod
    def load(cls, directory: str | Path) -> Selection:
        """Reads a selection.

        Raises:
            InputError: the directory holds none, or one of another version.
        """
        directory = Path(directory)
        about = read_about(directory)
        for name in (POOL, "clusters.safetensors", "rejections.json", SCORES):
            if not (directory / name).exists():
                raise InputError(f"{directory} is not complete: {name} is missing; copy the whole directory")
        return cls(directory, about, about["chosen"])

    def scored(self) -> Scored:
        """What the selection was made from."""
        pool = read_pool(self.directory / POOL, format=self.about["pool"]["format"])
        rows, clusters = len(pool.rows), len(self.about["clusters"]["names"])
        if rows != self.about["pool"]["rows"]:
            raise InputError(
                f"{self.directory / POOL} has {rows:,} rows, selection.json says {self.about['pool']['rows']:,}; "
                "copy the whole directory again"
            )
        arrays = _arrays(self.directory / "clusters.safetensors", rows, clusters)
        about = {key: self.about[key] for key in ("models", "scoring", "filters", "notes", "clusters")}
        about |= {key: self.about.get(key, usual) for key, usual in (("languages", []), ("idle", {}))}
        owners = arrays.get("owners", np.arange(rows))
        return Scored(
            Pool(pool.rows, pool.format, self.about["pool"]["source"]),
            read_scores(self.directory / SCORES, len(owners)).of_rows(owners, rows),
            arrays["tokens"],
            arrays["labels"],
            arrays["coordinates"],
            owners,
            _rejections(self.directory / "rejections.json", rows),
            arrays.get("target"),
            about,
            self.directory / SCORES,
            read_reference(self.directory, rows, clusters),
        )


def _arrays(path: Path, rows: int, clusters: int) -> dict[str, NDArray[Any]]:
    """clusters.safetensors, of so many rows."""
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is truncated or corrupt ({one_line(error)}); select again") from error
    expected = {"tokens": (rows,), "labels": (rows,), "coordinates": (rows, 2)}
    expected |= {"target": (clusters,)} if "target" in arrays else {}
    for name, shape in expected.items():
        got = tuple(arrays[name].shape) if name in arrays else "nothing"
        if got != shape:
            raise InputError(f"{path}: {name}: expected shape {shape}, got {got}; select again")
        if not np.isfinite(arrays[name]).all():
            raise InputError(f"{path}: {name} has values that are not finite; select again")
    owners = arrays.get("owners", np.arange(rows))
    if owners.ndim != 1 or not np.array_equal(np.unique(owners), np.arange(rows)):
        raise InputError(f"{path}: owners: expected every row from 0 to {rows - 1} to own a sample; select again")
    if rows and not (arrays["labels"].min() >= 0 and arrays["labels"].max() < clusters):
        raise InputError(f"{path}: labels: expected 0 to {clusters - 1}, the clusters of selection.json; select again")
    return arrays


def _rejections(path: Path, rows: int) -> list[str | None]:
    found = read(path, list[str | None], "select again")
    if len(found) != rows:
        raise InputError(f"{path}: expected {rows:,} entries, one for each row of the pool, got {len(found):,}")
    return found


def write_scored(scored: Scored, directory: Path) -> None:
    """The files of a selection directory that do not depend on the budget."""
    with (
        open(directory / POOL, "wb") as target,
        gzip.GzipFile("", "wb", 6, target, mtime=0) as packed,  # neither name nor date: the same bytes each time
        io.TextIOWrapper(packed, encoding="utf-8") as file,
    ):
        for row in scored.pool.rows:
            file.write(json.dumps(row.raw, default=str) + "\n")  # as it was read: the ids follow from it
    arrays = {name: getattr(scored, name) for name in ("tokens", "labels", "coordinates", "owners")}
    if scored.target is not None:
        arrays["target"] = scored.target
    save_file(arrays, directory / "clusters.safetensors")
    write_json(directory / "rejections.json", scored.rejections)
    if scored.reference is not None:
        scored.reference.save(directory)
    shutil.copytree(scored.shards, directory / SCORES, copy_function=_link)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    write_text(path, text.encode("utf-8", "backslashreplace").decode())  # half a surrogate pair is written as \\udxxx


def _link(source: str, target: str) -> None:
    """A hard link where the file system has them: shards are large and never change."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
