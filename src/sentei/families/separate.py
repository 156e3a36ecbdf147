"""Stock models with their fused matrices taken apart, and put together again.

sentei works on single matrices: q, k, v, gate, up. Where a stock class holds several as one (Phi-3's `qkv_proj`,
GPT-NeoX's `query_key_value`) or transposed (GPT-2's Conv1D), the model is looked at through views of its weights, where
a view can be had: the function is the same, and the stock model stays as it is. The experts of a mixture are each on
their own, as they are in stored models: such a model is not put together again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from sentei.families import FAMILIES, family_of
from sentei.families.base import Family
from sentei.families.modeling_sentei import Experts, FusedLinear
from sentei.families.parts import PARTS, Fused
from sentei.plan import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

State = Mapping[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)


def is_plain(family: Family) -> bool:
    """Whether the stock class has single matrices already."""
    layouts = [family.layout(part) for part in PARTS]
    return not family.transposed and not any(layout.fused or layout.experts for layout in layouts)


def separate(model: PreTrainedModel) -> PreTrainedModel:
    """The model with single matrices, sharing its weights; itself where it has them already."""
    family = family_of(model.config)
    if is_plain(family) or model.config.model_type != family.name or is_separate(family, model):
        return model
    new = twin(model)
    *path, last = family.blocks_at.split(".")
    holder: nn.Module = new
    for name in path:
        child = twin(holder.get_submodule(name))
        setattr(holder, name, child)
        holder = child
    blocks = nn.ModuleList(twin(block) for block in family.blocks(model))
    setattr(holder, last, blocks)
    shape = family.shape(model.config)
    for index, block in enumerate(blocks):
        state = separate_state(family, block.state_dict(), shape, index)
        for part in PARTS:
            _take_apart(family, block, part, state, shape.head_dim)
    return new


def separate_state(family: Family, state: State, shape: ModelShape, index: int) -> dict[str, Tensor]:
    """The tensors of one stock block by the names that they have in a separate one."""
    found = dict(state)
    rows = {name: size[0] for name, size in shape.matrices(shape.blocks[index]).items()}
    for name in [*found]:
        if family.transposed and _is_matrix(family, name):
            found[name] = found[name].T
    for path, fused in _fused(family):
        for kind in ("weight", "bias"):
            if (whole := found.pop(f"{path}.{kind}", None)) is not None:
                for name, value in zip(fused.matrices, _pieces(whole, fused, rows, shape.head_dim), strict=True):
                    found[f"{path}.{name}.{kind}"] = value
    if shape.blocks[index].experts and (experts := family.ffn_part.experts) is not None:
        path = f"{family.ffn_part.path}.{experts.path}"
        if (whole := found.pop(f"{path}.gate_up_proj", None)) is not None:  # [experts, 2 channels, hidden]
            for i, (inner, output) in enumerate(zip(whole, found.pop(f"{path}.down_proj"), strict=True)):
                gate, up = inner.chunk(2)
                matrices = {"gate_proj": gate, "up_proj": up, "down_proj": output}
                found |= {f"{path}.{i}.{name}.weight": value for name, value in matrices.items()}
    return found


def stock_state(family: Family, state: State, shape: ModelShape) -> dict[str, Tensor]:
    """The tensors of a separate model by the names of the stock class; experts stay on their own."""
    if is_plain(family):
        return dict(state)
    found: dict[str, Tensor] = {}
    inside = f"{family.blocks_at}."
    blocks: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith(inside):
            number, _, within = name.removeprefix(inside).partition(".")
            blocks.setdefault(f"{inside}{number}.", {})[within] = value
        else:
            found[name] = value
    for prefix, block in blocks.items():
        found |= {f"{prefix}{name}": value for name, value in stock_block_state(family, block, shape).items()}
    return found


def named_as_stored(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model by the names that its file has, but for what `Family.stored_as` says."""
    config = cast(Any, model).config
    if config.model_type not in FAMILIES:  # one of ours, whose names are its own, or one with its own code
        return model.state_dict()
    family = FAMILIES[config.model_type]
    if family.ffn_part.experts:
        return separate(cast("PreTrainedModel", model)).state_dict()
    if is_plain(family) or not is_separate(family, model):
        return model.state_dict()
    return stock_state(family, model.state_dict(), family.shape(config))


