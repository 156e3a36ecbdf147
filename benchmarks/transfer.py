"""Does a cut hold on text that it was not calibrated on? Calibration × method × test.

    python benchmarks/transfer.py [--draws 1] [--methods auto structural flap numerical] [--sparsities 0.2 0.3]

Resumable row by row. 32,768 tokens in windows of 512 are measured and fitted on in every arm: of C4, of the model's own
text, or of both in equal parts; draw k takes the k-th part of C4 and another seed. Tested on 24 windows of 512 of texts
that no arm reads: the end of C4, WikiText-2 raw (test), LaTeX of arXiv, alpaca, and the standard library's Python.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import torch
from common import DATA, Rows, lm, model
from torch import Tensor

from sentei.data.text import read_texts, token_windows
from sentei.data.windows import Windows
from sentei.inference.own_text import write_own_text
from sentei.measure.collect import measure
from sentei.metrics.perplexity import perplexity
from sentei.models.load import Loaded
from sentei.plan import Budget
from sentei.prune.cut import cut
from sentei.prune.planning import plan

WINDOW, WINDOWS, TEST = 512, 64, 24
CALIBRATIONS = ("c4", "c4+own", "own")


def tests(loaded: Loaded) -> dict[str, Tensor]:
    """Windows [24, 512] of each text."""
    alpaca = read_texts(DATA / "instruct" / "alpaca_52k.part0.jsonl.gz", field="output")
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[::4]
    found = {
        "wikitext": (read_texts(lm("wikitext2_raw.test")), False),
        "latex": (read_texts(lm("arxiv_latex")), False),
        "c4": (read_texts(lm("c4_demo")), True),
        "instructions": (alpaca, False),
        "python": ([file.read_text(encoding="utf-8") for file in modules], False),
    }
    return {
        name: token_windows(texts, loaded.tokenizer, window=WINDOW, windows=TEST, tail=tail)
        for name, (texts, tail) in found.items()
    }


def calibration(loaded: Loaded, name: str, draw: int) -> Tensor:
    """Windows [64, 512]; where there are two kinds they take turns."""
    c4 = token_windows(read_texts(lm("c4_demo")), loaded.tokenizer, window=WINDOW, windows=(draw + 1) * WINDOWS)
    c4 = c4[draw * WINDOWS :]
    if name == "c4":
        return c4
    count = WINDOWS if name == "own" else WINDOWS // 2
    own = write_own_text(loaded.model, loaded.tokenizer, tokens=count * WINDOW, window=WINDOW, seed=draw)
    return own if name == "own" else torch.stack([c4[:count], own], 1).flatten(0, 1)


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--draws", type=int, default=3)
    asked.add_argument("--methods", nargs="+", default=["auto", "structural", "flap", "numerical"])
    asked.add_argument("--sparsities", nargs="+", type=float, default=[0.2, 0.3])
    args = asked.parse_args()
    loaded, rows = model(), Rows("transfer")
    texts = tests(loaded)

    def perplexities(net: object) -> dict[str, float]:
        return {name: perplexity(net, ids).value for name, ids in texts.items()}

    rows.run(lambda: perplexities(loaded.model), method="dense")
    for draw in range(args.draws):
        for name in CALIBRATIONS:
            todo = [
                key
                for sparsity in args.sparsities
                for method in args.methods
                if not rows.has(**(key := {"draw": draw, "calibration": name, "method": method, "sparsity": sparsity}))
            ]
            if not todo:
                continue
            windows = Windows(calibration(loaded, name, draw))
            profile = measure(loaded, windows)
            for key in todo:
                decided = plan(profile, Budget(sparsity=key["sparsity"]), key["method"])
                rows.run(lambda: perplexities(cut(loaded, decided, windows)), **key)  # noqa: B023 - called at once


if __name__ == "__main__":
    main()
