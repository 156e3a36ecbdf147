"""Scoring a pool against plain forward passes of the two models over the same batches, in turns.

    python benchmarks/score_speed.py

Plain: `model(ids).logits` of both models, which does nothing with the logits. Scoring makes damage, both likelihoods and the
teacher's 16 likeliest tokens at response positions, and writes them. 100 rows of alpaca, batches of like length; the pruned
model stands in as a second copy of the dense one, which costs the most that a pruned model can.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import DATA, Rows, model

from sentei.data.batches import by_length, pad
from sentei.data.chat import encode
from sentei.data.pools import read_pool
from sentei.recover.select.damage import score

ROWS, ROUNDS, TOKENS = 100, 3, 4096


def main() -> None:
    dense, other = model(), model()
    rows = read_pool(DATA / "instruct" / "alpaca_52k.part0.jsonl.gz").rows[:ROWS]
    samples = encode(rows, dense.tokenizer, length=512)
    lengths = [len(sample.ids) for sample in samples]
    batches = [pad(samples, batch) for batch in by_length(lengths, TOKENS)]

    def plain() -> None:
        with torch.inference_mode():
            for batch in batches:
                dense.model(batch.ids)
                other.model(batch.ids)

    def scored() -> None:
        with tempfile.TemporaryDirectory() as directory:
            score(dense.model, other.model, samples, Path(directory), tokens=TOKENS)

    def work() -> dict[str, Any]:
        seconds: list[tuple[float, float]] = []
        for _ in range(ROUNDS + 1):
            marks = [time.perf_counter()]
            for step in (plain, scored):
                step()
                marks.append(time.perf_counter())
            seconds.append((marks[1] - marks[0], marks[2] - marks[1]))
        ratios = [forward / own for forward, own in seconds[1:]]
        return {
            "throughput_ratio": median(ratios),
            "spread": [min(ratios), max(ratios)],
            "tokens_per_s": sum(lengths) / median(own for _, own in seconds[1:]),
        }

    Rows("select_scale").run(work, step="score", rows=ROWS)


if __name__ == "__main__":
    main()
