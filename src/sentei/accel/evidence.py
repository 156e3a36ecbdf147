"""What is said of each stage's model: how far it is from the dense model, and how well it predicts text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sentei.data.chat import Sample
from sentei.data.text import token_windows
from sentei.metrics.intervals import bootstrap
from sentei.metrics.perplexity import perplexity
from sentei.models.load import Loaded, context_length
from sentei.progress import Progress
from sentei.recover.select.damage import score
from sentei.recover.yardstick import WINDOW, WINDOWS


def judging_windows(texts: Sequence[str], dense: Loaded, skip: int) -> Any:
    """Windows of the text behind those that the cuts are fitted to, or its last ones: int64 [n, w]."""
    size = min(WINDOW, context_length(dense.model))
    return token_windows(texts, dense.tokenizer, window=size, tokens=skip + WINDOWS * size)[-WINDOWS:]


def evidence(
    dense: Any, model: Any, rows: Sequence[Sample], windows: Any, work: Path, progress: Progress
) -> dict[str, Any]:
    """Figures of a model, each with its 95 % interval over rows or windows.

    Args:
        dense: the model before all cuts.
        model: one of the same tokens.
        rows: held out from training.
        windows: of text, int64 [n, w].
        work: where scores are kept, so that a killed scoring goes on.
        progress: told about each batch.

    Returns:
        `{"rows", "text"}`: `{"count", "jsd", "interval"}`, the mean Jensen–Shannon divergence from the dense model in
        nats per token, and `"perplexity"`: `{"value", "interval"}` on the text. What is not finite is None.
    """
    said = np.arange(windows.shape[1]) > 0
    texts = [Sample(row.astype(np.int32), said, truncated=False) for row in windows.numpy()]
    found: dict[str, Any] = {}
    for name, samples in (("rows", rows), ("text", texts)):
        damage = score(dense, model, samples, work / name, top=0, progress=progress).jsd
        values = [float(value) for value in damage if not math.isnan(value)]
        found[name] = {"count": len(values), "jsd": _mean(values), "interval": _ends(values)}
    text = perplexity(model, windows, progress=progress)
    ends = text.interval
    found["perplexity"] = {
        "value": text.value if math.isfinite(text.value) else None,
        "interval": list(ends) if all(map(math.isfinite, ends)) else None,
    }
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ends(values: Sequence[float]) -> list[float] | None:
    ends = bootstrap(values) if values else (math.nan, math.nan)
    return list(ends) if all(map(math.isfinite, ends)) else None
