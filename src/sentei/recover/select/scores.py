"""What one pass of both models says about the rows of a pool, and the shards that hold it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from sentei.errors import InputError


@dataclass(frozen=True)
class Scores:
    """What one pass of both models says about each row of a pool; NaN where a row has no response.

    Attributes:
        jsd: mean Jensen–Shannon divergence per response token, nats, 0 to ln 2, float32 [N].
        dense_nll: mean negative log-likelihood of the response under the dense model, nats per token, float32 [N].
        pruned_nll: the same under the pruned model.
        alone_nll: the same under the dense model, which does not get to see the prompt; NaN unless asked for.
        rival_nll: the same after the question of another row, of rows that share theirs with a third; else NaN.
        counts: response tokens, which are what is trained on, float32 [N].
    """

    jsd: np.ndarray
    dense_nll: np.ndarray
    pruned_nll: np.ndarray
    alone_nll: np.ndarray
    rival_nll: np.ndarray
    counts: np.ndarray

    def of_rows(self, owners: np.ndarray, rows: int) -> Scores:
        """The scores of rows, from those of their samples: means over all response tokens of a row.

        Args:
            owners: the row of each sample, int64 [samples].
            rows: how many rows there are.
        """
        if len(owners) == rows and (owners == np.arange(rows)).all():
            return self
        found: dict[str, np.ndarray] = {}
        for field in fields(Scores):
            value = getattr(self, field.name).astype(np.float64)
            known = ~np.isnan(value)
            weight = np.ones_like(value) if field.name == "counts" else np.nan_to_num(self.counts).astype(np.float64)
            sums = np.bincount(owners[known], (weight * value)[known], minlength=rows)
            of = np.bincount(owners[known], weight[known], minlength=rows)
            whole = np.where(of > 0, sums, np.nan)
            found[field.name] = (whole if field.name == "counts" else whole / np.maximum(of, 1)).astype(np.float32)
        return Scores(**found)

    @property
    def ifd(self) -> np.ndarray:
        """Instruction-following difficulty: perplexity of the response with the prompt by that without, float32 [N]."""
        return np.exp(self.dense_nll - self.alone_nll)

    @property
    def unlikely(self) -> np.ndarray:
        """How unlikely a response is after its prompt, less how unlikely after another or none, float32 [N].

        After another where that is known: it gives the response its form too, and only what it says is left.
        """
        other = np.where(np.isnan(self.rival_nll), self.alone_nll, self.rival_nll)
        return self.dense_nll - np.nan_to_num(other)


def read_scores(directory: Path, rows: int) -> Scores:
    """The scores of a pool of `rows` rows from the shards of a directory."""
    found = {field.name: np.full(rows, np.nan, np.float32) for field in fields(Scores)}
    for path, shard in open_shards(directory):
        where = shard.get_tensor("rows")
        if len(where) and not (where.min() >= 0 and where.max() < rows):
            raise InputError(f"{path} scores row {where.max()}, and there are {rows:,}; it is of another pool")
        known = set(shard.keys())  # selections made before a score was thought of do without it
        for name in known & set(found):
            values = shard.get_tensor(name)
            if values.shape != where.shape:
                raise InputError(f"{path}: {name} has shape {values.shape}, expected {where.shape}; score again")
            found[name][where] = values
    return Scores(**found)


def open_shards(directory: Path) -> Iterator[tuple[Path, Any]]:
    """Path and open file of each shard, in order; tensors are read as they are asked for.

    Raises:
        InputError: a truncated or corrupt one.
    """
    for path in sorted(directory.glob("scores-*.safetensors")):
        try:
            shard = safe_open(path, framework="np")
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} is truncated or corrupt ({error}); delete it and score again") from error
        if "rows" not in shard.keys() or shard.get_slice("rows").get_dtype() != "I64":  # noqa: SIM118 - not a dict
            raise InputError(f"{path} does not say which rows it scores; delete it and score again")
        yield path, shard


def shard_path(directory: Path, number: int) -> Path:
    """Where shard `number` is kept."""
    return directory / f"scores-{number:05d}.safetensors"
