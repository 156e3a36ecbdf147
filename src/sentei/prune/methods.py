"""The table of methods: each is a score, an allocation and a compensation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sentei.errors import unknown
from sentei.plan import Weigh

KINDS = STRUCTURAL, LOW_RANK = "structural", "low-rank"  # of removal: units go, or matrices become products


@dataclass(frozen=True)
class Method:
    """A preset: faithful to its paper and its public code, but for the flaws that docs/methods.md lists.

    Attributes:
        protect: what is not thinned, as `--protect` says it.
        weigh: how the losses of different parts are compared; see `sentei.prune.weighing`.
    """

    name: str
    score: str
    allocation: str
    compensation: str
    line: str
    paper: str
    protect: str = "none"
    weigh: Weigh = "none"
    kinds: tuple[str, ...] = (STRUCTURAL,)


OURS: Any = {"score": "obs-fisher", "compensation": "residual", "protect": "attention:1", "weigh": "gradient"}

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            "auto",
            allocation="global",
            line="ours: channels, heads and ranks in one knapsack over predicted nats, where the engine holds ranks",
            paper="docs/low-rank.md",
            kinds=KINDS,
            **OURS,
        ),
        Method(
            "structural",
            allocation="global",
            line="the same without low-rank matrices: loads in every engine",
            paper="docs/benchmarks.md",
            **OURS,
        ),
        Method(
            "low-rank",
            allocation="global",
            line="ranks only: the least predicted nats for the budget",
            paper="docs/low-rank.md",
            kinds=(LOW_RANK,),
            **OURS,
        ),
        Method(
            "sieve",
            "obs-fisher",
            "uniform",
            "least-squares",
            "output-aligned projections, the same share of every matrix, in closed form",
            "arXiv 2505.18350",
            weigh="gradient",
            kinds=(LOW_RANK,),
        ),
        Method(
            "numerical",
            "newton",
            "global",
            "least-squares",
            "relaxed-mask Newton score, global, closed-form refit",
            "arXiv 2412.12441",
            weigh="energy",
        ),
        Method(
            "adapt",
            "taylor",
            "adaptive",
            "none",
            "Taylor score, shares by each block's in/out angle",
            "arXiv 2502.03460",
        ),
        Method(
            "llm-pruner",
            "taylor",
            "uniform",
            "none",
            "first-order Taylor, the same share of every block but the first eighth and the last sixteenth",
            "arXiv 2305.11627",
            protect="first:0.125,last:0.0625,attention:grouped",  # 4 and 2 of the 32 blocks of LLaMA-7B
        ),
        Method(
            "wanda-sp",
            "wanda-sp",
            "uniform",
            "none",
            "input energy times squared weights, per unit",
            "arXiv 2306.11695",
        ),
        Method(
            "flap",
            "flap",
            "global",
            "bias",
            "fluctuation score, standardised and global, bias for what went",
            "arXiv 2312.11983",
            protect="attention:grouped",
            weigh="standardise",
        ),
        Method(
            "shortgpt",
            "block-influence",
            "blocks",
            "none",
            "whole blocks that turn their input least",
            "arXiv 2403.03853",
        ),
        Method("magnitude", "magnitude", "uniform", "none", "smallest weights first, no data", "Li et al. 2017"),
        Method("random", "random", "uniform", "none", "a seeded draw: the floor", "–"),
    )
}


def method(name: str) -> Method:
    """The preset of that name.

    Raises:
        InputError: unknown, with the nearest.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
