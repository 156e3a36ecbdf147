"""Measure once: statistics of a model on calibration data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sentei.measure.profile import BlockStats, PartStats, Profile

if TYPE_CHECKING:
    from sentei.measure.collect import measure

__all__ = ["BlockStats", "PartStats", "Profile", "measure"]


def __getattr__(name: str) -> Any:
    """`measure` on first use: reading a profile needs no transformers, so planning starts quickly."""
    if name == "measure":
        from sentei.measure.collect import measure

        return measure
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
