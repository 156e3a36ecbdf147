"""The candidates for recovery, as a recipe names them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sentei.data.pools import Pool, read_pool
from sentei.recipe import Recipe


def pool_of(recipe: Recipe) -> Pool:
    """The candidates. Of the demo's skills only rows that `prove` does not read."""
    recover = recipe.recover
    assert recover is not None
    pool = read_pool(recover.pool, evaluated=recipe.prove.limit, strict=recover.strict_rows)
    if recover.rows is None or recover.rows >= len(pool.rows):
        return pool
    drawn = np.random.default_rng(recipe.seed).permutation(len(pool.rows))[: recover.rows]
    return replace(pool, rows=[pool.rows[at] for at in sorted(drawn.tolist())])