def stock_block_state(family: Family, state: State, shape: ModelShape) -> dict[str, Tensor]:
    """The same of one block, by names within it."""
    found = dict(state)
    for path, fused in _fused(family):
        for kind in ("weight", "bias"):
            pieces = [found.pop(f"{path}.{name}.{kind}", None) for name in fused.matrices]
            if whole := [piece for piece in pieces if piece is not None]:
                found[f"{path}.{kind}"] = _joined(whole, fused, shape.head_dim)
    for name in [*found]:
        if family.transposed and _is_matrix(family, name):
            found[name] = found[name].T.contiguous()
    return found


def _fused(family: Family) -> Iterator[tuple[str, Fused]]:
    """Fused matrices and their paths in a block."""
    for part in PARTS:
        layout = family.layout(part)
        yield from ((f"{layout.path}.{path}", fused) for path, fused in layout.fused.items())


def _is_matrix(family: Family, name: str) -> bool:
    """Whether a tensor of a block is the weight of a linear, fused or not."""
    return name.endswith(".weight") and any(name.startswith(f"{family.layout(part).path}.") for part in PARTS)


def is_separate(family: Family, model: nn.Module) -> bool:
    if experts := family.ffn_part.experts:
        parts = [block.get_submodule(family.ffn_part.path) for block in family.blocks(model)]
        return all(isinstance(getattr(part, experts.path, None), Experts | None) for part in parts)
    block = family.blocks(model)[0]
    return all(isinstance(block.get_submodule(path), FusedLinear) for path, _ in _fused(family))


def twin(module: Module) -> Module:
    """The same module with its own set of children, which are shared; of fused linears their own sets too."""
    new = copy.copy(module)
    new._modules = {name: twin(m) if isinstance(m, FusedLinear) else m for name, m in module._modules.items()}
    return new


def _take_apart(family: Family, block: nn.Module, part: str, state: State, head_dim: int) -> None:
    layout = family.layout(part)
    module = twin(block.get_submodule(layout.path))
    setattr(block, layout.path, module)
    trained = any(p.requires_grad for p in module.parameters())

    def linear(at: str) -> nn.Linear:
        weight, bias = state[f"{layout.path}.{at}.weight"], state.get(f"{layout.path}.{at}.bias")
        new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        new.weight = nn.Parameter(weight.detach(), requires_grad=trained)
        if bias is not None:
            new.bias = nn.Parameter(bias.detach(), requires_grad=trained)
        return new

    if part == "ffn" and (experts := layout.experts) is not None and hasattr(module, experts.path):
        stock: Any = getattr(module, experts.path)
        with torch.device("meta"):
            new = Experts(stock.hidden_dim, [stock.intermediate_dim] * stock.num_experts, False, stock.act_fn)
        setattr(module, experts.path, new)
        for number, expert in enumerate(new):
            for name, at in layout.matrices.items():
                setattr(expert, at, linear(f"{experts.path}.{number}.{name}"))
        return
    for path, fused in layout.fused.items():
        linears: dict[str, nn.Module] = {name: linear(f"{path}.{name}") for name in fused.matrices}
        setattr(module, path, FusedLinear(linears, head_dim if fused.by_head else 0))
    for at in layout.matrices.values():
        if not isinstance(module.get_submodule(at), nn.Linear):
            setattr(module, at, linear(at))


def _pieces(whole: Tensor, fused: Fused, rows: Mapping[str, int], head_dim: int) -> list[Tensor]:
    """The outputs of each matrix, of a weight [out, in] or a bias [out]."""
    if fused.by_head:
        heads = whole.unflatten(0, (-1, len(fused.matrices), head_dim))
        return [heads[:, i].flatten(0, 1) for i in range(len(fused.matrices))]
    return list(whole.split([rows[name] for name in fused.matrices]))


def _joined(pieces: list[Tensor], fused: Fused, head_dim: int) -> Tensor:
    if not fused.by_head:
        return torch.cat(pieces)
    return torch.cat([piece.unflatten(0, (-1, head_dim)) for piece in pieces], dim=1).flatten(0, 1)
