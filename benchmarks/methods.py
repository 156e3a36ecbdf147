"""The presets at 10 to 50 % of block params, in-domain and across domains, and zero-shot tasks.

    python benchmarks/methods.py          # resumable

In-domain, as the papers do: calibration `wikitext2_tok.valid` (65,536 tokens in windows of 512), perplexity on the first 48
windows of 512 of `wikitext2_tok.test`: the protocol of the peers' figures. Transfer: calibration `c4_demo`, perplexity on
windows of 1,024 of `wikitext2_raw.test`. The full test texts are read for the rows that matter.
"""

from __future__ import annotations

import argparse
from typing import Any

from common import TASKS, Rows, model, task, windows
from torch import Tensor

from sentei.data.tasks import read_task
from sentei.measure import Profile, measure
from sentei.metrics.perplexity import perplexity
from sentei.models.load import Loaded
from sentei.plan import Budget
from sentei.prove.tasks import score_tasks
from sentei.prune.cut import cut
from sentei.prune.methods import METHODS
from sentei.prune.planning import plan

DOMAINS = {  # name: calibration text, test text, tokens per window, test windows
    "in-domain": ("wikitext2_tok.valid", "wikitext2_tok.test", 512, 48),
    "transfer": ("c4_demo", "wikitext2_raw.test", 1024, 24),
}
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5)
FULL = 100_000  # windows: more than any text has
CALIBRATION = 65_536
LIMIT = 200  # rows of each task


def measured(
    loaded: Loaded,
    profile: Profile,
    calibration: Tensor,
    tests: dict[str, Tensor],
    method: str,
    sparsity: float,
    tasks: bool,
) -> dict[str, Any]:
    """One row: cut, perplexity on every test text, and the tasks where asked."""
    decided = plan(profile, Budget(sparsity=sparsity), method)
    small = cut(loaded, decided, calibration, tokens=calibration.numel())
    row: dict[str, Any] = {
        "removed": decided.predicted["removed"],
        "loss_increase": decided.predicted.get("loss_increase"),
    }
    row |= {name: perplexity(small, test).value for name, test in tests.items()}
    if tasks:
        row["tasks"] = zero_shot(small, loaded.tokenizer)
    return row


def zero_shot(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Accuracies of the tasks, with intervals."""
    found = score_tasks(model, tokenizer, [read_task(task(name)) for name in TASKS], limit=LIMIT)
    return {
        name: {"acc": r.acc, "acc_norm": r.acc_norm, "n": r.n, "interval": list(r.interval)}
        for name, r in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domain", choices=DOMAINS, default="in-domain")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--full", action="store_true", help="all of the test text instead of its first windows")
    parser.add_argument("--tasks", action="store_true", help=f"zero-shot tasks too, {LIMIT} rows each")
    options = parser.parse_args()
    source, test, window, count = DOMAINS[options.domain]
    loaded, rows = model(), Rows("methods")
    name = "full" if options.full else f"{count} windows"
    key = {"domain": options.domain, "test": name, "tasks": options.tasks}
    calibration = windows(loaded, source, window=512, count=CALIBRATION // 512)
    tests = {"perplexity": windows(loaded, test, window=window, count=FULL if options.full else count)}

    def dense() -> dict[str, Any]:
        row: dict[str, Any] = {text: perplexity(loaded.model, t).value for text, t in tests.items()}
        return row | ({"tasks": zero_shot(loaded.model, loaded.tokenizer)} if options.tasks else {})

    rows.run(dense, method="dense", sparsity=0.0, **key)
    profile = measure(loaded, calibration, tokens=CALIBRATION)
    for method in options.methods:
        for sparsity in options.sparsities:

            def work(method: str = method, sparsity: float = sparsity) -> dict[str, Any]:
                return measured(loaded, profile, calibration, tests, method, sparsity, options.tasks)

            rows.run(work, method=method, sparsity=sparsity, **key)


if __name__ == "__main__":
    main()
