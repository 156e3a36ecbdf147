"""How the clustering of `sentei select` grows: seconds and peak memory for 13,000, 26,000 and 52,002 alpaca instructions.

    python benchmarks/select_scale.py                # resumable; about 3 minutes on two cores, most of it embedding
    python benchmarks/select_scale.py 1000 4000      # other sizes

The instructions are embedded once (kept in runs/select_scale/). Every size is the beginning of one fixed shuffle and is
clustered in a process of its own; the peak is that of the whole process (VmHWM), imports and embeddings included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (13_000, 26_000, 52_002)
CACHE = Path(__file__).parents[1] / "runs" / "select_scale"
LAMINI = 2_580_000  # rows of the largest pool that PASER reports on


def instructions(count: int) -> list[str]:
    """The first `count` prompts of a fixed shuffle of alpaca."""
    from common import DATA

    from sentei.data.rows import read_jsonl

    files = sorted((DATA / "instruct").glob("alpaca_52k.part*.jsonl.gz"))
    if not files:
        raise SystemExit(f"{DATA / 'instruct'} has no alpaca_52k.part*.jsonl.gz; set SENTEI_DATA to the data folder")
    prompts = [f"{row['instruction']}\n{row['input']}".strip() for file in files for _, row in read_jsonl(file)]
    return [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))[:count]]


def embedded(count: int) -> tuple[Path, float | None]:
    """The file with the vectors [count, d], and the seconds that making it took; None where it was there."""
    from sentei.recover.select.embed import embed

    path = CACHE / f"{count}.npy"
    if path.exists():
        return path, None
    texts, start = instructions(count), time.perf_counter()
    vectors = embed(texts)
    seconds = time.perf_counter() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part.npy")
    np.save(scratch, vectors)
    scratch.rename(path)
    return path, seconds


def clustered(path: Path, count: int) -> dict[str, Any]:
    """One clustering, in a fresh process."""
    command = [sys.executable, __file__, "--one", str(path), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def one(path: str, count: int) -> None:
    """What the fresh process does: cluster, and print the row."""
    from sentei.recover.select.cluster import cluster

    vectors = np.array(np.load(path, mmap_mode="r")[:count])
    start, processor = time.perf_counter(), time.process_time()
    found = cluster(vectors)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    row = {
        "seconds": round(seconds, 3),
        "processor_seconds": round(processor, 3),
        "peak_rss_bytes": peak,
        "clusters": found.clusters,
        "largest_share": max(found.rule["sizes"]) / count,
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
    }
    print(json.dumps(row))


def extrapolate(sizes: list[int], values: list[float], rows: int) -> float:
    """A straight line through what was measured."""
    slope, start = np.polyfit(sizes, values, 1)
    return float(start + slope * rows)


def main(sizes: list[int]) -> None:
    from common import Rows

    rows = Rows("select_scale")
    path, seconds = embedded(max(sizes))
    if seconds is not None:
        rows.run(lambda: {"seconds": round(seconds, 3)}, step="embed", rows=max(sizes))
    for size in sizes:
        rows.run(lambda size=size: clustered(path, size), step="cluster", rows=size)  # type: ignore[misc]
    found = {row["key"]["rows"]: row for row in rows.rows if row["key"]["step"] == "cluster"}
    if len(sizes) > 1:
        small, large = min(sizes), max(sizes)
        ratio = found[large]["seconds"] / found[small]["seconds"]
        print(f"{small:,} -> {large:,} rows: ×{ratio:.2f} of the time")
        seconds, peak = (
            extrapolate(sizes, [found[size][key] for size in sizes], LAMINI) for key in ("seconds", "peak_rss_bytes")
        )
        print(f"{LAMINI:,} rows, extrapolated: {seconds / 60:.1f} min, {peak / 1e9:.1f} GB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], int(sys.argv[3]))
    else:
        main([int(argument) for argument in sys.argv[1:]] or list(SIZES))
