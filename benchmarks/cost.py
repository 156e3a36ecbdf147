"""What the steps cost, as ratios to a plain bf16 forward pass over the same tokens, and the speed-up that comes out.

    python benchmarks/cost.py

Ratios are interleaved (forward, step, forward, step …) in one process; median and range of two rounds. The forward
pass is the whole model's, logits included, as a perplexity would need it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import Rows, model, windows

from sentei.measure import measure
from sentei.metrics.perplexity import perplexity
from sentei.plan import Budget
from sentei.prove.speed import speed
from sentei.prune.cut import cut
from sentei.prune.planning import plan

TOKENS, ROUNDS = 16_384, 2


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    torch.manual_seed(0)
    loaded, rows = model(), Rows("cost")
    text = windows(loaded, "wikitext2_tok.valid", window=512, count=TOKENS // 512)
    profile = measure(loaded, text, gradient_tokens=8192)
    decided = plan(profile, Budget(sparsity=0.3), "structural")
    steps: dict[str, Callable[[], Any]] = {
        "measure": lambda: measure(loaded, text, gradient_tokens=0),
        "measure with gradients of 1/8 of the tokens": lambda: measure(loaded, text, gradient_tokens=TOKENS // 8),
        "cut, least squares": lambda: cut(loaded, plan(profile, Budget(sparsity=0.3), "numerical"), text),
        "cut, structural": lambda: cut(loaded, decided, text),
    }
    for name, step in steps.items():

        def work(step: Callable[[], Any] = step) -> dict[str, Any]:
            ratios, forward = [], []
            for _ in range(ROUNDS):
                forward.append(seconds(lambda: perplexity(loaded.model, text)))
                ratios.append(seconds(step) / forward[-1])
            return {"ratio": statistics.median(ratios), "spread": [min(ratios), max(ratios)], "forward_s": min(forward)}

        rows.run(work, step=name, tokens=TOKENS)

    def planning() -> dict[str, Any]:
        fresh = measure(loaded, text[:2], gradient_tokens=512)
        first = seconds(lambda: plan(fresh, Budget(sparsity=0.3), "structural"))
        again = seconds(lambda: plan(fresh, Budget(sparsity=0.4), "structural"))
        return {"first_s": first, "another_budget_s": again}

    rows.run(planning, step="plan")

    def faster() -> dict[str, Any]:
        found = {}
        for sparsity in (0.3, 0.5):
            small_plan = plan(profile, Budget(sparsity=sparsity, context=512), "structural")
            small = cut(loaded, small_plan, text)
            head = 2 * small_plan.dense.vocab * small_plan.dense.hidden
            flops = [
                shape.flops(256) + head / 512 for shape in (small_plan.shape(), small_plan.dense)
            ]  # one row of logits
            found[str(sparsity)] = {
                "flops_ratio": flops[0] / flops[1],
                "speed": speed({"dense": loaded.model, "pruned": small}, prompt=512, new=32, rounds=7),
            }
        return {"models": found}

    rows.run(faster, step="speed")


if __name__ == "__main__":
    main()
