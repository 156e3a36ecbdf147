"""Decoder-only models whose blocks differ in size. Made by sentei, Apache-2.0. Needs torch and transformers >= 4.50.

A block is transformers' own decoder layer, resized to `config.per_layer_config[i]` (`num_attention_heads`,
`num_key_value_heads`, `intermediate_size`, `skip`: ["attention", "ffn"], and ours: `o_proj_bias`, `down_proj_bias`,
`ranks`: {"q_proj": 64} for matrices that are stored as a product, `expert_sizes`: the channels of each expert).
`config.sentei_parts` says where an architecture has its matrices and norms; without it they are where Llama has them.
Everything else, `forward` included, is inherited, so that serving engines recognise it.

`SenteiLlamaForCausalLM` and the like are made when they are asked for, from the stock classes of that name.
"""

import copy
import sys
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

# Where the matrices of a part are, and the norms that go with it when it is removed.
LLAMA_PARTS: dict[str, dict[str, Any]] = {
    "attention": {
        "path": "self_attn",
        "norms": ["input_layernorm"],
        "matrices": {name: name for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
        "attributes": {"num_key_value_groups": "heads_per_group"},
    },
    "ffn": {
        "path": "mlp",
        "norms": ["post_attention_layernorm"],
        "matrices": {name: name for name in ("gate_proj", "up_proj", "down_proj")},
    },
}


def layer_config(config: Any, index: int) -> Any:
    """The config of one block: native from transformers 5.15 on, made here for older ones."""
    layers = getattr(config, "per_layer_config", None)
    if layers is not None and not isinstance(layers, dict):
        return layers[index]
    own = copy.copy(config)
    for key, values in (layers or {}).items():  # keys are "5" or "05"
        if int(key) == index:
            for name, value in values.items():
                setattr(own, name, value)
    return own


class Removed(nn.Module):
    """Stands where an attention or FFN part was: has no weights, caches nothing, adds nothing to the residual."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if self.pair else nothing


class LowRankLinear(nn.Module):
    """A linear map of rank R: `b(a(x))`, two plain linears, so that adapters and quantisers find them.

    Pivoted: R of the outputs are `a(x)` itself and the others are mixed from them, which saves R² parameters; `order`
    puts the outputs back into their places.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool, pivoted: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank, self.pivoted = in_features, out_features, rank, pivoted
        self.a = nn.Linear(in_features, rank, bias=False)
        self.b = nn.Linear(rank, out_features - rank if pivoted else out_features, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        if pivoted:
            self.order: torch.Tensor
            self.register_buffer("order", torch.arange(out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        y = torch.cat([y, self.b(y)], dim=-1)[..., self.order] if self.pivoted else self.b(y)
        return y if self.bias is None else y + self.bias


class FusedLinear(nn.Module):
    """Several linears that read the same, in place of one that has their outputs side by side.

    `head_dim` 0: one after the other; else the outputs of each head stand together (GPT-NeoX).
    """

    def __init__(self, linears: dict[str, nn.Module], head_dim: int = 0) -> None:
        super().__init__()
        self.head_dim = head_dim
        for name, linear in linears.items():
            self.add_module(name, linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [linear(x) for linear in self.children()]
        if not self.head_dim:
            return torch.cat(outputs, dim=-1)
        heads = [y.unflatten(-1, (-1, self.head_dim)) for y in outputs]
        return torch.cat(heads, dim=-1).flatten(-2)


class Expert(nn.Module):
    """One FFN of a mixture. A token's weight multiplies its channels: the last matrix puts out what is added up."""

    def __init__(self, hidden: int, size: int, bias: bool, act_fn: Any) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, size, bias=False)
        self.up_proj = nn.Linear(hidden, size, bias=False)
        self.down_proj = nn.Linear(size, hidden, bias=bias)
        self.act_fn = act_fn

    def forward(self, hidden_states: torch.Tensor, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        x = hidden_states[tokens]
        y = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj((y * weights[:, None]).to(y.dtype))


class Experts(nn.ModuleList):
    """The experts of one block, of any sizes, in place of the stock class's fused ones."""

    def __init__(self, hidden: int, sizes: list[int], bias: bool, act_fn: Any) -> None:
        super().__init__(Expert(hidden, size, bias, act_fn) for size in sizes)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        total = torch.zeros_like(hidden_states)
        for number in top_k_index.unique().tolist():  # one token is sent to a few of many
            tokens, places = torch.where(top_k_index == number)
            total.index_add_(0, tokens, self[number](hidden_states, tokens, top_k_weights[tokens, places]))
        return total


class _OwnConfig:
    """The config of the model with the values of one block before it: what the model's is set to later is seen."""

    def __init__(self, config: Any, own: dict[str, Any]) -> None:
        self.__dict__.update(own, _config=config)

    def __getattr__(self, name: str) -> Any:
        if "_config" not in self.__dict__:  # while it is copied
            raise AttributeError(name)
        return getattr(self.__dict__["_config"], name)


def matrix_sizes(config: Any, own: Any) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of all matrices that a block of this size may have."""
    hidden = config.hidden_size
    queries, keys = own.num_attention_heads * config.head_dim, own.num_key_value_heads * config.head_dim
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, own.intermediate_size),
        "up_proj": (hidden, own.intermediate_size),
        "down_proj": (own.intermediate_size, hidden),
    }


def build_block(layer_class: Any, config: Any, index: int) -> nn.Module:
    """Block `index`: a stock decoder layer of its own size, without the parts that it skips."""
    own = layer_config(config, index)
    heads, groups = own.num_attention_heads, own.num_key_value_heads
    if heads % groups:
        raise ValueError(f"layer {index}: num_attention_heads {heads} is no multiple of num_key_value_heads {groups}")
    described = getattr(config, "sentei_parts", None)
    block = layer_class(config if described and described.get("resized") else own, index)
    sizes = matrix_sizes(config, own)
    skip = {"ffn" if name == "mlp" else name for name in getattr(own, "skip", None) or ()}
    added = {"o_proj": own.o_proj_bias, "down_proj": own.down_proj_bias}
    for name, part in ((described or {}).get("parts") or LLAMA_PARTS).items():
        module = block.get_submodule(part["path"])
        if name in skip:
            for norm in part["norms"]:
                setattr(block, norm, nn.Identity())
            setattr(block, part["path"], Removed(pair=name == "attention"))
            continue
        if name == "attention":
            resize_attention(module, part, config, heads, groups)
        elif hasattr(module, "config"):
            module.config = config
        if name == "ffn" and getattr(own, "expert_sizes", None):
            resize_experts(module, part["experts"], config.hidden_size, own.expert_sizes, bool(own.down_proj_bias))
            continue
        for path, fused in part.get("fused", {}).items():
            stock = module.get_submodule(path)
            linears: dict[str, nn.Module] = {
                matrix: nn.Linear(*sizes[matrix], bias=getattr(stock, "bias", None) is not None)
                for matrix in fused["matrices"]
            }
            setattr(module, path, FusedLinear(linears, config.head_dim if fused.get("by_head") else 0))
        for matrix, path in part["matrices"].items():
            stock = module.get_submodule(path)
            rank = (getattr(own, "ranks", None) or {}).get(matrix)
            bias = getattr(stock, "bias", None) is not None or bool(added.get(matrix))
            if rank is not None:
                pivoted = getattr(own, "rank_storage", "factors") == "pivoted"
                _put(module, path, LowRankLinear(*sizes[matrix], rank, bias, pivoted))
            elif type(stock) is not nn.Linear or (stock.bias is not None) != bias or _size(stock) != sizes[matrix]:
                _put(module, path, nn.Linear(*sizes[matrix], bias=bias))
    return block


def resize_attention(module: Any, part: dict[str, Any], config: Any, heads: int, groups: int) -> None:
    """Sets what an attention part keeps of its size beside its matrices."""
    # A config of its own would be a snapshot; a later change of the attention implementation is made in the model's.
    module.config = _OwnConfig(config, {"num_attention_heads": heads, "num_key_value_heads": groups})
    sizes = {"heads": heads, "groups": groups, "heads_per_group": heads // groups, "queries": heads * config.head_dim}
    for attribute, size in part.get("attributes", {}).items():
        setattr(module, attribute, sizes[size])


def resize_experts(module: Any, part: dict[str, str], hidden: int, sizes: list[int], bias: bool) -> None:
    """Gives a mixture experts of these sizes, and its router as many rows; it picks no more than there are."""
    setattr(module, part["path"], Experts(hidden, sizes, bias, getattr(module, part["path"]).act_fn))
    router: Any = getattr(module, part["router"])
    router.weight = nn.Parameter(router.weight.new_empty(len(sizes), hidden))
    router.num_experts, router.top_k = len(sizes), min(router.top_k, len(sizes))


def _put(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)


def _size(linear: nn.Linear) -> tuple[int, int]:
    return linear.in_features, linear.out_features


def layer_class(stock: Any) -> Any:
    """The decoder layer of a stock model class."""
    return getattr(sys.modules[stock.__module__], stock._no_split_modules[0])


class _ModelMixin:
    """Builds the stock model with blocks of different sizes."""

    _stock: Any
    post_init: Any

    def __init__(self, config: Any) -> None:
        empty = copy.copy(config)  # the stock class builds all that is around its blocks
        counts = {key: config.__dict__[key] for key in ("num_hidden_layers", "n_layer") if key in config.__dict__}
        empty.__dict__.update(dict.fromkeys(counts, 0))
        self._stock.__init__(self, empty)
        config.__dict__.update(empty.__dict__ | counts)  # such as the attention implementation that was chosen
        self.config = config
        _, holder, name = _blocks_of(self)
        kind = layer_class(self._stock)
        setattr(holder, name, nn.ModuleList(build_block(kind, config, i) for i in range(config.num_hidden_layers)))
        if hasattr(self, "has_sliding_layers"):
            self.has_sliding_layers = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        self.post_init()


def _blocks_of(body: Any) -> tuple[nn.ModuleList, nn.Module, str]:
    """The blocks of a body: the only list of modules that it has."""
    for name, child in body.named_children():
        if isinstance(child, nn.ModuleList):
            return child, body, name
    raise ValueError(f"{type(body).__name__} has no list of blocks")


class _CausalMixin:
    """Adds the language-model head."""

    _body: Any
    _head: str
    base_model_prefix: str
    post_init: Any

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        setattr(self, self.base_model_prefix, self._body(config))
        self.vocab_size = config.vocab_size
        setattr(self, self._head, nn.Linear(config.hidden_size, config.vocab_size, bias=False))
        self.post_init()


def _config_class(name: str, stock: Any) -> Any:
    ours: dict[str, tuple[Any, Any]] = {
        "o_proj_bias": (bool, False),
        "down_proj_bias": (bool, False),
        "ranks": (dict | None, None),
        "expert_sizes": (list | None, None),
        "rank_storage": (str, "factors"),
        "sentei_parts": (dict | None, None),
    }
    known = stock().to_dict()
    for key in ("head_dim", "num_key_value_heads", "intermediate_size"):  # of a block, where the stock class has none
        if key not in known and key not in stock.attribute_map:
            ours[key] = (int | None, None)
    body = {key: default for key, (_, default) in ours.items()}
    body |= {"__annotations__": {key: kind for key, (kind, _) in ours.items()}}
    return type(stock)(name, (stock,), body | {"__module__": __name__, "model_type": f"sentei_{stock.model_type}"})


def __getattr__(name: str) -> Any:
    stock = getattr(transformers, name.removeprefix("Sentei"), None) if name.startswith("Sentei") else None
    if stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made: Any
    if name.endswith("Config"):
        made = _config_class(name, stock)
    else:
        kind = stock.config_class
        body = transformers.MODEL_MAPPING[kind]
        own = getattr(sys.modules[__name__], f"Sentei{kind.__name__}")
        common = {"__module__": __name__, "config_class": own}
        if stock is body:
            made = type(name, (_ModelMixin, stock), common | {"_stock": stock})
        else:
            common["_body"] = getattr(sys.modules[__name__], f"Sentei{body.__name__}")
            common["_head"] = next(iter(stock._tied_weights_keys)).partition(".")[0]
            made = type(name, (_CausalMixin, stock), common)
    globals()[name] = made
    return made
