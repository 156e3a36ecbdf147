"""The tables of low-rank, fit and export in docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

from result_rows import rows, table

from sentei.metrics.proportions import wilson

TRANSFER_ROWS = 200  # of each set, as benchmarks/fit.py reads them


def fit_parts() -> dict[str, tuple[str, str]]:
    """Title: (words, body), of what has run."""
    fits, ships = rows("fit"), rows("ship")
    parts = {
        "Low-rank projections of one matrix": (
            "`python benchmarks/projection.py`. Relative output error ‖(W − M) X‖ / ‖W X‖ at half the break-even rank (held-out tokens in "
            "brackets), 16,384 tokens of demo text; seconds of one CPU thread for one matrix. The closed form's seconds are for all ranks at once.\n\n",
            projections(rows("projection")),
        ),
        "As small as a task allows": (
            "`python benchmarks/fit.py searches`. Splits of 400 calibration, 150 search, 150 confirmation and 200 test rows; one thread, and "
            "at most 10 minutes for `evolve`. *In place* is what the search itself found; *confirmed* is what was saved: for `evolve` and `path` a real cut, healed on "
            "24,000 tokens of the calibration rows, for the published searches (`uniform`, `genetic`) one cut of what they found, healed alike. "
            "`genetic` is stopped after 40 evaluations of all rows (the paper's take 1,000 to 3,000).\n\n",
            searches(fits),
        ),
        "A candidate of a search": (
            "`python benchmarks/fit.py cost`. Building every module that the knapsack's path uses at six sizes from 10 to 60 %, and scoring "
            "mutated candidates in place against the dense model on the same 150 rows, in turns.\n\n",
            candidate(fits),
        ),
        "Projections on a task": (
            "`python benchmarks/fit.py projections`. Every matrix keeps the same share of its parameters, nothing else is done; 150 search rows.\n\n",
            at_equal_size(fits),
        ),
        "Transfer of a fitted model": (
            "`python benchmarks/fit.py transfer`. The model that was fitted to ARC easy (training rows), on its own test set, on sets of the same "
            f"domain (ARC challenge, OpenBookQA) and on others; acc, {TRANSFER_ROWS} rows each, 95 % intervals (Wilson).\n\n",
            transfer(fits),
        ),
        "Exports: quality and size": (
            "`python benchmarks/ship.py quality`. Perplexity from llama.cpp's own log-probabilities, 8 windows of 512 of WikiText-2.\n\n",
            quality(ships),
        ),
        "Exports: speed in llama.cpp": (
            "`python benchmarks/ship.py speed`. Prompt 512, 64 new tokens, interleaved; ratios to the dense model with quartiles.\n\n",
            speed(ships),
        ),
        "Exports: parity": (
            "`python benchmarks/ship.py parity`. `auto` at 30 %, F32 files against torch in fp32; prefill positions × the whole vocabulary.\n\n",
            parity(ships),
        ),
    }
    return {title: part for title, part in parts.items() if part[1]}


def accuracy(share: float) -> str:
    """With its interval."""
    low, high = wilson(round(share * TRANSFER_ROWS), TRANSFER_ROWS)
    return f"{share:.1%} [{low:.0%}, {high:.0%}]"


def candidate(found: list[dict[str, Any]]) -> str:
    """Seconds of the library, and the ratio of a candidate to a plain forward."""
    own = [r for r in found if r["key"]["table"] == "cost"]
    body = [
        [f"{r['library_s']:.0f} s", f"×{r['ratio']:.2f}", f"×{r['spread'][0]:.2f} – ×{r['spread'][1]:.2f}"] for r in own
    ]
    return table(["library", "candidate : dense forward", "range of eight"], body)


def projections(found: list[dict[str, Any]]) -> str:
    """Error and time of every method, at one rank."""
    own = [r for r in found if "error" in r]
    if not own:
        return ""
    matrices = list(dict.fromkeys((r["key"]["block"], r["key"]["matrix"]) for r in own))
    body = []
    for method in dict.fromkeys(r["key"]["method"] for r in own):
        cells = []
        for block, matrix in matrices:
            some = [
                r for r in own if (r["key"]["block"], r["key"]["matrix"], r["key"]["method"]) == (block, matrix, method)
            ]
            some = [r for r in some if r["key"].get("share") == 0.5]
            cells.append(f"{some[0]['error']:.3f} ({some[0]['held_out']:.3f})" if some else "–")
        seconds = [r["seconds"] for r in own if r["key"]["method"] == method]
        body.append([method, *cells, f"{sum(seconds) / len(seconds):.2f}"])
    return table(["method", *(f"{matrix} {block}" for block, matrix in matrices), "s"], body)


def searches(found: list[dict[str, Any]]) -> str:
    """Every search on every task."""
    body = []
    for r in found:
        if r["key"]["table"] != "searches":
            continue
        key = r["key"]
        done = r["verdict"] == "met"
        interval = f" [{r['interval'][0]:+.1%}, {r['interval'][1]:+.1%}]" if done and None not in r["interval"] else ""
        body.append(
            [
                key["task"],
                f"{key['tolerance']:.0%}",
                key["search"],
                f"{r['removed_in_place']:.1%}",
                f"{r['removed']:.1%}" if done else "none",
                f"{r['dense']:.3f} → {r['confirmed']:.3f}{interval}" if done else f"{r['dense']:.3f}",
                f"{r['test']['dense']:.3f} → {r['test']['pruned']:.3f}" if done else "–",
                f"{r['evaluations'] - r['cuts']:.1f} + {r['cuts']:.0f} cuts",
                f"{r['minutes']:.0f}",
            ]
        )
    head = [
        "task",
        "tolerance",
        "search",
        "removed in place",
        "removed, confirmed",
        "confirmation rows",
        "test rows",
        "evaluations",
        "min",
    ]
    return table(head, body)


def at_equal_size(found: list[dict[str, Any]]) -> str:
    """Projections of all matrices at equal size."""
    body = [
        [r["key"]["task"], f"{r['removed']:.1%}", r["key"]["projection"], f"{r['value']:.3f}", f"{r['loss']:.3f}"]
        for r in found
        if r["key"]["table"] == "projections"
    ]
    return table(["task", "block params removed", "projection", "accuracy", "task loss, nats"], body)


def transfer(found: list[dict[str, Any]]) -> str:
    """A fitted model on other sets."""
    own = [r for r in found if r["key"]["table"] == "transfer"]
    names = [name for name in own[0] if name != "key"] if own else []
    body = [
        [
            r["key"]["model"],
            *(accuracy(r[n]["acc"]) for n in names),
        ]
        for r in own
    ]
    return table(["model", *names], body)


def quality(found: list[dict[str, Any]]) -> str:
    """Perplexity and bytes of pruned × quantised."""
    body = [
        [_name(r["key"]["sparsity"]), r["key"]["dtype"], f"{r['bytes'] / 1e6:.0f}", f"{r['perplexity']:.2f}"]
        for r in found
        if r["key"]["table"] == "quality"
    ]
    return table(["model", "GGUF type", "MB", "perplexity"], body)


def speed(found: list[dict[str, Any]]) -> str:
    """Speed-up against the bytes that a decoded token reads."""
    body = []
    for r in found:
        if r["key"]["table"] != "speed":
            continue
        for run in r["runs"]:
            ratios = [
                f"×{run[k]['median']:.2f} [{run[k]['low']:.2f}, {run[k]['high']:.2f}]" if run.get(k) else "1"
                for k in ("prefill_ratio", "decode_ratio")
            ]
            size = f"{run['bytes'] / 1e6:.0f} (×{r['runs'][0]['bytes'] / run['bytes']:.2f})"
            rates = [f"{run[k]:.0f}" for k in ("prefill_tokens_per_s", "decode_tokens_per_s")]
            body.append([run["export"].rsplit("/", 1)[-1], size, *rates, *ratios, f"{run['peak_rss_bytes'] / 1e6:.0f}"])
    return table(
        ["file", "MB (smaller by)", "prefill tokens/s", "decode tokens/s", "prefill", "decode", "peak MB"], body
    )


def parity(found: list[dict[str, Any]]) -> str:
    """Every route in its engine."""
    body = []
    for r in found:
        if r["key"]["table"] == "parity":
            cells = [f"{r[k]['delta']:.1e} over {r[k]['positions']:,}" for k in ("prefill", "decode")]
            body.append([r["key"]["route"], f"{r['engine']} {r['version']}", *cells, "yes" if r["passed"] else "no"])
    return table(["route", "engine", "max abs Δ log p, prefill", "decode", "passed"], body)


def _name(sparsity: float) -> str:
    return f"{sparsity:.0%} pruned" if sparsity else "dense"
