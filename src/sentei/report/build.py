"""`build`: every figure of a run, with units, protocol and intervals, as one JSON value."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentei
from sentei.plan import ModelShape, Plan
from sentei.prune.methods import METHODS
from sentei.prune.planning import ANY_SIZE
from sentei.recipe import Recipe
from sentei.report.figures import Figure, collect, mean_accuracy

if TYPE_CHECKING:
    from sentei.measure.profile import PartStats, Profile

SCHEMA_VERSION = 1
ROLES = ("dense", "pruned", "recovered")


def build(
    *,
    recipe: Recipe,
    profile: Profile,
    plan: Plan,
    evidence: Mapping[str, Any],
    seconds: Mapping[str, float],
    recovery: Mapping[str, Any] | None = None,
    exports: Sequence[Mapping[str, Any]] = (),
    accel: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The contents of report.json.

    Args:
        recipe: what was asked for.
        profile: what was measured of the dense model.
        plan: what was kept.
        evidence: what `evaluate` returned for dense, pruned and, after recovery, recovered, in this order.
        seconds: how long each stage took.
        recovery: see `sentei.report.recovery.collect`; None where there was none.
        exports: what the stage `ship` wrote into exports.json.
        accel: what the stage `accel` wrote into accel.json; None where there was one cut.
    """
    figures = collect(evidence)
    mean = mean_accuracy(figures)
    models = dict(zip(ROLES[: 2 if recovery is None else 3], evidence["models"], strict=True))
    base = plan.method.split()[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "sentei": sentei.__version__,
        "model": Path(recipe.model).name,
        "budget": plan.budget.model_dump(mode="json", exclude_none=True) | {"words": plan.budget.describe()},
        "method": {
            "name": plan.method,
            "score": plan.score,
            "allocation": plan.allocation,
            "compensation": plan.compensation,
            "protect": str(plan.protect),
            "weigh": plan.weigh,
            "line": METHODS[base].line if base in METHODS else "",
            "paper": METHODS[base].paper if base in METHODS else "",
        },
        "models": models,
        "comparisons": evidence.get("comparisons", []),
        **({} if recovery is None else {"steps": evidence["steps"], "recovery": dict(recovery)}),
        "figures": [figure.to_json() for figure in figures],
        "average_accuracy": dict(zip(ROLES, mean.values if mean else [], strict=False)),
        **({"mean_accuracy": mean.to_json()} if mean else {}),
        "blocks": blocks(plan, profile),
        **({} if accel is None else {"accel": dict(accel)}),
        **({"exports": list(exports)} if exports else {}),
        "predictions": [*_predictions(_dtype(profile), plan, models, figures), *_served(plan, exports)],
        **({"calibrated_on": evidence["calibrated_on"]} if "calibrated_on" in evidence else {}),
        "protocol": _protocol(recipe, profile, plan),
        "seconds": dict(seconds),
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
    }


def blocks(plan: Plan, profile: Profile) -> list[dict[str, Any]]:
    """Per block: what is kept of each part, and what the profile says about it."""
    dense, small = plan.dense, plan.shape()
    rows = []
    for i, (kept, full) in enumerate(zip(plan.blocks, dense.blocks, strict=True)):
        stats = profile.blocks[i]
        heads = len(kept.kv_groups) * kept.heads_per_group
        rows.append(
            {
                "block": i,
                "attention": {
                    "kept": _share(dense.attention_params(full), small.attention_params(small.blocks[i])),
                    "kv_groups": [len(kept.kv_groups), full.kv_groups],
                    "query_heads": [heads, full.kv_groups * full.heads_per_group],
                    "sensitivity": _sensitivity(stats.attention),
                },
                "ffn": {
                    "kept": _share(dense.ffn_params(full), small.ffn_params(small.blocks[i])),
                    "channels": [len(kept.ffn), full.ffn],
                    "sensitivity": _sensitivity(stats.ffn),
                },
                "ranks": dict(kept.ranks),
                "params": [_params(small, i), _params(dense, i)],
                "cosine": stats.angle,
                "reason": kept.reason,
            }
        )
    return rows


def _share(full: int, kept: int) -> float:
    return min(kept / full, 1.0) if full else 0.0  # a bias that compensation adds is no share kept


