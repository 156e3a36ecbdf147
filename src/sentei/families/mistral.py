"""Mistral: no biases, optionally a sliding window over all blocks."""

from sentei.families.base import Family

FAMILY = Family(name="mistral", prefix="Mistral", uniform_as=("mistral",))
