"""What the pages of a task share: sizes in words, and what is said of the task."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from sentei.plan import ModelShape
from sentei.report.figures import scaled
from sentei.report.words import known, metric_name, number

SIZES = {"block_params": "block params", "params": "all params", "flops_per_token": "FLOPs per token", "bytes": "bytes"}


def size(name: str, value: float) -> str:
    """One of `SIZES` in words."""
    return scaled(value, ("B", "kB", "MB", "GB", "TB")) if name == "bytes" else scaled(value)


def protocol(task: Mapping[str, Any]) -> dict[str, str]:
    """What every page of a task says of it."""
    rows = ", ".join(f"{name} {n:,}" for name, n in task["rows"].items())
    better = "more is better" if task["higher"] else "less is better"
    chance = task.get("chance")
    return {
        "task": f"{task['name']}, from {task['data']}",
        "metric": f"{metric_name(task['metric'])}, {better}",
        "sizes": "FLOPs of the blocks at context 1,024; bytes of bf16 weights and the KV cache of 1,024 tokens",
        "rows per split": f"{rows}; no row is in two of them",
        **({"guessing gives": number(chance)} if known(chance) and task["metric"] != "perplexity" else {}),
    }


def listed(facts: Mapping[str, str]) -> str:
    """Facts as a list of definitions."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<dl>{items}</dl>"


def sizes(shape: ModelShape) -> dict[str, int]:
    """Block params, all params, FLOPs per token at context 1,024, bytes in bf16 with its KV cache."""
    return {
        "block_params": shape.block_params(),
        "params": shape.params(),
        "flops_per_token": shape.flops(1024),
        "bytes": shape.bytes(1, 1024),
    }
