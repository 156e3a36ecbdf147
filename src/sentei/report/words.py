"""How metrics, shares and changes are written, in pages and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sentei.data.task_file import PYTHON


def metric_name(name: str) -> str:
    """The name of a metric; of a Python function its last part, which says enough and shows no directories."""
    rest = name.removeprefix(PYTHON)
    return name if rest == name else rest.rpartition(":" if ":" in rest else ".")[2]


def known(value: Any) -> bool:
    """Whether there is a number: not None, not NaN, not infinite."""
    return value is not None and math.isfinite(value)


def number(value: float | None) -> str:
    """A metric: `0.617`, `12.34`; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return _minus(f"{value:.3f}" if abs(value) < 10 else f"{value:,.2f}")


def percent(share: float | None, digits: int = 1) -> str:
    """`43.2 %` for 0.432."""
    return "–" if share is None or not math.isfinite(share) else _minus(f"{100 * share:.{digits}f} %")


def signed(change: float | None) -> str:
    """`+0.5 %` for 0.005."""
    return "–" if change is None or not math.isfinite(change) else _minus(f"{100 * change:+.1f} %")


def between(interval: Sequence[float | None] | None) -> str:
    """`−3.2 % … +2.1 %`; empty where an end is missing."""
    if not interval or not all(map(known, interval)):
        return ""
    return f"{signed(interval[0])} … {signed(interval[1])}"


def relative(value: float | None, dense: float | None) -> float | None:
    """Change of a metric against the dense model's; None where one of them is missing."""
    return value / dense - 1 if value is not None and dense and known(value) and known(dense) else None


def changed(dense: float | None, value: float | None, interval: Sequence[float | None] | None) -> str:
    """`from 0.617 to 0.613 (−0.6 %, 95 % interval −3.2 % … +2.1 %)`."""
    sure = f", 95 % interval {ends}" if (ends := between(interval)) else ""
    return f"from {number(dense)} to {number(value)} ({signed(relative(value, dense))}{sure})"


def count(n: float, one: str) -> str:
    """`1 look`, `2 looks`, `13.5 evaluations`."""
    shown = f"{n:,.0f}" if n >= 100 or n == round(n) else f"{n:.1f}"
    return f"{shown} {one}" if shown == "1" else f"{shown} {one}s"


def calibrated_on(shares: Mapping[str, float]) -> str:
    """That texts for perplexity were calibration text too; the shares by name."""
    parts = ", ".join(f"{percent(share, 0)} of {name}" for name, share in shares.items())
    return f"Calibration text is proving text too ({parts}): perplexity there says little of other text."


def _minus(text: str) -> str:
    return text.replace("-", "−")
