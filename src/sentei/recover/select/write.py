"""The decision, from scores that are there, and the directory that holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sentei.files import write_json
from sentei.outputs import atomic_dir
from sentei.recover.select.about import SCHEMA, SUMMARY
from sentei.recover.select.picking import Amount, pick
from sentei.recover.select.selection import Scored, Selection, write_rows, write_scored
from sentei.recover.select.strategies import Candidates, Strategy, find_strategy


def choose(
    scored: Scored,
    amount: Amount,
    strategy: Strategy,
    *,
    temperature: float = 1.0,
    weights: Mapping[Any, float] | None = None,
    minimum: int = 0,
    ids: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Any, Candidates]:
    """The decision itself: a `Picked`, and what the strategy looked at.

    Args:
        scored: the pool after the models have been over it.
        amount: how much.
        strategy: who decides.
        temperature: exponent on a cluster's damage; 0 makes all clusters equal, 2 favours the worst.
        weights: factors on the clusters' shares, by number of the cluster.
        minimum: rows (or tokens) that every cluster gets.
        ids: for the strategy "ids".
        seed: of what is random.
    """
    allowed = np.array([reason is None for reason in scored.rejections])
    candidates = Candidates(
        scored.pool.rows,
        scored.tokens,
        scored.labels,
        allowed,
        scored.scores,
        ids,
        temperature,
        {int(cluster): weight for cluster, weight in (weights or {}).items()},
        scored.target,
        seed,
    )
    return pick(candidates, strategy, amount, minimum), candidates


def write(
    scored: Scored,
    out: Path,
    budget: str | float,
    strategy: str,
    seed: int,
    overwrite: bool,
    choice: dict[str, Any],
) -> Selection:
    """Chooses, and writes the directory: all of it or nothing."""
    from sentei.recover.select.summary import manifest, summarise

    amount, chosen_strategy = Amount.parse(budget), find_strategy(strategy)
    picked, candidates = choose(scored, amount, chosen_strategy, seed=seed, **choice)
    chosen = [int(row) for row in picked.rows]
    if choice.get("weights"):
        choice = choice | {
            "weights": {str(cluster): weight for cluster, weight in choice["weights"].items()}
        }  # as JSON
    about = {
        "schema_version": SCHEMA,
        "strategy": strategy,
        "budget": {
            "asked": str(budget),
            "unit": amount.unit,
            "selected": len(chosen),
            "tokens": int(scored.tokens[chosen].sum()),
        },
        "pool": {"source": scored.pool.source, "format": scored.pool.format, "rows": len(scored.pool.rows)},
        **scored.about,
        "choice": dict(sorted((choice | {"seed": seed}).items())),
        "chosen": chosen,
    }
    rows = manifest(scored, candidates, picked)
    with atomic_dir(out, overwrite=overwrite) as scratch:
        write_scored(scored, scratch)
        write_rows(scratch / "selected.jsonl", [scored.pool.rows[row].raw for row in chosen])
        write_rows(scratch / "manifest.jsonl", rows)
        write_json(scratch / "selection.json", about)
        write_json(scratch / SUMMARY, summarise(scored, about, candidates, picked, rows))
    return Selection(out, about, chosen)
