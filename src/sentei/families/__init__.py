"""The architectures that sentei knows how to prune: one small file each, and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sentei.errors import InputError
from sentei.registry import Registry

if TYPE_CHECKING:
    from sentei.families.base import Family

FAMILIES: Registry[Family] = Registry(
    "family",
    {
        "gemma2": "sentei.families.gemma2:FAMILY",
        "gemma3_text": "sentei.families.gemma3:FAMILY",
        "gpt2": "sentei.families.gpt2:FAMILY",
        "gpt_neox": "sentei.families.gpt_neox:FAMILY",
        "granite": "sentei.families.granite:FAMILY",
        "llama": "sentei.families.llama:FAMILY",
        "mistral": "sentei.families.mistral:FAMILY",
        "mixtral": "sentei.families.mixtral:FAMILY",
        "olmo2": "sentei.families.olmo2:FAMILY",
        "phi3": "sentei.families.phi3:FAMILY",
        "qwen2": "sentei.families.qwen2:FAMILY",
        "qwen3": "sentei.families.qwen3:FAMILY",
        "qwen3_moe": "sentei.families.qwen3_moe:FAMILY",
        "smollm3": "sentei.families.smollm3:FAMILY",
    },
)


def family_of(config: Any) -> Family:
    """The family of a model with this config (or of this `model_type`), dense or pruned by sentei.

    Raises:
        InputError: the architecture is unknown.
    """
    model_type = config if isinstance(config, str) else getattr(config, "model_type", None)
    name = str(model_type).removeprefix("sentei_")
    if name not in FAMILIES:
        raise InputError(
            f"unknown architecture {model_type!r}; known: {', '.join(sorted(FAMILIES))}. "
            "docs/add-a-family.md shows how to add one (one small file)"
        )
    return FAMILIES[name]
