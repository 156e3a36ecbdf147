"""Turning a model of equal blocks back into a stock class, which needs no custom code anywhere."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from sentei.budget import EXPERT_MULTIPLE
from sentei.families import FAMILIES, family_of
from sentei.families.base import Family
from sentei.families.parts import Experts
from sentei.families.separate import is_plain, is_separate, separate, stock_block_state, stock_state
from sentei.families.streamed import State, StreamedBlocks, stream, streamed_blocks
from sentei.families.surgery import OURS, on_meta, ready
from sentei.plan import BlockShape, ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LLAMA_ONLY = ("attention_bias", "mlp_bias", "pretraining_tp")


def stock_of(model: PreTrainedModel) -> PreTrainedModel:
    """A separate model as its stock class is; itself where nothing was taken apart."""
    family = family_of(model.config)
    if is_plain(family) or model.config.model_type != family.name or not is_separate(family, model):
        return model
    if family.ffn_part.experts:  # is saved as it is
        return model
    new = on_meta(type(model), model.config, model.dtype)
    new.load_state_dict(stock_state(family, model.state_dict(), family.shape(model.config)), assign=True)
    new.generation_config = copy.deepcopy(model.generation_config)
    return ready(new, model.device)


def as_stock(model: PreTrainedModel) -> PreTrainedModel | None:
    """The same function as a stock class, sharing its weights; None where no stock class can hold it.

    Blocks that lost both parts are left out and the rest renumbered; all others must have the same sizes, both parts,
    no low-rank matrix, and no bias that a compensation added.
    """
    family = family_of(model.config)
    if model.config.model_type == family.name:
        return stock_of(model)
    shape = family.shape(model.config)
    present = shape.present
    if any(block.ranks for block in shape.blocks):
        return None
    sizes = {
        (b.kv_groups, b.heads_per_group, b.ffn, b.experts, _adds_bias(b, shape))
        for b in (shape.blocks[i] for i in present)
    }
    if len(sizes) != 1:
        return None
    groups, per_group, ffn, experts, adds_bias = sizes.pop()
    if len(set(experts)) > 1 or any(width % EXPERT_MULTIPLE for width in experts):
        return None
    candidates = (FAMILIES[name] for name in family.uniform_as)
    target = next((f for f in candidates if _holds(f, shape, groups * per_group)), None)
    if target is None or adds_bias or not groups or not ffn:
        return None
    values = stock_values(model.config, target, shape.blocks[present[0]], present)
    config = target.stock_class("Config")(**values)
    config._attn_implementation = model.config._attn_implementation
    config._name_or_path = model.config._name_or_path
    stock = on_meta(target.stock_class("ForCausalLM"), config, model.dtype)
    if target.ffn_part.experts:
        stock = separate(stock)
    stock.load_state_dict(stock_state(family, _renumbered(family, model, present), shape), assign=True)
    if (streamed := streamed_blocks(model)) is not None:
        stream(
            stock,
            StreamedBlocks(
                family.blocks(stock), lambda i: _stock_block(family, shape, streamed, present[i]), device=model.device
            ),
        )
    stock.generation_config = copy.deepcopy(model.generation_config)
    return ready(stock, model.device)


def stock_values(
    config: Any, target: Family, block: BlockShape, present: list[int], drop: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Config values of a stock class whose blocks all have the same size.

    Args:
        config: of the model that it comes from.
        target: the family of the stock class.
        block: the size.
        present: blocks that stay, by their old numbers.
        drop: keys that another family than the model's own does not take over, besides those that only Llama has.
    """
    own = family_of(config)
    gone = OURS if target is own else (*OURS, *_LLAMA_ONLY, *drop)
    values = {key: value for key, value in config.to_dict().items() if key not in gone}
    values |= {
        "num_hidden_layers": len(present),
        **({} if block.experts else {target.ffn_size: block.ffn}),
        "head_dim": own.shape(config).head_dim,
        "num_attention_heads": block.kv_groups * block.heads_per_group,
        "num_key_value_heads": block.kv_groups,
    }
    if (experts := target.ffn_part.experts) is not None:
        values |= _mixture_values(experts, config, block)
    if target.name == "mistral":
        values.setdefault("sliding_window", None)  # else the default of 4,096
    if values.get("no_rope_layers"):
        values["no_rope_layers"] = [values["no_rope_layers"][i] for i in present]
    if kinds := values.get("layer_types"):
        kinds = values["layer_types"] = [kinds[i] for i in present]
        values["max_window_layers"] = (*kinds, "sliding_attention").index("sliding_attention")
    return values


def _mixture_values(experts: Experts, config: Any, block: BlockShape) -> dict[str, Any]:
    """Of a stock class all of whose blocks are mixtures of this size, or none."""
    if not block.experts:
        return {experts.width: block.ffn, experts.count: 0}
    picked = min(config.num_experts_per_tok, len(block.experts))
    sizes = {experts.width: block.experts[0], experts.count: len(block.experts), "num_experts_per_tok": picked}
    return sizes | ({"decoder_sparse_step": 1, "mlp_only_layers": []} if hasattr(config, "mlp_only_layers") else {})


def takes_heads(family: Family, shape: ModelShape, heads: int) -> bool:
    """Whether the stock class of `family` takes this many query heads at this hidden size."""
    rule = {
        "free": True,
        "divide": heads > 0 and shape.hidden % heads == 0,
        "exact": shape.hidden == heads * shape.head_dim,
    }
    return rule[family.heads]


def _adds_bias(block: BlockShape, shape: ModelShape) -> bool:
    return (block.o_bias and not shape.o_bias) or (block.down_bias and not shape.mlp_bias)


def _holds(family: Family, shape: ModelShape, heads: int) -> bool:
    """Whether the stock class of `family` has these biases and takes this many query heads."""
    facts = ((family.qkv_bias, shape.qkv_bias), (family.o_bias, shape.o_bias), (family.mlp_bias, shape.mlp_bias))
    fits = all(isinstance(fact, str) or fact == wanted for fact, wanted in facts)
    return fits and takes_heads(family, shape, heads)


def _stock_block(family: Family, shape: ModelShape, streamed: StreamedBlocks, index: int) -> State | None:
    state = streamed.read(index)
    return None if state is None else stock_block_state(family, state, shape)


def _renumbered(family: Family, model: PreTrainedModel, present: list[int]) -> dict[str, Any]:
    """The weights, with the present blocks numbered from 0."""
    inside, number = f"{family.blocks_at}.", {str(old): new for new, old in enumerate(present)}
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith(inside):
            old, _, within = name.removeprefix(inside).partition(".")
            if old not in number:
                continue
            name = f"{inside}{number[old]}.{within}"
        state[name] = value
    return state
