"""`dense-fold`: low-rank pairs multiplied back and zero padding to one size. Runs everywhere, saves nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sentei.families import FAMILIES, family_of
from sentei.families.base import Family
from sentei.families.separate import is_plain
from sentei.families.stock import stock_values, takes_heads
from sentei.families.surgery import on_meta
from sentei.plan import BlockShape, ModelShape
from sentei.ship.base import FLOATS, Options, Route, elsewhere
from sentei.ship.directory import padding_bytes, write_directory
from sentei.ship.tensors import grown_tensors
from sentei.ship.uniform import EVERYWHERE, SERVE, stock_reach, window_of

if TYPE_CHECKING:
    from sentei.models.load import Loaded

_WINDOWS = ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers")


@dataclass(frozen=True)
class Fold:
    """The stock form: its class family, the size that all blocks get, which blocks stay, which biases it needs."""

    family: Family
    block: BlockShape
    present: list[int]
    biases: dict[str, bool]


def fold(config: Any) -> Fold | None:
    """The smallest stock form that holds a model with this config; None where there is none."""
    own = family_of(config)
    shape = own.shape(config)
    blocks = [shape.blocks[i] for i in shape.present]
    most = BlockShape(
        kv_groups=max(b.kv_groups for b in blocks),
        heads_per_group=max(b.heads_per_group for b in blocks),
        ffn=max(b.ffn for b in blocks),
    )
    groups = config.num_key_value_heads  # of the dense model: those that its own class takes for certain
    dense = most.model_copy(
        update={"kv_groups": groups, "heads_per_group": config.num_attention_heads // groups},
    )
    biases = {
        "qkv_bias": shape.qkv_bias,
        "o_bias": shape.o_bias or any(b.o_bias for b in blocks),
        "mlp_bias": shape.mlp_bias or any(b.down_bias for b in blocks),
    }
    if not is_plain(own):
        return None  # nothing is written of fused matrices
    for name in dict.fromkeys((*own.uniform_as, own.name, *(("llama",) if own.like_llama else ()))):
        for block in (most, dense):
            if most.ffn and _holds(FAMILIES[name], own, config, shape, block, biases):
                return Fold(FAMILIES[name], block, shape.present, biases)
    return None


def _holds(
    target: Family, own: Family, config: Any, shape: ModelShape, block: BlockShape, biases: dict[str, bool]
) -> bool:
    fits = takes_heads(target, shape, block.kv_groups * block.heads_per_group)
    same_reach = target is own or window_of(config) is None
    # a bias that is not there can be zero, one that is there needs a place
    biased = all(getattr(target, name) or not needed for name, needed in biases.items())
    return fits and same_reach and biased and target.qk_norm == shape.qk_norm


def stock_config(config: Any, form: Fold) -> Any:
    """The stock config of a fold."""
    values = stock_values(config, form.family, form.block, form.present, drop=_WINDOWS)
    for name in ("qkv_bias", "o_bias", "mlp_bias"):
        key = getattr(form.family, name)
        if isinstance(key, str):
            values[key] = form.biases[name] or values.get(key, False)
    return form.family.stock_class("Config")(**values)


def refuse(loaded: Loaded) -> str | None:
    """What zeros cannot mend: biases, a window or norms without a place in any stock class."""
    if fold(loaded.model.config) is not None:
        return None
    family = family_of(loaded.model.config)
    plain, experts = is_plain(family), family.ffn_part.experts
    what = "its biases have" if plain else "a cut of its experts has" if experts else "a cut of its fused matrices has"
    return f"{what} no place in any stock class of this architecture; {elsewhere(family)}"


def write(loaded: Loaded, path: Path, options: Options) -> dict[str, Any]:
    """Writes the stock class of the largest sizes; every smaller part is filled up with zeros."""
    model, dtype = loaded.model, options.dtype_of(loaded.model)
    form = _fold(loaded)
    config = stock_config(model.config, form)
    target = on_meta(form.family.stock_class("ForCausalLM"), config, getattr(torch, FLOATS[dtype]))
    tensors = grown_tensors(model, target, [form.block] * len(form.present), form.present)
    values = config.to_dict() | {"architectures": [type(target).__name__]}
    written = write_directory(loaded, path, values, tensors, dtype)
    shape = family_of(model.config).shape(model.config)
    folded = any(block.ranks for block in shape.blocks)
    return {
        "dtype": dtype,
        "padding_bytes": padding_bytes(model, written, dtype),
        "arch": type(target).__name__,
        **({"lossless": False} if folded and dtype != "F32" else {}),  # a product is rounded once more
    }


def _fold(loaded: Loaded) -> Fold:
    form = fold(loaded.model.config)
    assert form is not None  # `refuse` comes first
    return form


ROUTE = Route(
    name="dense-fold",
    line="a stock class for any model: zero padding, low-rank pairs multiplied back; saves nothing",
    engines=EVERYWHERE,
    refuse=refuse,
    write=write,
    reach=lambda loaded: stock_reach(stock_config(loaded.model.config, _fold(loaded))),
    serve=SERVE,
)
