"""Each preset beside the public code that it names, on the same model, text and windows.

    python benchmarks/presets.py          # resumable; the profile is kept in --profile, where one is named

Calibration: the first 32 windows of 512 tokens of `wikitext2_tok.valid` (all of them for the gradients, too), perplexity on
the first 48 windows of 512 of `wikitext2_tok.test`; rows joined without anything between them, as the public code was run.
The public code ran in fp32 (dense 25.64), with transformers 4.41 to 4.44, at the commits named here; what it cannot do on
this model (grouped-query attention) is in its row's name.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import Rows, lm, model
from torch import Tensor

from sentei.data.text import read_texts, token_windows
from sentei.measure import Profile, measure
from sentei.metrics.perplexity import perplexity
from sentei.models.load import Loaded
from sentei.plan import Budget
from sentei.prune.cut import cut
from sentei.prune.planning import plan

# preset: what was run, and per sparsity the block params removed, perplexity, and perplexity over dense 25.64
PUBLIC: dict[str, tuple[str, dict[float, tuple[float, float]]]] = {
    "llm-pruner": ("horseee/LLM-Pruner 128a07d, FFN only, blocks 4 to 27", {0.2: (40.9, 1.60), 0.3: (63.1, 2.46)}),
    "adapt": (
        "research4pan/AdaptPruner 5665876, one shot (21.0 and 31.2 % removed)",
        {0.2: (42.6, 1.66), 0.3: (94.6, 3.69)},
    ),
    "flap": (
        "CASIA-LMC-Lab/FLAP 3bb57db, FFN only",
        {0.2: (38.1, 1.49), 0.3: (67.0, 2.61)},
    ),
}
WITHOUT = ("numerical", "wanda-sp")  # no public code of the paper, or none that was run on this model
SPARSITIES = (0.2, 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", type=Path, help="kept here, and read if it is there")
    parser.add_argument("--methods", nargs="+", default=[*PUBLIC, *WITHOUT])
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    options = parser.parse_args()
    loaded, rows = model(), Rows("presets")
    texts = {
        name: token_windows(
            read_texts(lm(f"wikitext2_tok.{name}")), loaded.tokenizer, window=512, windows=count, join=""
        )
        for name, count in (("valid", 32), ("test", 48))
    }
    rows.run(lambda: {"perplexity": perplexity(loaded.model, texts["test"]).value}, method="dense", sparsity=0.0)
    profile = None
    for method in options.methods:
        for sparsity in options.sparsities:
            if rows.has(method=method, sparsity=sparsity):
                continue
            if profile is None:
                profile = _profile(loaded, texts["valid"], options.profile)
            decided = plan(profile, Budget(sparsity=sparsity), method)

            def work() -> dict[str, Any]:
                small = cut(loaded, decided, texts["valid"], tokens=texts["valid"].numel())  # noqa: B023 - called at once
                found = {"perplexity": perplexity(small, texts["test"]).value}
                settings = {"protect": str(decided.protect), "weigh": decided.weigh}  # noqa: B023
                return found | settings | {"removed": decided.predicted["removed"]}  # noqa: B023

            rows.run(work, method=method, sparsity=sparsity)


def _profile(loaded: Loaded, text: Tensor, path: Path | None) -> Profile:
    if path is not None and path.exists():
        return Profile.load(path)
    made = measure(loaded, text, tokens=text.numel(), window=512, gradient_tokens=text.numel())
    if path is not None:
        made.save(path)
    return made


if __name__ == "__main__":
    main()
