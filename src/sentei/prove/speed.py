"""Tokens per second, as ratios that a noisy machine does not spoil: models take turns, round by round."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sentei.errors import InputError
from sentei.inference.forward import evaluating, final_hidden, logits, stage

ROUNDS = 5  # that count


def speed(
    models: Mapping[str, Any],
    *,
    prompt: int = 512,
    new: int = 32,
    batch: int = 1,
    rounds: int = ROUNDS,
    progress: Any = None,
) -> dict[str, dict[str, Any]]:
    """Prefill and decode speed of several models, interleaved (A, B, A, B, …) after one round that is not counted.

    All get the same random prompt; decoding is greedy, with a KV cache, and does not stop at an end mark.

    Args:
        models: by name; the first is what the ratios compare with.
        prompt: tokens of the prompt.
        new: tokens decoded after it.
        batch: sequences at a time.
        rounds: counted rounds.
        progress: shows a stage, counted in runs.

    Returns:
        Per name: `prefill_tokens_per_s` and `decode_tokens_per_s` (medians; `…_spread` holds the quartiles),
        `prefill_ratio` and `decode_ratio` (speed over the first model's in the same round: `median`, `low`, `high`,
        the last two the quartiles), and the protocol: `prompt`, `new`, `batch`, `rounds`.
    """
    for name, value in (("prompt", prompt), ("new", new), ("batch", batch), ("rounds", rounds)):
        if value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
    vocabulary = min(model.get_output_embeddings().weight.shape[0] for model in models.values())
    ids = torch.randint(vocabulary, (batch, prompt), generator=torch.Generator().manual_seed(0))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    with stage(progress, "speed", (rounds + 1) * len(models), "runs") as advance:
        for _ in range(rounds + 1):
            for name, model in models.items():
                taken[name].append(_run(model, ids, new))
                advance(1)
    rates = {
        name: batch * np.array([prompt, new]) / np.array(times[1:]) for name, times in taken.items()
    }  # [rounds, 2]
    first = next(iter(rates.values()))
    found: dict[str, dict[str, Any]] = {}
    for name, rate in rates.items():
        figures: dict[str, Any] = {}
        for column, part in enumerate(("prefill", "decode")):
            low, median, high = np.quantile(rate[:, column], [0.25, 0.5, 0.75]).tolist()
            figures |= {f"{part}_tokens_per_s": median, f"{part}_spread": [low, high]}
            low, median, high = np.quantile(rate[:, column] / first[:, column], [0.25, 0.5, 0.75]).tolist()
            figures[f"{part}_ratio"] = {"median": median, "low": low, "high": high}
        found[name] = figures | {"prompt": prompt, "new": new, "batch": batch, "rounds": rounds}
    return found


def _run(model: Any, ids: Tensor, new: int) -> tuple[float, float]:
    """Seconds of one prefill (with the first token chosen) and of `new` decoding steps."""
    ids = ids.to(model.device)
    with evaluating(model):
        start = _now(model)
        token, cache = _step(model, ids, None)
        filled = _now(model)
        for _ in range(new):
            token, cache = _step(model, token, cache)
        return filled - start, _now(model) - filled


def _step(model: Any, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
    hidden, cache = final_hidden(model, ids, cache, use_cache=True)
    return logits(model, hidden[:, -1]).argmax(-1, keepdim=True), cache


def _now(model: Any) -> float:
    torch.get_device_module(model.device).synchronize()  # devices work asynchronously; on the CPU this does nothing
    return time.perf_counter()
