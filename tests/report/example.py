"""A made-up run of a model of eight blocks: what the report is made from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from sentei.plan import BlockPlan, BlockShape, Budget, ModelShape, Plan
from sentei.recipe import Recipe

BLOCKS = 8


def shape() -> ModelShape:
    blocks = tuple(BlockShape(kv_groups=3, heads_per_group=3, ffn=1536) for _ in range(BLOCKS))
    return ModelShape(hidden=576, head_dim=64, vocab=49152, tied=True, blocks=blocks)


def plan() -> Plan:
    def block(i: int) -> BlockPlan:
        groups = [] if i == 5 else [0, 2] if i == 3 else [0, 1, 2]
        return BlockPlan(
            kv_groups=groups,
            query_heads=[[0, 1, 2]] * len(groups),
            ffn=list(range(1536 - 150 * i)),
            reason=f"predicted loss +{i}e-3 <nats>",
        )

    blocks = [block(i) for i in range(BLOCKS)]
    names = {"method": "auto", "score": "obs-fisher", "allocation": "global", "compensation": "least-squares"}
    made = Plan(model="a" * 64, profile="b" * 64, budget=Budget(sparsity=0.2), dense=shape(), blocks=blocks, **names)
    small = made.shape()
    made.predicted = {
        "block_params": small.block_params(),
        "params": small.params(),
        "flops_ratio": small.flops(1024) / shape().flops(1024),
        "loss_increase": 0.31,
    }
    return made


def profile(gradients: bool = True) -> Any:
    def part(size: float) -> Any:
        return SimpleNamespace(taylor=torch.full((10,), size) if gradients else None)

    blocks = [SimpleNamespace(attention=part(0.01 + 0.002 * i), ffn=part(0.03), angle=0.9) for i in range(BLOCKS)]
    facts = {"tokens": 32768, "window": 1024, "gradient_tokens": 8192, "info": {"dtype": "torch.bfloat16"}}
    return SimpleNamespace(blocks=blocks, model_digest="a" * 64, data_digest="c" * 64, **facts)


def evaluated(name: str, scale: float) -> dict[str, Any]:
    """What `evaluate` says of one model."""
    accuracies = {"piqa": 0.66, "arc_easy": 0.52, "basic_skills_pattern": 0.71}
    return {
        "schema_version": 1,
        "model": name,
        "params": int(134e6 * scale),
        "block_params": int(106e6 * scale),
        "perplexity": {"demo": {"value": 20 / scale, "tokens": 16384, "window": 1024, "interval": [19.0, 26.0]}},
        "tasks": {
            task: {"acc": acc * scale, "acc_norm": None, "n": 80, "interval": [acc * scale - 0.1, acc * scale + 0.1]}
            for task, acc in accuracies.items()
        },
        "speed": {
            "prefill_tokens_per_s": 1500 / scale,
            "prefill_spread": [1400 / scale, 1550 / scale],
            "decode_tokens_per_s": 31 / scale,
            "decode_spread": [30 / scale, 32 / scale],
        },
        "memory": {"weights_bytes": int(269e6 * scale), "kv_cache_bytes": 23592960, "disk_bytes": int(272e6 * scale)},
    }


def evidence() -> dict[str, Any]:
    dense, pruned = evaluated("tiny-dense", 1.0), evaluated("tiny-pruned", 0.8)
    comparison = {
        "model": "tiny-pruned",
        "reference": "tiny-dense",
        "perplexity": {"demo": {"ratio": 1.25, "interval": [1.2, 1.3]}},
        "tasks": {
            task: {"difference": cell["acc"] * -0.2, "interval": [-0.2, -0.03 if task == "piqa" else 0.01]}
            for task, cell in dense["tasks"].items()
        },
        "speed": {part: {"ratio": 1.25, "interval": [1.2, 1.31]} for part in ("prefill", "decode")},
    }
    return {"schema_version": 1, "models": [dense, pruned], "comparisons": [comparison]}


def evidence_recovered() -> dict[str, Any]:
    """The same with a third model, that recovery made of the second."""
    found, recovered = evidence(), evaluated("tiny-recovered", 0.9)
    recovered |= {key: found["models"][1][key] for key in ("params", "block_params", "speed", "memory")}

    def against(reference: str, ratio: float, gain: float) -> dict[str, Any]:
        return {
            "model": "tiny-recovered",
            "reference": reference,
            "perplexity": {"demo": {"ratio": ratio, "interval": [ratio - 0.05, ratio + 0.05]}},
            "tasks": {
                task: {"difference": gain, "interval": [gain - 0.04, gain + 0.04]} for task in recovered["tasks"]
            },
            "speed": {},
        }

    found["models"].append(recovered)
    found["comparisons"].append(
        found["comparisons"][0]
        | {key: value for key, value in against("tiny-dense", 1.11, -0.06).items() if key != "speed"}
    )
    found["steps"] = [against("tiny-pruned", 0.89, 0.06)]
    return found


def capability(name: str, before: float, after: float | None, selected: int) -> dict[str, Any]:
    """One row of `sentei.recover.capabilities.compare`; after is None where no row could be scored again."""

    def mean(value: float | None) -> dict[str, Any]:
        return {"value": value, "interval": None if value is None else [value * 0.9, value * 1.1]}

    back = None if after is None else 1 - after / before
    return {
        "name": name,
        "pool_rows": 150,
        "selected": selected,
        "share": selected / 300,
        "rows": 0 if after is None else 32,
        "before": mean(None if after is None else before),
        "after": mean(after),
        "came_back": back,
        "interval": None if back is None else [back - 0.08, back + 0.07],
    }


def _damages(rows: int, before: float, after: float) -> dict[str, Any]:
    changed = {name: {"value": value, "interval": None} for name, value in (("before", before), ("after", after))}
    return {"rows": rows, **changed, "came_back": 1 - after / before, "interval": None}


def recovery() -> dict[str, Any]:
    """What `sentei.report.recovery.collect` gives."""
    curve = [(0, 2.1), (4000, 1.8), (12000, 1.62), (24000, 1.55), (32000, 1.56), (40000, 1.58)]
    return {
        "pool": {"source": "pool <b>.jsonl", "format": "completion", "rows": 600},
        "strategy": "auto",
        "budget": {"asked": "0.5", "unit": "share", "selected": 300, "tokens": 18000},
        "filters": ["empty", "language"],
        "tune": {
            "adapter": "lora+sparse",
            "trainable_params": 1_062_000,
            "loss": "both",
            "tokens": 40000,
            "stopped": "early stop",
            "note": "the held-out loss has not fallen for 3 evaluations",
            "recommendation": "the held-out loss fell from 2.100 to 1.550",
            "curve": [{"step": n, "tokens": tokens, "heldout": loss} for n, (tokens, loss) in enumerate(curve)],
            "seconds": 80.0,
        },
        "capabilities": [
            capability("function, list, def", 0.21, 0.12, 170),
            capability("<script>alert(1)</script>, & sums", 0.11, 0.105, 100),
            capability("winter, evening", 0.08, None, 30),
        ],
        "overall": {key: value for key, value in capability("", 0.14, 0.1, 0).items() if key not in ("name", "share")},
        "yardstick": {
            "kept": "recovered",
            "reason": "the distance to the dense model fell by 28.6 % on held-out rows of the pool",
            "enough": 16,
            "rows": _damages(64, 0.14, 0.1),
            "text": _damages(16, 0.09, 0.085),
        },
        "notes": ["64 rows <i>of</i> the pool were neither selected nor rejected"],
        "cost": {
            "seconds": {"select": 61.0, "tune": 85.0},
            "trained_tokens": 40000,
            "scored_tokens": 31000,
            "watt_hours": 2.43,
            "money": 0.02,
            "currency": "EUR <",
        },
    }


def recipe() -> Recipe:
    return Recipe(model="tiny-dense", budget=Budget(sparsity=0.2))
