"""Torch-Pruning beside us, with its own code, where it runs: FFN channels only.

    pip install torch-pruning==1.6.1
    python benchmarks/peers.py

Its attention pruning fails on grouped-query attention (shape '[9, -1]' is invalid for input of size 192), so q, k, v and o
are left out and the whole budget comes from the FFN, by its Taylor importance, globally over all blocks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch_pruning as tp
from common import Rows, model, windows
from torch import nn

from sentei.metrics.perplexity import perplexity


def prune(net: Any, text: torch.Tensor, sparsity: float) -> float:
    """Prunes FFN channels in place until `sparsity` of the block params is gone; returns the share that went."""
    blocks = net.model.layers
    dense = sum(p.numel() for p in blocks.parameters())
    net.config.use_cache = False
    for batch in text.split(2):
        net(batch, labels=batch).loss.backward()
    share = sparsity * dense / sum(p.numel() for block in blocks for p in block.mlp.parameters())
    pruner = tp.pruner.BasePruner(
        net,
        text[:1],
        importance=tp.importance.GroupTaylorImportance(),
        global_pruning=False,
        pruning_ratio_dict={block.mlp.gate_proj: share for block in blocks},
        ignored_layers=[
            net.lm_head,
            *(m for block in blocks for m in block.self_attn.modules() if isinstance(m, nn.Linear)),
        ],
        root_module_types=[nn.Linear],
        pruning_ratio=0.0,
        output_transform=lambda out: out.logits,
    )
    pruner.step()
    return 1 - sum(p.numel() for p in blocks.parameters()) / dense


def main() -> None:
    rows = Rows("peers")
    for sparsity in (0.2, 0.3):

        def work(sparsity: float = sparsity) -> dict[str, float]:
            loaded = model("float32")
            text = windows(loaded, "wikitext2_tok.valid", window=512, count=32)
            test = windows(loaded, "wikitext2_tok.test", window=512, count=48)
            removed = prune(loaded.model, text, sparsity)
            return {"removed": removed, "perplexity": perplexity(loaded.model, test).value}

        rows.run(work, peer="Torch-Pruning 1.6.1, Taylor, FFN only", sparsity=sparsity)


if __name__ == "__main__":
    main()
