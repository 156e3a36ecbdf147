"""How often `sentei watch` errs on unchanged traffic, and what it finds: embeddings of real instructions, no model.

    python benchmarks/watch.py                       # 200 windows of unchanged traffic, 100 of each shift
    python benchmarks/watch.py --window 600

The reference is 2,000 rows of alpaca; windows are drawn from 4,000 others, in shifts mixed with another kind of request; or half of the capabilities are left out, which is no drift.
Told for each: the share of windows with a drift, with an alarm of any capability, and whose whole differs (MMD² and AUC); and,
of a ramp from 2 to 20 % over ten windows, at which window the drift is first seen. Means are over windows, which share rows.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from common import DATA, Rows
from result_rows import table

from sentei.data.pools import read_pool
from sentei.metrics.proportions import wilson
from sentei.recover.select.cluster import cluster
from sentei.recover.select.embed import MODEL, embed
from sentei.recover.select.reference import Reference
from sentei.watch.capabilities import assign, moved
from sentei.watch.distinct import apart, first_of_each
from sentei.watch.drift import LEVEL, Vectors, classify, growth, mmd
from sentei.watch.verdict import LEAST_AUC, is_drift

REFERENCE, OTHERS, RAMP = 2000, 4000, 10
HALF = "half of the capabilities, about twice as often"  # another mix of what the pool has: no drift


def distinct(texts: list[str], most: int) -> Vectors:
    """Embeddings of the first texts that differ, as `watch` has them."""
    kept = [texts[at] for at in first_of_each(texts)][:most]
    vectors = embed(kept)
    return vectors[apart(vectors)]


def requests() -> dict[str, list[str]]:
    """Kinds of requests, by name."""
    alpaca = [row.prompt for row in read_pool(DATA / "instruct" / "alpaca_52k.part0.jsonl.gz").rows]
    dolly = read_pool(DATA / "instruct" / "dolly_3k.jsonl.gz").rows
    demo = read_pool("demo").rows
    chinese = read_pool(DATA / "instruct" / "neg_alpaca_zh_3k.jsonl").rows
    return {
        "alpaca": [alpaca[at] for at in np.random.default_rng(0).permutation(len(alpaca))[: REFERENCE + OTHERS + 500]],
        "Chinese": [row.prompt for row in chinese][:600],
        "sums in words (GSM8K)": [row.prompt for row in demo if row.id.startswith("sums")],
        "programs (MBPP)": [row.prompt for row in demo if row.id.startswith("programs")],
        "classification (Dolly)": [row.prompt for row in dolly if row.raw.get("category") == "classification"],
    }


class Bench:
    """The reference, and what windows are drawn from."""

    def __init__(self, window: int) -> None:
        texts = requests()
        alpaca = distinct(texts.pop("alpaca"), REFERENCE + OTHERS)
        self.window, self.x, self.usual = window, alpaca[:REFERENCE], alpaca[REFERENCE:]
        self.new = {name: distinct(some, len(some)) for name, some in texts.items()}
        self.labels = cluster(self.x).labels.astype(np.int64)
        self.reference = Reference.of(self.x, self.labels, MODEL, 0)
        kept = assign(self.usual, self.reference).capability % 2 == 0
        self.new[HALF] = self.usual[kept]

    def drawn(self, rng: np.random.Generator, kind: str | None, share: float) -> Vectors:
        """A window with a share of another kind."""
        count = self.window if kind == HALF else round(share * self.window) if kind else 0
        usual = self.usual[rng.choice(len(self.usual), self.window - count, replace=False)]
        if not kind:
            return usual
        new = self.new[kind]
        return np.concatenate([usual, new[rng.choice(len(new), count, replace=len(new) < count)]])

    def judged(self, rng: np.random.Generator, seed: int, kind: str | None = None, share: float = 0.2) -> list[bool]:
        """Drift, an alarm of a capability, another whole."""
        y = self.drawn(rng, kind, share)
        found = classify(self.x, y, seed=seed)
        then, now = assign(self.x, self.reference, self.labels), assign(y, self.reference)
        moves = moved(self.x, y, then, now, len(self.reference.sizes), seed=seed)
        whole = mmd(self.x, y, permutations=99, seed=seed)
        changed = whole.p <= LEVEL and found.interval[0] > LEAST_AUC
        return [is_drift(growth(found)), any(move.alarm for move in moves), changed]

    def windows(self, count: int, kind: str | None = None) -> dict[str, Any]:
        """Shares of windows with each finding."""
        rng, began = np.random.default_rng(1), time.perf_counter()
        found = np.array([self.judged(rng, seed, kind) for seed in range(count)]).mean(axis=0).tolist()
        names = ("drift", "alarm", "changed")
        return dict(zip(names, found, strict=True)) | {"seconds": (time.perf_counter() - began) / count}

    def ramp(self, count: int, kind: str) -> dict[str, Any]:
        """At which of ten windows, whose share of another kind rises from 2 to 20 %, the drift is first seen."""
        rng, first = np.random.default_rng(2), []
        for _ in range(count):
            seen = (is_drift(growth(classify(self.x, self.drawn(rng, kind, 0.02 * n)))) for n in range(1, RAMP + 1))
            first.append(next((n for n, drift in enumerate(seen, 1) if drift), RAMP + 1))
        return {"median": float(np.median(first)), "latest": max(first), "missed": int(sum(n > RAMP for n in first))}


def main() -> None:
    """Runs what is missing, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, default=300)
    parser.add_argument("--unchanged", type=int, default=200, help="windows of unchanged traffic")
    parser.add_argument("--shifted", type=int, default=100, help="windows of each shift")
    args = parser.parse_args()
    bench, rows, window = Bench(args.window), Rows("watch"), args.window
    rows.run(lambda: bench.windows(args.unchanged), kind="unchanged", window=window, windows=args.unchanged)
    for kind in bench.new:
        rows.run(lambda kind=kind: bench.windows(args.shifted, kind), kind=kind, window=window, windows=args.shifted)
        if kind != HALF:
            rows.run(lambda kind=kind: bench.ramp(10, kind), kind=f"{kind}, ramp", window=window, windows=10)
    body = []
    for row in rows.rows:
        kind, n = row["key"]["kind"], row["key"]["windows"]
        if "median" in row:
            seen = [row["median"], row["latest"]]
            body.append([kind, "first seen at window", *(f"{v:g}" if v <= RAMP else "not seen" for v in seen), ""])
        else:
            found = [(row[name], wilson(row[name] * n, n)) for name in ("drift", "alarm", "changed")]
            cells = (f"{100 * v:.0f} % [{100 * low:.0f} – {100 * high:.0f}]" for v, (low, high) in found)
            body.append([kind, f"{n} windows", *cells])
    print(table(["requests", "", "drift (ramp: median)", "alarm of a capability (ramp: latest)", "changed"], body))


if __name__ == "__main__":
    main()
