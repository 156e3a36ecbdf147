"""Logits, which some architectures scale or cap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scaled_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits of normalised hidden states, with the scale or cap that the architecture puts on them."""
    config = model.config.get_text_config()
    out: Tensor = model.get_output_embeddings()(hidden)
    if scale := getattr(config, "logit_scale", None):  # Cohere
        out = out * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        out = out / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        out = torch.tanh(out / cap) * cap
    return out
