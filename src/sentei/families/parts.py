"""What a part of a block is, as data: where its matrices and norms are, and how it joins the stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sentei.families.modeling_sentei import LLAMA_PARTS
from sentei.plan import ATTENTION_MATRICES, FFN_MATRICES

PARTS = ("attention", "ffn")
QKV = ("q_proj", "k_proj", "v_proj")  # in the order in which stock classes fuse them
MATRICES_OF = {"attention": ATTENTION_MATRICES, "ffn": FFN_MATRICES}


@dataclass(frozen=True)
class Fused:
    """One stock matrix that holds several of ours, its outputs side by side.

    Attributes:
        matrices: ours, in their order.
        by_head: whether the outputs of each head stand together, instead of one matrix after the other.
    """

    matrices: tuple[str, ...]
    by_head: bool = False


@dataclass(frozen=True)
class Experts:
    """Several FFNs side by side, of which a router picks some for each token.

    Attributes:
        count: config key of how many there are.
        width: config key of the channels of each.
        path: of the experts in the module of the part; each has the part's matrices.
        router: of the router, whose weight has a row for each.
    """

    count: str
    width: str
    path: str = "experts"
    router: str = "gate"


@dataclass(frozen=True)
class Part:
    """An attention or an FFN part.

    Attributes:
        path: of the module in its block.
        before: the norm on what the part reads, by its name in the block; None: it reads the stream as it is.
        after: the norm on what the part adds to the stream.
        matrices: our names of its matrices, the one that writes the stream last, and their paths in the module; within
            a fused one `fused path.our name`.
        fused: matrices that the stock class holds as one, by their path in the module.
        attributes: of the module that are sizes, and which: "heads", "groups", "heads_per_group" or "queries" (heads
            times their size).
        experts: of a mixture, in those blocks that have one; the others have the matrices in the module itself.
    """

    path: str
    before: str | None
    after: str | None = None
    matrices: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, Fused] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    experts: Experts | None = None

    @property
    def norms(self) -> list[str]:
        """The norms that go where the part goes."""
        return [name for name in (self.before, self.after) if name]

    def described(self) -> dict[str, Any]:
        """The same as JSON, for the modelling file of a pruned model."""
        found: dict[str, Any] = {"path": self.path, "norms": self.norms, "matrices": dict(self.matrices)}
        if self.fused:
            found["fused"] = {
                path: {"matrices": list(one.matrices), "by_head": one.by_head} for path, one in self.fused.items()
            }
        if self.attributes:
            found["attributes"] = dict(self.attributes)
        if self.experts:
            found["experts"] = {"path": self.experts.path, "router": self.experts.router}
        return found


ATTENTION = Part(
    "self_attn",
    "input_layernorm",
    matrices=LLAMA_PARTS["attention"]["matrices"],
    attributes=LLAMA_PARTS["attention"]["attributes"],
)
FFN = Part("mlp", "post_attention_layernorm", matrices=LLAMA_PARTS["ffn"]["matrices"])
