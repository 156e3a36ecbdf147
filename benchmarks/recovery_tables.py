"""The tables of selection and tuning in docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from result_rows import rows, table
from scipy import stats

from sentei.metrics.intervals import paired_bootstrap

BIASED = "boolq.val"  # yes or no: its accuracy moves with how often a model says yes
LAMINI = 2_580_000  # rows of the largest pool that PASER reports on


def recovery_parts() -> dict[str, tuple[str, str]]:
    """Title: (words, body), of what has run."""
    found = rows("recover")
    sized = next((r["key"] for r in found if "rows" in r["key"]), None)
    size = (
        f"SmolLM2-135M cut by 25 % (calibrated on C4), pool: the first {sized['rows']:,} rows of alpaca, {sized['tokens']:,} tokens "
        "selected and trained on, in one epoch of equal batches; perplexity on 24 windows of 1,024 of WikiText-2 raw (test), zero-shot "
        "tasks of 100 rows each. "
        if sized
        else ""
    )
    parts = {
        "Recovery: which data": (
            f"`python benchmarks/recover.py quality`. {size}Adapter `lora`, 1 % of the block params, cross-entropy, where nothing else "
            "is said. Seconds are of one thread on a machine that had other work; what a step costs is below.\n\n"
            "**The accuracies say nothing about which data to choose.** BoolQ is a yes-or-no task: what moves there is how often a model "
            "says yes, so it stands apart from the mean of the other six. Each arm was trained once, and random rows of three seeds differ "
            "as much as the arms do: the intervals (95 %, over rows and seeds) of all trained arms hold 0. Earlier versions of this page "
            "compared means over seven tasks with intervals over rows only; those comparisons are withdrawn until they are measured "
            "anew with more seeds.\n\n",
            quality(found),
        ),
        "Recovery: poison": (
            "`python benchmarks/recover.py poison`. A tenth of the pool replaced: half by off-language and off-topic rows, half by copies "
            "of other rows with another answer.\n\n",
            arms(found, "poison", "strategy", "rows", "of them poison", "perplexity", "six tasks"),
        ),
        "Recovery: adapters": (
            "`python benchmarks/recover.py rates`, then `adapters`. 1 % of the block params, cross-entropy, the same rows. The learning rate "
            "of each is the best of three on held-out alpaca rows, at a quarter of the tokens. Forgetting: loss on held-out C4 text.\n\n",
            arms(
                found,
                "adapters",
                "adapter",
                *("trained", "learning rate", "held-out loss", "perplexity", "six tasks", "C4 loss", "tuning"),
            ),
        ),
        "Recovery: text or teacher": (
            "`python benchmarks/recover.py kd`. Adapter `lora`, random rows, equal tokens.\n\n",
            arms(found, "kd", "loss", "perplexity", "six tasks", "C4 loss", "tuning"),
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


def outcomes(row: dict[str, Any], without: str = BIASED) -> list[int]:
    """Right or wrong, of every row of every task but one."""
    return [int(c) for name in sorted(row["right"]) if name != without for c in row["right"][name]]


def against_random(row: dict[str, Any], chance: list[dict[str, Any]]) -> str:
    """Points of mean accuracy above the random arms, with an interval over rows and over seeds.

    Every arm is one training: its seed's share of the error is the spread of the random arms, t-distributed with one degree of
    freedom less than there are of them, for the arm and for their mean; both halves are added in squares.
    """
    if len(chance) < 2:
        return "–"
    means = [float(np.mean(outcomes(r))) for r in chance]
    mean = np.mean([outcomes(r) for r in chance], axis=0).tolist()
    point = float(np.mean(outcomes(row)) - np.mean(mean))
    low, high = paired_bootstrap(outcomes(row), mean)
    seeds = float(stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) * np.sqrt(1 + 1 / len(means)))
    low, high = point - np.hypot(point - low, seeds), point + np.hypot(high - point, seeds)
    return f"{100 * point:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def quality(found: list[dict[str, Any]]) -> str:
    own = [r for r in found if r["key"]["table"] == "quality"]
    text = ""
    dense = next((r for r in own if r["key"]["arm"] == "dense"), None)
    for preset in dict.fromkeys(r["key"].get("preset") for r in own if "preset" in r["key"]):
        arms = [r for r in own if r["key"].get("preset") == preset]
        chance = [r for r in arms if r["key"]["arm"] == "random"]
        body = []
        for r in ([dense] if dense else []) + arms:
            random = r["key"]["arm"] == "random"
            cells = [r["key"]["arm"] + (f" (seed {r['key']['seed']})" if random else "")]
            cells += [f"{r['selected']:,}" if "selected" in r else "–", f"{r['perplexity']:.2f}"]
            cells += [f"{np.mean(outcomes(r)):.2%}", f"{r['tasks'][BIASED]:.0%}"]
            cells.append("–" if random else against_random(r, chance))
            body.append([*cells, f"{r['seconds']} s" if "seconds" in r else "–"])
        head = ["arm", "rows", "perplexity", "six tasks", "BoolQ", "six tasks, points against random", "tuning"]
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
    "six tasks": lambda r: f"{np.mean(outcomes(r)):.2%}",
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
