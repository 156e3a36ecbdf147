"""Chooses recovery data by where pruning did damage, trains 1 % of the parameters on them, and saves the healed model.

python examples/recover.py DENSE PRUNED POOL OUT
python examples/recover.py smollm2-135m-instruct pruned/ alpaca.jsonl runs/healed
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import sentei


def main(dense: str, pruned: str, pool: str, out: str, tokens: int = 20_000) -> dict:
    small = sentei.load(pruned)
    selection = sentei.select(sentei.load(dense), small, pool, f"{out}-selection", budget=0.2)
    tuned = sentei.tune(small, selection, tokens=tokens)  # distils from what `select` kept of the dense model
    tuned.save(out)
    return tuned.record


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    record = main(*sys.argv[1:])
    lines = (Path(f"{sys.argv[4]}-selection") / "selected.jsonl").read_text(encoding="utf-8").splitlines()
    print(f"{len(lines)} rows selected, the first: {json.loads(lines[0])['instruction']}")
    print(record["recommendation"])
