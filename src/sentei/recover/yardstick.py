"""Which model a run keeps, the cut or the recovered one: the nearer to the dense model, on what neither was trained on.

The yardstick is the same whatever recovery minimised: the divergence from the dense model on rows of the pool that were
left out, evenly over its capabilities, and on other text, where a narrow pool makes a model forget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sentei.data.chat import Sample
from sentei.data.text import token_windows
from sentei.models.load import Loaded, context_length
from sentei.progress import Progress
from sentei.recover.capabilities import change
from sentei.recover.select.damage import score

ENOUGH = 16  # rows or windows below which a part decides nothing
WINDOWS = 16  # of the other text
WINDOW = 64  # tokens of each
PARTS = {"rows": "held-out rows of the pool", "text": "other text"}


def on_text(
    dense: Callable[[], Loaded],
    before: Callable[[], Loaded],
    after: Callable[[], Loaded],
    texts: Sequence[str],
    work: Path,
    *,
    skip: int,
    progress: Progress,
) -> dict[str, Any]:
    """The divergence from the dense model on text, before and after recovery; see `change`.

    Args:
        dense: loads the model before pruning.
        before: loads the model as it was cut.
        after: loads it after recovery.
        texts: the calibration text.
        work: where the scores are kept, so that a killed scoring goes on.
        skip: tokens of the texts that the cut was fitted to; the windows are those behind them, or the last ones.
        progress: told about each batch.
    """
    model = dense()
    size = min(WINDOW, context_length(model.model))
    ids = token_windows(texts, model.tokenizer, window=size, tokens=skip + WINDOWS * size)[-WINDOWS:]
    said = np.arange(size) > 0
    samples = [Sample(row.astype(np.int32), said, truncated=False) for row in ids.numpy()]
    damages = [
        score(model.model, load().model, samples, work / name, top=0, progress=progress).jsd.tolist()
        for name, load in (("text-before", before), ("text-after", after))
    ]
    return change(list(zip(*damages, strict=True)))


def judge(rows: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """Which model is kept.

    The recovered one is, where the mean of both relative changes is a fall and neither of them a clear rise: one whose
    whole 95 % interval is above 0. A part with less than `ENOUGH` samples decides nothing; where both have less,
    nothing speaks against the recovered model.

    Args:
        rows: what `change` found on rows of the pool that were left out.
        text: the same on other text.

    Returns:
        `{"kept": "recovered" or "pruned", "reason": text, "enough": ENOUGH, "rows", "text"}`, the last two as given.
    """
    parts = {"rows": rows, "text": text}
    known = {name: part for name, part in parts.items() if part["rows"] >= ENOUGH}
    broken = [name for name, part in known.items() if part["after"]["value"] is None]
    backs = {name: part["came_back"] for name, part in known.items() if part["came_back"] is not None}
    risen = [name for name in backs if known[name]["interval"] and known[name]["interval"][1] < 0]
    told = " and ".join(f"{_moved(back)} on {PARTS[name]}" for name, back in backs.items())
    kept = "recovered"
    if broken:
        kept, reason = "pruned", f"its predictions are no numbers on {PARTS[broken[0]]}"
    elif not backs:
        reason = f"too few rows to say whether it helped: {rows['rows']:,}, at least {ENOUGH} are needed"
    else:
        if risen or sum(backs.values()) <= 0:
            kept = "pruned"
        reason = f"the distance to the dense model {told}"
    return {"kept": kept, "reason": reason, "enough": ENOUGH, **parts}


def _moved(back: float) -> str:
    return f"fell by {100 * back:.1f} %" if back > 0 else f"grew by {-100 * back:.1f} %" if back < 0 else "stayed"
