"""One model for the graph exports: everything that they must hold, in three blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sentei.families import family_of, modeling_sentei
from sentei.families.surgery import pruned_config, ready
from sentei.models.load import Loaded, as_loaded
from sentei.plan import BlockShape
from ship.byte_level import byte_tokenizer
from tiny import tiny_model

IDS = torch.randint(3, 128, (24,), generator=torch.Generator().manual_seed(2)).tolist()
BLOCKS = (
    BlockShape(kv_groups=2, heads_per_group=1, ffn=0),
    BlockShape(kv_groups=0, heads_per_group=0, ffn=30, down_bias=True, ranks={"gate_proj": 5}),
    BlockShape(kv_groups=3, heads_per_group=2, ffn=40, o_bias=True, ranks={"q_proj": 6, "o_proj": 7}),
)


def varied(variant: str, storage: str = "factors") -> Loaded:
    """A random model with fewer KV groups, fewer query heads, gone parts, added biases and low-rank matrices."""
    dense = tiny_model(variant, num_hidden_layers=len(BLOCKS), vocab_size=264)
    family = family_of(dense.config)
    shape = family.shape(dense.config).model_copy(update={"blocks": BLOCKS, "storage": storage})
    model_class = getattr(modeling_sentei, f"Sentei{family.prefix}ForCausalLM")
    model = ready(model_class(pruned_config(dense.config, shape)), "cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3 + (1 if value.ndim == 1 else 0))
    return as_loaded(model, byte_tokenizer(), variant)


def reference(loaded: Loaded, ids: list[int] = IDS) -> Any:
    with torch.no_grad():
        return loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()


def padded(ids: list[int], by: int) -> tuple[Any, Any, Any]:
    """A batch of `ids` and of their beginning, padded on the left: ids, attention mask, positions, all [2, T]."""
    rows = np.array([ids, [0] * by + ids[:-by]])
    mask = np.ones_like(rows)
    mask[1, :by] = 0
    return rows, mask, (mask.cumsum(1) - 1).clip(0)


def names_a_path(directory: Path) -> list[str]:
    """Files that tell where they were made."""
    return [f.name for f in directory.iterdir() if b"site-packages" in f.read_bytes() or b".py" in f.read_bytes()]
