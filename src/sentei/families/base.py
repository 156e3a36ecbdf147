"""`Family`: where the parts of an architecture are, and what its config says about sizes.

Everything that a family says is data (`sentei.families.parts`), and most say little, because what Llama has is the
default. What is not said is asked of the model: its own forward pass shows what enters block 0 and what each block is
given beside the stream (positions, masks), so that scaled embeddings, learnt positions, two RoPE bases or blocks
without RoPE need no code here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
import transformers
from torch import Tensor, nn

from sentei.errors import InputError
from sentei.families import modeling_sentei
from sentei.families.asked import given_to_blocks
from sentei.families.logits import scaled_logits
from sentei.families.parts import ATTENTION, FFN, PARTS, Part
from sentei.families.sizes import Fact, fact, shape_of
from sentei.families.streamed import streamed_blocks
from sentei.shape import ModelShape


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: `model_type` of the stock config; "sentei_<name>" is that of a pruned model.
        prefix: what the class names start with: "Llama" for LlamaConfig, LlamaModel, LlamaForCausalLM.
        classes: of config, body and causal model, where their names are others.
        attention_part, ffn_part: the parts of a block.
        blocks_at: path of the blocks in the model.
        norm_at: path of the norm after the last block.
        embedding_at: path of the token embedding.
        parallel: whether both parts read what enters the block, instead of one after the other.
        multiplier: config key of the factor on what each part adds to the stream.
        layer_norm: whether norms are LayerNorms, with a bias, instead of RMSNorms.
        qkv_bias: whether q, k and v have biases; a string names the config key that says so.
        o_bias: the same for o.
        mlp_bias: the same for the FFN's matrices.
        qk_norm: whether q and k are normalised: per head, or over all heads, which then cannot be thinned.
        positions: config key of the number of learnt positions.
        ffn_size: config key of the FFN's width; where it says None, the width is four times the hidden size.
        resized: whether blocks of other sizes are made by changing a dense one: the stock layer takes sizes from the
            hidden size.
        transposed: whether the matrices of its blocks are stored as [in, out].
        uniform_as: families whose stock class computes the same, tried in order for a model of equal blocks.
        features: config keys beyond the usual ones whose effect is inside of a part, or asked of the model; any other
            setting that changes what the model computes is refused by name.
        heads: what stock code wants of hidden size / query heads: nothing, no remainder, or exactly the head size.
        aliases: other names of stored tensors, and ours.
        stored_as: what is called otherwise in stored names, in all blocks: ours, and theirs.
        like_llama: whether it computes what Llama does, but for biases, norms on q and k, and windows, so that formats
            made for Llama hold it.
        since: the first version of transformers whose classes are described here.
    """

    name: str
    prefix: str
    classes: tuple[str, str, str] | None = None
    attention_part: Part = ATTENTION
    ffn_part: Part = FFN
    blocks_at: str = "model.layers"
    norm_at: str = "model.norm"
    embedding_at: str = "model.embed_tokens"
    parallel: Fact = False
    multiplier: str | None = None
    layer_norm: bool = False
    qkv_bias: Fact = False
    o_bias: Fact = False
    mlp_bias: Fact = False
    qk_norm: bool | Literal["all heads"] = False
    positions: str | None = None
    ffn_size: str = "intermediate_size"
    resized: bool = False
    transposed: bool = False
    uniform_as: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    heads: Literal["free", "divide", "exact"] = "free"
    aliases: Mapping[str, str] = field(default_factory=dict)
    stored_as: Mapping[str, str] = field(default_factory=dict)
    like_llama: bool = False
    since: str = "5.4"

    @property
    def pruned_type(self) -> str:
        """`model_type` of a model with blocks of different sizes."""
        return f"sentei_{self.name}"

    @property
    def installed(self) -> bool:
        """Whether the installed transformers has it."""
        return _version(transformers.__version__) >= _version(self.since)

    def stock_class(self, kind: Literal["Config", "Model", "ForCausalLM"]) -> Any:
        """A class of transformers.

        Raises:
            InputError: the installed transformers is too old for it.
        """
        name = self._class_name(kind)
        if not self.installed or not hasattr(transformers, name):
            raise InputError(
                f"family {self.name} needs transformers >= {self.since}, installed is {transformers.__version__}; "
                "pip install -U transformers"
            )
        return getattr(transformers, name)

    def pruned_class(self, kind: Literal["Config", "Model", "ForCausalLM"]) -> Any:
        """The class of a model with blocks of different sizes."""
        return getattr(modeling_sentei, f"Sentei{self._class_name(kind)}")

    def _class_name(self, kind: str) -> str:
        names = self.classes or tuple(f"{self.prefix}{end}" for end in ("Config", "Model", "ForCausalLM"))
        return dict(zip(("Config", "Model", "ForCausalLM"), names, strict=True))[kind]

    def layout(self, part: str) -> Part:
        """Where the matrices and norms of the "attention" or the "ffn" part are."""
        return self.attention_part if part == "attention" else self.ffn_part

    @property
    def described(self) -> dict[str, Any] | None:
        """What the modelling file of a pruned model must know; None: nothing, all is as in Llama."""
        parts = {name: self.layout(name).described() for name in PARTS}
        if parts == modeling_sentei.LLAMA_PARTS and not self.resized:
            return None
        return {"parts": parts, "resized": self.resized}

    def shape(self, config: Any) -> ModelShape:
        """Sizes of a model with this config, dense or pruned.

        Raises:
            InputError: query heads that do not divide into KV groups, or experts that are not as many as are wanted.
        """
        return shape_of(self, config)

    def blocks(self, model: nn.Module) -> nn.ModuleList:
        """The decoder layers, in order; see `block` for one whose weights are wanted."""
        return cast(nn.ModuleList, model.get_submodule(self.blocks_at))

    def block(self, model: nn.Module, index: int) -> nn.Module:
        """One decoder layer, in memory: of a streamed model it is read, and the one before it put away."""
        streamed = streamed_blocks(model)
        if streamed is not None:
            streamed.enter(index)
        return self.blocks(model)[index]

    def attention(self, block: nn.Module) -> nn.Module | None:
        """The attention part; None where it was removed."""
        return self.part(block, "attention")

    def ffn(self, block: nn.Module) -> nn.Module | None:
        """The FFN part; None where it was removed."""
        return self.part(block, "ffn")

    def part(self, block: nn.Module, name: str) -> nn.Module | None:
        """The "attention" or the "ffn" part; None where it was removed: what stands for it has no weights."""
        part = block.get_submodule(self.layout(name).path)
        return None if next(part.parameters(), None) is None else part

    def linears(self, block: nn.Module, part: str) -> dict[str, nn.Linear]:
        """The matrices of a part by our names, the one that writes the stream last; empty where it was removed.

        Raises:
            ValueError: the part has experts, each with its own matrices: see `members`.
        """
        members = self.members(block, part)
        if part == "ffn" and self.experts(block):
            raise ValueError(
                f"the FFN part has experts, each with its own matrices ({len(members)}); ask for `members`"
            )
        return members[0] if members else {}

    def members(self, block: nn.Module, part: str) -> list[dict[str, nn.Linear]]:
        """The matrices of a part, as of `linears`: of each expert, else once; none where it was removed."""
        module, layout = self.part(block, part), self.layout(part)
        if module is None:
            return []
        owners = self.experts(block) if part == "ffn" else None
        return [
            {name: cast(nn.Linear, owner.get_submodule(at)) for name, at in layout.matrices.items()}
            for owner in owners or [module]
        ]

    def experts(self, block: nn.Module) -> list[nn.Module]:
        """The experts of a block's FFN part; none where it is a plain one, or removed."""
        found = self.ffn_part.experts
        module = self.ffn(block) if found else None
        return list(getattr(module, found.path, ())) if found and module is not None else []

    def router(self, block: nn.Module) -> nn.Module:
        """The router of a block that has experts."""
        experts, module = self.ffn_part.experts, self.ffn(block)
        assert experts is not None and module is not None  # asked of blocks with experts only
        return module.get_submodule(experts.router)

    def ends(self, block: nn.Module, part: str) -> tuple[nn.Module, nn.Module]:
        """The module that reads what a part reads first, and the one whose output is the part's."""
        module, members = self.part(block, part), self.members(block, part)
        assert module is not None  # asked of parts that are there
        if part == "ffn" and self.experts(block):
            return module, module
        first, *_, last = members[0].values()
        return first, last

    def stored_name(self, name: str) -> str:
        """The name that a tensor of the stock model, its matrices taken apart, has in a file."""
        for ours, theirs in self.stored_as.items():
            name = name.replace(ours, theirs)
        return name

    def known_name(self, name: str) -> str:
        """The inverse of `stored_name`."""
        for ours, theirs in self.stored_as.items():
            name = name.replace(theirs, ours)
        return name

    def norms(self, block: nn.Module, part: str) -> list[nn.Module]:
        """The norms that go with a part, for copying."""
        return [block.get_submodule(name) for name in self.layout(part).norms]

    def reads(self, block: nn.Module, part: str, stream: Tensor) -> Tensor:
        """What a part's first matrices read, of the stream at its place (or, in parallel, of what enters the block)."""
        norm = self.layout(part).before
        return stream if norm is None else cast(Tensor, block.get_submodule(norm)(stream))

    def joins(self, config: Any, block: nn.Module, part: str, output: Tensor) -> Tensor:
        """What a part adds to the stream, of the output of its last matrix."""
        norm, factor = self.layout(part).after, self.factor(config)
        output = output if norm is None else block.get_submodule(norm)(output)
        return output if factor == 1 else output * factor

    def factor(self, config: Any) -> float:
        """What the output of each part is multiplied with."""
        return float(getattr(config, self.multiplier)) if self.multiplier else 1.0

    def is_parallel(self, config: Any) -> bool:
        """Whether both parts read what enters the block."""
        return fact(self.parallel, config)

    def run_part(
        self, model: nn.Module, index: int, part: str, stream: Tensor, inputs: dict[str, Any] | None = None
    ) -> Tensor:
        """The output of a part's last matrix; `stream`: what the part reads, before its norm, [B, T, hidden].

        `inputs`: of the block, where they are known; see `block_inputs`.
        """
        block = self.block(model, index)
        module = self.part(block, part)
        assert module is not None  # nothing is run that was removed
        read = self.reads(block, part, stream)
        if part == "ffn":
            return cast(Tensor, module(read))
        given = self.block_inputs(model, stream, index) if inputs is None else inputs
        return cast(Tensor, module(hidden_states=read, **given)[0])

    def final_norm(self, model: nn.Module) -> nn.Module:
        """The norm after the last block."""
        return model.get_submodule(self.norm_at)

    def head(self, model: nn.Module) -> nn.Module:
        """The language-model head; its weight may be that of the embedding. See `logits`."""
        return cast(nn.Module, cast(Any, model).get_output_embeddings())

    def logits(self, model: nn.Module, stream: Tensor) -> Tensor:
        """Logits [..., vocab] of what leaves the last block."""
        return scaled_logits(model, self.final_norm(model)(stream))

    def embed(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Token ids [B, T] to what block 0 reads, [B, T, hidden]."""
        return given_to_blocks(model, self.blocks_at, input_ids=ids)[0][0]

    def block_inputs(self, model: nn.Module, hidden: Tensor, index: int, first: int = 0) -> dict[str, Any]:
        """Keyword arguments for `block(hidden, **inputs)`; no padding, no cache.

        Args:
            model: the model whose block it is.
            hidden: [B, T, hidden].
            index: of the block.
            first: position of the first token.
        """
        positions = torch.arange(first, first + hidden.shape[1], device=hidden.device)[None]
        return given_to_blocks(model, self.blocks_at, inputs_embeds=hidden, position_ids=positions)[index][1]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
