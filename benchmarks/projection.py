"""Low-rank projections of real matrices: relative output error and seconds, rank by rank.

    OMP_NUM_THREADS=1 python benchmarks/projection.py          # resumable

SmolLM2-135M-Instruct; Gram matrices from 16,384 tokens of `wikitext2_tok.valid`, held out: 8,192 of `wikitext2_tok.test`.
The error is `‖(W − M) X‖ / ‖W X‖`; ranks are shares of the break-even rank, at which two factors are as large as the matrix.
The trained projections are LLM-Sieve's (Adam, lr 1e-3, 80 steps as published, and 800) at half the break-even rank; on the
output side (o, down) their principal start is the closed form itself and left out. Seconds are CPU seconds of one
thread for one rank; the closed form's hold every rank. "closed-form, fp32" is the same decomposition in single precision.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch
from common import Rows, model, windows
from result_rows import table
from torch import Tensor

from sentei.algebra.lowrank import break_even, relative_error
from sentei.families import family_of
from sentei.measure.stream import gram, tap
from sentei.prune.projections import PROJECTIONS, Projection, Trained

MATRICES = ((0, "q_proj"), (15, "q_proj"), (15, "o_proj"), (15, "up_proj"), (15, "down_proj"))
TRAINED_BLOCK = 15
SHARES = (0.25, 0.5, 0.75)
TRAINED_SHARE = 0.5
WINDOW, CALIBRATION, HELD_OUT = 512, 16_384, 8_192


@torch.no_grad()
def grams(loaded: Any, ids: Tensor, names: list[tuple[int, str]]) -> dict[tuple[int, str], Tensor]:
    """Mean of `x xᵀ` of each matrix's inputs."""
    linears = linears_of(loaded.model, names)
    sums: dict[tuple[int, str], Tensor] = {}
    for window in ids:
        with tap(**{f"{block}_{name}": linear for (block, name), linear in linears.items()}) as seen:
            loaded.model(window[None])
        for key in names:
            sums[key] = sums.get(key, torch.zeros(())) + gram(seen["{}_{}".format(*key)])
    return {key: value / ids.numel() for key, value in sums.items()}


def linears_of(net: Any, names: list[tuple[int, str]]) -> dict[tuple[int, str], Any]:
    family = family_of(net.config)
    blocks = family.blocks(net)
    found = {}
    for block, name in names:
        linears = family.linears(blocks[block], "attention") | family.linears(blocks[block], "ffn")
        found[block, name] = linears[name]
    return found


def single_precision(weight: Tensor, c: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """What `closed_form` does, in fp32."""
    q, r = torch.linalg.qr(weight) if weight.shape[0] > weight.shape[1] else (None, weight)
    vectors = torch.linalg.eigh(r @ c @ r.T)[1].flip(1)[:, :rank]
    return vectors if q is None else q @ vectors, vectors.T @ r


def methods(block: int, name: str, share: float) -> dict[str, Projection]:
    """What is run for a matrix at a share of its break-even rank."""
    found = {n: p for n, p in PROJECTIONS.items() if not isinstance(p, Trained)}
    found["closed-form, fp32"] = single_precision
    if block != TRAINED_BLOCK or share != TRAINED_SHARE:
        return found
    side = "output" if name in ("o_proj", "down_proj") else "input"
    for tied, start, steps in itertools.product((True, False), ("random", "pca"), (80, 800)):
        if (side, start) != ("output", "pca"):
            label = f"trained, {'tied' if tied else 'free'}, {start} start, {steps} steps"
            found[label] = Trained(tied=tied, start=start, side=side, steps=steps)
    return found


def measured(projection: Projection, weight: Tensor, c: Tensor, held: Tensor, rank: int) -> dict[str, Any]:
    started = time.process_time()
    u, v = projection(weight, c, rank)
    seconds = time.process_time() - started
    product = u.double() @ v.double()
    return {
        "rank": rank,
        "error": relative_error(weight, product, c),
        "held_out": relative_error(weight, product, held),
        "seconds": round(seconds, 3),
    }


def tables(rows: list[dict[str, Any]]) -> str:
    """Error (held-out error) per method and matrix, and the seconds of all matrices."""
    text = ""
    for share in SHARES:
        own = [r for r in rows if r["key"]["share"] == share]
        names = list(dict.fromkeys(r["key"]["method"] for r in own))
        cells = {(r["key"]["method"], r["key"]["block"], r["key"]["matrix"]): r for r in own}
        head = ["method", *(f"{name} {block}" for block, name in MATRICES), "seconds, mean"]
        body = []
        for method in names:
            found = [cells.get((method, *m)) for m in MATRICES]
            seconds = [r["seconds"] for r in found if r]
            errors = [f"{r['error']:.4f} ({r['held_out']:.4f})" if r else "–" for r in found]
            body.append([method, *errors, f"{sum(seconds) / len(seconds):.2f}"])
        text += f"{share:.0%} of the break-even rank\n\n" + table(head, body)
    return text


def main() -> None:
    torch.set_num_threads(1)
    loaded, rows = model(), Rows("projection")
    names = list(MATRICES)
    weights = {key: linear.weight.detach().float() for key, linear in linears_of(loaded.model, names).items()}
    seen = grams(loaded, windows(loaded, "wikitext2_tok.valid", window=WINDOW, count=CALIBRATION // WINDOW), names)
    held = grams(loaded, windows(loaded, "wikitext2_tok.test", window=WINDOW, count=HELD_OUT // WINDOW), names)
    for (block, name), share in itertools.product(names, SHARES):
        key = block, name
        rank = int(share * break_even(*weights[key].shape))
        for method, projection in methods(block, name, share).items():

            def work(p: Projection = projection, key: Any = key, rank: int = rank) -> dict[str, Any]:
                return measured(p, weights[key], seen[key], held[key], rank)

            rows.run(work, block=block, matrix=name, share=share, method=method)
    print(tables(rows.rows))


if __name__ == "__main__":
    main()
