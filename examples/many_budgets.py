"""Measure once, decide many times: one profile, plans for several sizes and methods, in seconds.

python examples/many_budgets.py PROFILE       # what `sentei measure` wrote
"""

from __future__ import annotations

import sys
from pathlib import Path

from sentei import Budget, Profile
from sentei.prune.planning import plan


def main(directory: str) -> list[tuple[str, float, int]]:
    profile = Profile.load(Path(directory))
    rows = []
    for method in ("auto", "numerical", "magnitude"):
        for sparsity in (0.1, 0.2, 0.3):
            made = plan(profile, Budget(sparsity=sparsity), method)
            rows.append((method, sparsity, made.shape().block_params()))
    return rows


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for method, sparsity, block_params in main(sys.argv[1]):
        print(f"{method:12} {sparsity:.0%}: {block_params:>14,} block params kept")
