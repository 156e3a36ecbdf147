"""Measure once: statistics of a model on calibration data."""

from sentei.measure.collect import measure
from sentei.measure.profile import BlockStats, PartStats, Profile

__all__ = ["BlockStats", "PartStats", "Profile", "measure"]
