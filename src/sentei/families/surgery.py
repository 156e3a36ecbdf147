"""Cutting: building the smaller model, and copying into it what a plan keeps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sentei.families import family_of, modeling_sentei
from sentei.families.base import Family
from sentei.families.parts import PARTS
from sentei.families.separate import separate
from sentei.families.streamed import BlockFiles, StreamedBlocks, stream
from sentei.plan import ATTENTION_MATRICES, BlockPlan, BlockShape, ModelShape, Plan, by_expert

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OURS = (
    "per_layer_config",
    "o_proj_bias",
    "down_proj_bias",
    "ranks",
    "expert_sizes",
    "rank_storage",
    "sentei_parts",
    "model_type",
    "architectures",
    "auto_map",
    "allow_global_per_layer_attribute_access",
)


def pruned_config(config: Any, shape: ModelShape) -> Any:
    """A Sentei config of that shape with everything else as in `config`, which may be pruned already."""
    family = family_of(config)
    values = {key: value for key, value in config.to_dict().items() if key not in OURS}
    values["head_dim"] = shape.head_dim  # else derived from the head count, which now differs
    full = family.shape(config).blocks[0]
    values.setdefault("num_key_value_heads", full.kv_groups)  # sizes that this class does not name
    values.setdefault("intermediate_size", full.ffn)
    if "output_router_logits" in values:
        values["output_router_logits"] = False  # of a loss in training, over blocks with equally many experts
    kinds = values.get("layer_types")
    if kinds:
        # A removed attention part never fills its cache, so it must not be the first of its kind: the length of the
        # cache, from which masks are made, is read there. Block 0 always keeps its attention.
        values["layer_types"] = [kinds[0] if not b.kv_groups else k for b, k in zip(shape.blocks, kinds, strict=True)]
    new = family.pruned_class("Config")(**values)
    if (described := family.described) is not None:
        new.sentei_parts = described
    new.per_layer_config = {i: _overrides(block) for i, block in enumerate(shape.blocks)}
    new.rank_storage = shape.storage
    new.allow_global_per_layer_attribute_access = True  # peft and others read the global values
    new._attn_implementation = config._attn_implementation
    new._name_or_path = config._name_or_path
    return new


def _overrides(block: BlockShape) -> dict[str, Any]:
    values: dict[str, Any] = {"o_proj_bias": block.o_bias, "down_proj_bias": block.down_bias, "ranks": block.ranks}
    if block.kv_groups:
        heads = block.kv_groups * block.heads_per_group
        values |= {"num_attention_heads": heads, "num_key_value_heads": block.kv_groups}
    if block.experts:
        values["expert_sizes"] = list(block.experts)
    elif block.ffn:
        values["intermediate_size"] = block.ffn
    values["skip"] = [name for name, size in (("attention", block.kv_groups), ("mlp", block.ffn)) if not size]
    return values


def on_meta(model_class: Any, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """A model without storage: nothing is allocated and no random start is computed. `ready` follows."""
    with torch.device("meta"):
        return cast("PreTrainedModel", model_class(config).to(dtype))


def ready(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    """What a model that was made on meta still needs once it has weights: buffers, tied head, eval mode."""
    body = cast(Any, model.base_model)
    if hasattr(body, "rotary_emb"):  # its buffers are computed, not loaded
        body.rotary_emb = type(body.rotary_emb)(config=model.config).to(device)
    embedding = cast(Any, model.get_input_embeddings())
    if hasattr(embedding, "embed_scale"):  # as is the scale of an embedding
        embedding.embed_scale = torch.tensor(embedding.scalar_embed_scale, device=device)
    model.tie_weights()
    return model.eval()


def on_cpu(model: PreTrainedModel) -> PreTrainedModel:
    """A copy on the CPU; the model stays on its device."""
    new = on_meta(type(model), copy.deepcopy(model.config), model.dtype)
    new.load_state_dict({name: value.cpu() for name, value in model.state_dict().items()}, assign=True)
    new.generation_config = copy.deepcopy(model.generation_config)
    return ready(new, "cpu")


@torch.no_grad()
def skeleton(model: PreTrainedModel, shape: ModelShape, work: Path | None = None) -> PreTrainedModel:
    """A pruned model of that shape: embeddings, final norm and head copied from `model`, blocks not yet filled.

    Args:
        model: a dense or pruned model; its dtype and device are kept.
        shape: sizes of the result; as many blocks as `model` has.
        work: a directory for the blocks of the result, which are then streamed; None: they are in memory.
    """
    family = family_of(model.config)
    config = pruned_config(model.config, shape)
    new = on_meta(family.pruned_class("ForCausalLM"), config, model.dtype)
    around = outside(family, model)
    new.load_state_dict({name: value.clone() for name, value in around.items()}, assign=True, strict=False)
    if work is None:
        _start(family.blocks(new).to_empty(device=model.device))
    else:
        files = BlockFiles(work)
        stream(new, StreamedBlocks(family.blocks(new), files.read, files.write, start=_start, device=model.device))
    new = ready(new, model.device)
    new.generation_config = copy.deepcopy(model.generation_config)
    return new


def outside(family: Family, model: nn.Module) -> dict[str, Tensor]:
    """The tensors around the blocks; a head that is the embedding has one name."""
    inside, seen = f"{family.blocks_at}.", set[int]()
    found = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not name.startswith(inside) and id(value) not in seen:
            seen.add(id(value))
            found[name] = value
    return found


def _start(module: nn.Module) -> None:
    """What weights without values need: a valid order of pivoted matrices until their factors are known."""
    for part in module.modules():
        if isinstance(part, modeling_sentei.LowRankLinear) and part.pivoted:
            torch.arange(part.out_features, out=part.order)


@torch.no_grad()
def fill(family: Family, pruned_block: nn.Module, dense_block: nn.Module, plan: BlockPlan, dense: ModelShape) -> None:
    """Copies the kept rows and columns of `dense_block` into `pruned_block`; biases that are new there become zero.

    Low-rank matrices get their bias only: their factors come from a fit (`sentei.prune.cut`).
    """
    heads_per_group = heads_of(family, dense_block)
    for part in PARTS:
        new, old = family.members(pruned_block, part), family.members(dense_block, part)
        if not new or not old:
            continue
        plans = {0: plan}
        if part == "ffn" and family.experts(dense_block):
            plans = expert_plans(plan, [linears["up_proj"].out_features for linears in old])
            router: Any = family.router(pruned_block)
            router.weight.copy_(cast(Any, family.router(dense_block)).weight[list(plans)])
        for linears, (number, own) in zip(new, plans.items(), strict=True):
            for name, linear in linears.items():
                _copy_linear(linear, *sliced(old[number][name], name, own, heads_per_group, dense.head_dim))
        if dense.qk_norm and part == "attention":
            small, full = cast(Any, family.attention(pruned_block)), cast(Any, family.attention(dense_block))
            _copy_all(small.q_norm, full.q_norm)
            _copy_all(small.k_norm, full.k_norm)
        for target, source in zip(family.norms(pruned_block, part), family.norms(dense_block, part), strict=True):
            _copy_all(target, source)


def expert_plans(plan: BlockPlan, experts: Sequence[int]) -> dict[int, BlockPlan]:
    """What a plan keeps of each expert that stays, by its number.

    Args:
        plan: of a block.
        experts: channels of each, before the cut.
    """
    channels = enumerate(by_expert(plan.ffn, experts))
    return {number: plan.model_copy(update={"ffn": own}) for number, own in channels if own}


def heads_of(family: Family, block: nn.Module) -> int:
    """Query heads per KV group of a block; 0 without an attention part."""
    linears = family.linears(block, "attention")
    return linears["q_proj"].out_features // linears["k_proj"].out_features if linears else 0


def prune(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """The model without what `plan` removes and without compensation: equal to the dense model with that masked.

    Args:
        model: the model that the plan was made for; it stays as it is.
        plan: what to keep.

    Raises:
        ValueError: the plan has low-rank matrices, whose factors only `sentei.prune.cut` finds.
    """
    if any(block.ranks for block in plan.blocks):
        raise ValueError("the plan has low-rank matrices; use sentei.cut")
    family, model = family_of(model.config), separate(model)
    new = skeleton(model, plan.shape())
    for pruned_block, dense_block, block in zip(family.blocks(new), family.blocks(model), plan.blocks, strict=True):
        fill(family, pruned_block, dense_block, block, plan.dense)
    return new


def sliced(
    linear: nn.Linear, name: str, plan: BlockPlan, heads_per_group: int, head_dim: int
) -> tuple[Tensor, Tensor | None]:
    """The rows and columns that a plan keeps of one matrix of a dense part: `[out, in]`, and of its bias `[out]`.

    Args:
        linear: the matrix.
        name: of it, as in plans.
        plan: what its block keeps.
        heads_per_group: query heads of each KV group before the cut.
        head_dim: rows of one head.
    """
    weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
    rows, columns = kept_indices(name, plan, heads_per_group, head_dim, weight.device)
    if columns is not None:
        return weight.index_select(1, columns), bias
    assert rows is not None  # one of both
    return weight.index_select(0, rows), None if bias is None else bias.index_select(0, rows)


def kept_indices(
    name: str, plan: BlockPlan, heads_per_group: int, head_dim: int, device: Any = "cpu"
) -> tuple[Tensor, None] | tuple[None, Tensor]:
    """The rows that a plan keeps of one matrix, or the columns, ascending; None: all. Arguments as of `kept`."""
    if name in ATTENTION_MATRICES:
        query, key = head_rows(plan, heads_per_group, head_dim, device)
        units = query if name in ("q_proj", "o_proj") else key
    else:
        units = torch.tensor(plan.ffn, device=device)
    return (None, units) if name in ("o_proj", "down_proj") else (units, None)


def head_rows(plan: BlockPlan, heads_per_group: int, head_dim: int, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    """Rows of q_proj (and columns of o_proj), and rows of k_proj and v_proj, that a block keeps, ascending.

    Args:
        plan: what the block keeps.
        heads_per_group: query heads of each KV group before the cut.
        head_dim: rows of one head.
        device: where the indices shall be.
    """
    pairs = zip(plan.kv_groups, plan.query_heads, strict=True)
    heads = torch.tensor([g * heads_per_group + h for g, kept in pairs for h in kept], device=device)
    groups = torch.tensor(plan.kv_groups, device=device)
    within = torch.arange(head_dim, device=device)
    return (heads[:, None] * head_dim + within).flatten(), (groups[:, None] * head_dim + within).flatten()


def _copy_linear(new: Any, weight: Tensor, bias: Tensor | None) -> None:
    if not isinstance(new, modeling_sentei.LowRankLinear):
        new.weight.copy_(weight)
    if new.bias is not None:
        new.bias.zero_() if bias is None else new.bias.copy_(bias)  # a compensation fills one that is new


def _copy_all(new: nn.Module, old: nn.Module) -> None:
    for target, source in zip(new.parameters(), old.parameters(), strict=True):
        target.copy_(source)
