"""Measures, plans, cuts and evaluates a model in one process, then saves it.

python examples/prune_in_memory.py MODEL TEXT OUT
python examples/prune_in_memory.py smollm2-135m-instruct demo runs/example
"""

from __future__ import annotations

import sys

import sentei
from sentei.data.text import read_texts


def main(source: str, text: str, out: str, tokens: int = 16384, window: int = 256) -> dict:
    texts = read_texts(text)
    held_out = texts[-max(1, len(texts) // 4) :]  # never prove on the text that the cut was fitted on
    calibration = texts[: -len(held_out)] or texts

    model = sentei.load(source)
    profile = sentei.measure(model, calibration, tokens=tokens, window=window)
    plan = sentei.plan(profile, sentei.Budget(sparsity=0.2), method="auto")
    pruned = sentei.cut(model, plan, calibration, tokens=tokens, window=window)
    sentei.save(pruned, out, tokenizer=model.tokenizer, plan=plan)
    return sentei.evaluate([model, out], texts=[("held out", held_out)], window=window, windows=8)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    evidence = main(*sys.argv[1:])
    for result in evidence["models"]:
        print(f"{result['model']}: {result['block_params']:,} block params,", end=" ")
        print(f"perplexity {result['perplexity']['held out']['value']:.2f}")
