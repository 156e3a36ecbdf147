"""Mistral: no biases, optionally a sliding window over all blocks."""

from sentei.families.base import Family

FAMILY = Family(name="mistral", like_llama=True, prefix="Mistral", uniform_as=("mistral",))
