"""The table that no paper has: score × compensation × allocation, one profile for all of it.

    python benchmarks/cross.py            # resumable; about an hour on two cores

Reduced protocol: calibration 8 windows of 512 tokens of WikiText-2 (tokenised) validation, perplexity on 8 windows of 512
of its test text.
"""

from __future__ import annotations

from common import Rows, model, windows

from sentei.measure import measure
from sentei.metrics.perplexity import perplexity
from sentei.plan import Budget
from sentei.prune.cut import cut
from sentei.prune.planning import plan

SCORES = ("random", "magnitude", "taylor", "wanda-sp", "flap", "newton", "obs", "obs-fisher")
COMPENSATIONS = ("none", "bias", "least-squares", "least-squares+bias")
EXTRA = {"obs": ("residual",), "obs-fisher": ("residual", "residual+bias")}
ALLOCATIONS = ("uniform", "adaptive", "global")
SPARSITIES = (0.2, 0.5)
WINDOW, CALIBRATION, TEST = 512, 8, 8


def main() -> None:
    loaded, rows = model(), Rows("cross")
    calibration = windows(loaded, "wikitext2_tok.valid", window=WINDOW, count=CALIBRATION)
    test = windows(loaded, "wikitext2_tok.test", window=WINDOW, count=TEST)
    profile = measure(loaded, calibration, gradient_tokens=calibration.numel())
    rows.run(lambda: {"perplexity": perplexity(loaded.model, test).value}, score="dense")
    for score in SCORES:
        for sparsity in SPARSITIES:
            for allocation in ALLOCATIONS:
                for compensation in (*COMPENSATIONS, *EXTRA.get(score, ())):

                    def work() -> dict[str, float]:
                        decided = plan(
                            profile,
                            Budget(sparsity=sparsity),  # noqa: B023 - called at once
                            "structural",
                            score=score,  # noqa: B023
                            allocation=allocation,  # noqa: B023
                            compensation=compensation,  # noqa: B023
                            weigh="share" if score == "magnitude" else "gradient",  # noqa: B023
                        )
                        small = cut(loaded, decided, calibration)
                        return {"perplexity": perplexity(small, test).value, "removed": decided.predicted["removed"]}

                    rows.run(work, score=score, compensation=compensation, allocation=allocation, sparsity=sparsity)


if __name__ == "__main__":
    main()
