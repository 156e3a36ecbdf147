"""The tables of selection and tuning in docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from result_rows import rows, table

from sentei.prove.intervals import paired_bootstrap

LAMINI = 2_580_000  # rows of the largest pool that PASER reports on


def recovery_parts() -> dict[str, tuple[str, str]]:
    """Title: (words, body), of what has run."""
    found = rows("recover")
    sized = next((r["key"] for r in found if "rows" in r["key"]), None)
    size = (
        f"SmolLM2-135M cut by 25 % (calibrated on C4), pool: the first {sized['rows']:,} rows of alpaca, {sized['tokens']:,} tokens "
        "selected and trained on, in one epoch of equal batches; perplexity on 24 windows of 1,024 of WikiText-2 raw (test), mean "
        "accuracy of seven zero-shot tasks, 100 rows each. "
        if sized
        else ""
    )
    parts = {
        "Recovery: which data": (
            f"`python benchmarks/recover.py quality`. {size}Adapter `lora`, 1 % of the block params, cross-entropy, where nothing else "
            "is said. Differences are to the mean of the random arms, paired by row, with 95 % intervals. Seconds are of one thread on a machine "
            "that had other work; what a step costs is below.\n\n",
            quality(found),
        ),
        "Recovery: poison": (
            "`python benchmarks/recover.py poison`. A tenth of the pool replaced: half by off-language and off-topic rows, half by copies "
            "of other rows with another answer.\n\n",
            arms(found, "poison", "strategy", "rows", "of them poison", "perplexity", "mean accuracy"),
        ),
        "Recovery: adapters": (
            "`python benchmarks/recover.py rates`, then `adapters`. 1 % of the block params, cross-entropy, the same rows. The learning rate "
            "of each is the best of three on held-out alpaca rows, at a quarter of the tokens. Forgetting: loss on held-out C4 text.\n\n",
            arms(
                found,
                "adapters",
                "adapter",
                *("trained", "learning rate", "held-out loss", "perplexity", "mean accuracy", "C4 loss", "tuning"),
            ),
        ),
        "Recovery: text or teacher": (
            "`python benchmarks/recover.py kd`. Adapter `lora`, random rows, equal tokens.\n\n",
            arms(found, "kd", "loss", "perplexity", "mean accuracy", "C4 loss", "tuning"),
        ),
        "A training step": (
            "`python benchmarks/tune_speed.py`. Median of five rounds in turns, with the range. Stock is transformers + peft (LoRA of rank 8 "
            "on every linear of the blocks, bf16); the floor is three forward passes of the body.\n\n",
            step(rows("tune_speed")),
        ),
        "Clustering at scale": (
            "`python benchmarks/select_scale.py`. A fresh process per size; the peak is of the whole process.\n\n",
            scale(rows("select_scale")),
        ),
    }
    return {title: part for title, part in parts.items() if part[1]}


def outcomes(row: dict[str, Any]) -> list[int]:
    """Right or wrong, of every row of every task."""
    return [int(c) for name in sorted(row["right"]) for c in row["right"][name]]


def quality(found: list[dict[str, Any]]) -> str:
    own = [r for r in found if r["key"]["table"] == "quality"]
    text = ""
    dense = next((r for r in own if r["key"]["arm"] == "dense"), None)
    for preset in dict.fromkeys(r["key"].get("preset") for r in own if "preset" in r["key"]):
        arms = [r for r in own if r["key"].get("preset") == preset]
        chance = [r for r in arms if r["key"]["arm"] == "random"]
        mean = np.mean([outcomes(r) for r in chance], axis=0).tolist() if chance else None
        body = []
        for r in ([dense] if dense else []) + arms:
            seed = f" (seed {r['key']['seed']})" if r["key"]["arm"] == "random" else ""
            cells = [r["key"]["arm"] + seed, f"{r['selected']:,}" if "selected" in r else "–"]
            cells += [f"{r['perplexity']:.2f}", f"{r['accuracy']:.2%}"]
            cells.append(f"{r['accuracy'] / dense['accuracy']:.1%}" if dense else "–")
            if mean is not None and r["key"]["arm"] != "random":
                low, high = paired_bootstrap(outcomes(r), mean)
                cells.append(
                    f"{100 * (np.mean(outcomes(r)) - np.mean(mean)):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
                )
            else:
                cells.append("–")
            body.append([*cells, f"{r['seconds']} s" if "seconds" in r else "–"])
        head = ["arm", "rows", "perplexity", "mean accuracy", "of dense", "points against random", "tuning"]
        text += f"### Cut with `{preset}`\n\n" + table(head, body)
    return text


# Head and cell of the columns that several tables have.
CELLS: dict[str, Callable[[dict[str, Any]], str]] = {
    "rows": lambda r: f"{r['selected']:,}",
    "of them poison": lambda r: f"{r['poison']} ({r['poison'] / r['selected']:.1%})",
    "trained": lambda r: f"{r['trainable_params']:,}",
    "learning rate": lambda r: f"{r['learning_rate']:g}",
    "held-out loss": lambda r: f"{min(r['heldout']):.4f}",
    "perplexity": lambda r: f"{r['perplexity']:.2f}",
    "mean accuracy": lambda r: f"{r['accuracy']:.2%}",
    "C4 loss": lambda r: f"{r['general']:.4f}",
    "tuning": lambda r: f"{r['seconds']} s",
}


def arms(found: list[dict[str, Any]], name: str, first: str, *columns: str) -> str:
    """A table with one row per arm: its name under `first`, then the columns."""
    own = [r for r in found if r["key"]["table"] == name]
    return table([first, *columns], [[r["key"]["arm"], *(CELLS[column](r) for column in columns)] for r in own])


def step(found: list[dict[str, Any]]) -> str:
    body = []
    for r in found:
        floor = 3 * r["seconds"]["forward"]
        for arm in ("stock", "lora", "lora+sparse"):
            low, high = r["spread"][arm]
            body.append(
                [
                    f"{r['key']['batch']}: {r['tokens']:,} tokens, {r['targets']:,} targets",
                    arm,
                    f"{r['seconds'][arm]:.2f} s [{low:.2f}, {high:.2f}]",
                    f"×{r['seconds']['stock'] / r['seconds'][arm]:.2f}",
                    f"×{r['seconds'][arm] / floor:.2f}",
                ]
            )
    return table(["batch", "step", "time", "speed against stock", "time against the floor"], body)


def scale(found: list[dict[str, Any]]) -> str:
    own = [r for r in found if r["key"]["step"] == "cluster"]
    if not own:
        return ""
    body = [
        [
            f"{r['key']['rows']:,}",
            f"{r['seconds']:.1f} s",
            f"{r['peak_rss_bytes'] / 1e9:.2f} GB",
            str(r["clusters"]),
            f"{r['largest_share']:.0%}",
        ]
        for r in own
    ]
    text = table(["rows", "clustering", "peak memory", "clusters", "largest cluster"], body)
    for r in found:
        if r["key"]["step"] == "embed":
            text += f"Embedding {r['key']['rows']:,} instructions: {r['seconds']:.0f} s.\n\n"
        if r["key"]["step"] == "score":
            low, high = r["spread"]
            text += (
                f"Scoring (`python benchmarks/score_speed.py`): ×{r['throughput_ratio']:.2f} [{low:.2f}, {high:.2f}] of the throughput of "
                f"plain forward passes of both models over the same batches; {r['tokens_per_s']:,.0f} tokens/s.\n\n"
            )
    if len(own) > 1:
        sizes = [r["key"]["rows"] for r in own]
        seconds, peak = (
            np.polyval(np.polyfit(sizes, [r[key] for r in own], 1), LAMINI) for key in ("seconds", "peak_rss_bytes")
        )
        text += (
            f"A straight line through these gives {seconds / 60:.0f} minutes and {peak / 1e9:.0f} GB for {LAMINI:,} rows "
            "(LaMini).\n\n"
        )
    return text
