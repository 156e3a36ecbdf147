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
    return SimpleNamespace(
        blocks=blocks, tokens=32768, window=1024, gradient_tokens=8192, model_digest="a" * 64, data_digest="c" * 64
    )


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


def recipe() -> Recipe:
    return Recipe(model="tiny-dense", budget=Budget(sparsity=0.2))
