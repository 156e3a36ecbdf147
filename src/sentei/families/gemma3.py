"""Gemma 3, text: as Gemma 2, with norms on q and k, and two RoPE bases."""

from dataclasses import replace

from sentei.families.gemma2 import FAMILY as GEMMA2

FAMILY = replace(
    GEMMA2,
    name="gemma3_text",
    prefix="Gemma3",
    classes=("Gemma3TextConfig", "Gemma3TextModel", "Gemma3ForCausalLM"),
    qk_norm=True,
    uniform_as=("gemma3_text",),
    features=(*GEMMA2.features, "sliding_window_pattern"),
)
