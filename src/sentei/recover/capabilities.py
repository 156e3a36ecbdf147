"""What came back, capability by capability: the damage on rows that recovery never saw, before and after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sentei.data.chat import encode, owners
from sentei.errors import InputError
from sentei.files import finite, finite_pair
from sentei.metrics.intervals import bootstrap, ratio_bootstrap
from sentei.models.load import Loaded
from sentei.progress import Progress
from sentei.recover.select.about import read_manifest
from sentei.recover.select.budget import split
from sentei.recover.select.damage import score
from sentei.recover.select.selection import Selection

ROWS = 256
FEW = 5  # rows below which nothing is said about what came back: so few may be anything


def compare(
    dense: Callable[[], Loaded],
    recovered: Callable[[], Loaded],
    selection: Selection,
    work: Path,
    *,
    rows: int = ROWS,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores rows of the pool that were neither selected nor rejected, and compares with their damage before.

    Such rows have less damage per cost than those that were selected; what comes back on them is what recovery gives to
    the capability, not to the rows it was trained on.

    Args:
        dense: loads the model before pruning; called only where there are rows.
        recovered: loads the model after recovery.
        selection: the rows, with the damage before.
        work: where the scores are kept, so that a killed scoring goes on.
        rows: at most so many, evenly over the clusters.
        seed: of the draw.
        progress: told about each batch.

    Returns:
        `{"capabilities": […], "overall": {…}, "notes": [text]}`, see `came_back`.
    """
    table = read_manifest(selection.directory)
    names = selection.about["clusters"]["names"]
    if wrong := [row["cluster"] for row in table if row["cluster"] >= len(names)]:
        raise InputError(f"{selection.directory}: a row of cluster {wrong[0]}, there are {len(names)}; select again")
    chosen = held_out(table, len(names), rows, seed)
    after: list[float] = []
    if chosen:
        one, other, pool = dense(), recovered(), selection.scored().pool
        length = selection.about["scoring"]["length"]
        samples = encode([pool.rows[at] for at in chosen], one.tokenizer, length=length)
        again = score(one.model, other.model, samples, work / "after", top=0, progress=progress)
        after = again.of_rows(owners(samples), len(chosen)).jsd.tolist()
    found = came_back(table, names, chosen, after, in_tokens=selection.about["budget"]["unit"] == "tokens")
    if typical := selection.about["clusters"].get("typical"):
        for capability in found["capabilities"]:
            capability["typical"] = typical[capability["cluster"]]
    notes = []
    if len(chosen) < FEW * len(names):
        left = f"{len(chosen):,} rows of the pool were" if len(chosen) != 1 else "1 row of the pool was"
        notes.append(
            f"{left} neither selected nor rejected, too few to say for each of {len(names)} capabilities what came "
            "back; a larger pool or a smaller recover.budget leaves more"
        )
    return found | {"notes": notes}


def held_out(table: Sequence[Mapping[str, Any]], clusters: int, rows: int, seed: int) -> list[int]:
    """Positions of at most `rows` rows of a manifest that were left out and have a damage, evenly over the clusters."""
    free: list[list[int]] = [[] for _ in range(clusters)]
    for at, row in enumerate(table):
        if row["decision"] == "left out" and row["jsd"] is not None:
            free[row["cluster"]].append(at)
    shares = split(rows, np.ones(clusters), [len(members) for members in free])
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(members)[:share] for members, share in zip(free, shares, strict=True)]
    return sorted(int(at) for some in drawn for at in some)


def came_back(
    table: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    chosen: Sequence[int],
    after: Sequence[float],
    *,
    in_tokens: bool = False,
) -> dict[str, Any]:
    """The part of the damage that came back, `1 − mean JSD after / mean JSD before`, per cluster and over all rows.

    Args:
        table: the manifest, one row for every row of the pool.
        names: of the clusters.
        chosen: positions of the rows that were scored again.
        after: their damage after recovery, nats per token.
        in_tokens: whether the budget counts tokens; else rows.

    Returns:
        `{"capabilities": [{"name", "cluster", "pool_rows", "selected", "share" (of the budget, 0 to 1), …}],
        "overall": {…}}`, both with `"rows"` (scored again), `"before"` and `"after"`: `{"value", "interval"}`, in nats
        per token, `"came_back"` (1: all, 0: nothing, below: more damage) and its `"interval"`. The most damaged come
        first. What cannot be said is None; intervals are 95 % bootstrap intervals over rows, drawn as pairs.
    """
    again = dict(zip(chosen, after, strict=True))
    cost = [(row["tokens"] if in_tokens else 1) if row["decision"] == "selected" else 0 for row in table]
    capabilities = []
    for cluster, name in enumerate(names):
        members = [at for at, row in enumerate(table) if row["cluster"] == cluster]
        capabilities.append(
            {
                "name": name,
                "cluster": cluster,
                "pool_rows": len(members),
                "selected": sum(table[at]["decision"] == "selected" for at in members),
                "share": sum(cost[at] for at in members) / max(1, sum(cost)),
                **change([(table[at]["jsd"], again[at]) for at in members if at in again]),
            }
        )
    capabilities.sort(key=lambda c: -(c["before"]["value"] or 0.0))
    return {"capabilities": capabilities, "overall": change([(table[at]["jsd"], again[at]) for at in chosen])}


def change(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """What became of the damage of samples, `(before, after)` of each, in nats per token.

    Returns:
        `{"rows", "before", "after", "came_back", "interval"}`, see `came_back`; of less than `FEW` samples nothing is
        said to have come back or not.
    """
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    first = sum(before)
    enough = len(pairs) >= FEW
    low, high = ratio_bootstrap(after, before) if enough else (math.nan, math.nan)
    return {
        "rows": len(pairs),
        "before": _mean(before),
        "after": _mean(after),
        "came_back": 1 - sum(after) / first if enough and first and math.isfinite(sum(after)) else None,
        "interval": finite_pair((1 - high, 1 - low)),
    }


def _mean(values: Sequence[float]) -> dict[str, Any]:
    value = sum(values) / len(values) if values else math.nan
    interval = bootstrap(values) if len(values) >= FEW else (math.nan, math.nan)
    return {"value": finite(value), "interval": finite_pair(interval)}