def _params(shape: ModelShape, block: int) -> int:
    return shape.attention_params(shape.blocks[block]) + shape.ffn_params(shape.blocks[block])


def _sensitivity(part: PartStats | None) -> float | None:
    """The sum of |weight · gradient| of a part: an order, no growth of the loss. None without gradients."""
    return part.taylor.sum().item() if part is not None and part.taylor is not None else None


def _predictions(dtype: str, plan: Plan, models: Mapping[str, Any], figures: list[Figure]) -> list[dict[str, Any]]:
    """What the plan predicted beside what was measured; `note` says what differs between the two."""
    predicted, pruned = plan.predicted, models["pruned"]
    rows = [
        _row("block params", "parameters", predicted.get("block_params"), pruned["block_params"]),
        _row("all params", "parameters", predicted.get("params"), pruned["params"]),
    ]
    by_name = {(f.group, f.name): f for f in figures}
    prefill = by_name.get(("speed", "prefill"))
    if prefill and prefill.change and "flops_ratio" in predicted:
        note = f"predicted from FLOPs at context {plan.budget.context}, embeddings and head left out"
        rows.append(_row("prefill speed-up", "ratio", 1 / predicted["flops_ratio"], prefill.change.value, note))
    weights = (pruned.get("memory") or {}).get("weights_bytes")
    if weights:
        size = plan.shape().params() * (4 if dtype == "float32" else 2)
        rows.append(_row("weights", "bytes", size, weights, f"predicted for {dtype}"))
    text = next((f for f in figures if f.group == "perplexity" and f.change), None)
    if "loss_increase" in predicted and text and text.change:
        note = (
            f"measured on {text.name}; predicted is a sum over parts, each removed alone, to second order, on the "
            "calibration text: it ranks plans and is no forecast. Parts that go together harm each other, and new text "
            "is harder than calibration text, so that several times as much is often measured"
        )
        if ANY_SIZE in predicted:
            note += f". {predicted[ANY_SIZE]:.4f} with sizes that engine {plan.budget.target_engine} cannot hold"
        rows.append(_row("loss increase", "nats", predicted["loss_increase"], math.log(text.change.value), note))
    return [row for row in rows if row["predicted"] is not None]


def _served(plan: Plan, exports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The speed-up in engines: by FLOPs of the blocks for the prompt, by bytes of the files for each new token."""
    rows = []
    for export in exports:
        timed = export["speed"]
        for run in timed["runs"] if timed else ():
            where = f"in {run['engine']}, {export['dtype']}"
            half = timed["protocol"]["prompt"] // 2  # what a token of the prompt attends to, on average
            flops = plan.dense.flops(half) / plan.shape().flops(half)
            note = "predicted from FLOPs of the blocks"
            rows.append(_row(f"prefill speed-up {where}", "ratio", flops, run["prefill_ratio"]["median"], note))
            size, note = timed["dense_bytes"] / export["bytes"], "predicted from the bytes of the files"
            rows.append(_row(f"decode speed-up {where}", "ratio", size, run["decode_ratio"]["median"], note))
    return rows


def _row(name: str, unit: str, predicted: float | None, measured: float, note: str = "") -> dict[str, Any]:
    return {"name": name, "unit": unit, "predicted": predicted, "measured": measured, "note": note}


def _dtype(profile: Profile) -> str:
    """What the models were computed in, by name."""
    return str(profile.info["dtype"]).removeprefix("torch.")


def _protocol(recipe: Recipe, profile: Profile, plan: Plan) -> dict[str, Any]:
    import torch
    import transformers

    from sentei.machine import describe

    return {
        "calibration": {
            "data": Path(recipe.data).name,
            "tokens": profile.tokens,
            "window": profile.window,
            "gradient_tokens": profile.gradient_tokens,
        },
        "prove": recipe.prove.model_dump(mode="json")
        | {"texts": [Path(t).name for t in recipe.prove.texts], "tasks": [Path(t).name for t in recipe.prove.tasks]},
        "dtype": _dtype(profile),
        "seed": recipe.seed,
        "machine": {
            **describe(recipe.dtype, recipe.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hashes": {
            "model": profile.model_digest,
            "data": profile.data_digest,
            "profile": plan.profile,
            "plan": plan.digest(),
        },
    }
