"""`hf`: transformers' own layout, `per_layer_config` and one bundled modelling file; anything fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentei.models.save import save
from sentei.ship.base import Options, Route
from sentei.ship.directory import declaring, plan_of

if TYPE_CHECKING:
    from sentei.models.load import Loaded


def write(loaded: Loaded, path: Path, options: Options) -> dict[str, Any]:
    """Saves the model as `sentei cut` does, in the wanted dtype."""
    dtype = options.dtype_of(loaded.model)
    model = declaring(loaded.model, dtype)
    save(model, path, tokenizer=loaded.tokenizer, plan=plan_of(loaded.model))
    return {"dtype": dtype, "padding_bytes": 0}


ROUTE = Route(
    name="hf",
    line="a directory for transformers: per_layer_config and a bundled modelling file",
    engines=("transformers", "vllm"),
    refuse=lambda loaded: None,
    write=write,
    reach=lambda loaded: _reach(loaded),
    serve={"vllm": "vllm serve {path} --trust-remote-code --model-impl transformers"},
)


def _reach(loaded: Loaded) -> dict[str, str]:
    from sentei.families import family_of
    from sentei.families.stock import as_stock

    blocks = family_of(loaded.model.config).shape(loaded.model.config).blocks
    if any(block.experts for block in blocks) and as_stock(loaded.model) is None:
        return {"vllm": "wants experts of one width in all blocks; plan with --target-engine uniform"}
    gone = [i for i, block in enumerate(blocks) if not block.kv_groups]
    why = f"wants attention in every block, and it is gone from {len(gone)} (first: block {gone[0]})" if gone else ""
    return {"vllm": f"{why}; use --to nemotron-nas"} if gone else {}
