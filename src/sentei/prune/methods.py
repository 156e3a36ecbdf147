"""The table of methods: each is a score, an allocation and a compensation."""

from __future__ import annotations

from dataclasses import dataclass

from sentei.errors import unknown

KINDS = STRUCTURAL, LOW_RANK = "structural", "low-rank"  # of removal: units go, or matrices become products


@dataclass(frozen=True)
class Method:
    """A preset: faithful to its paper, but for the flaws that docs/methods.md lists."""

    name: str
    score: str
    allocation: str
    compensation: str
    line: str
    paper: str
    kinds: tuple[str, ...] = (STRUCTURAL,)


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            "auto",
            "obs-fisher",
            "global",
            "residual",
            "our default: channels, heads and ranks in one knapsack over predicted nats, where the engine holds ranks",
            "docs/low-rank.md",
            KINDS,
        ),
        Method(
            "structural",
            "obs-fisher",
            "global",
            "residual",
            "the same without low-rank matrices: loads in every engine",
            "docs/benchmarks.md",
        ),
        Method(
            "low-rank",
            "obs-fisher",
            "global",
            "residual",
            "ranks only: the least predicted nats for the budget",
            "docs/low-rank.md",
            (LOW_RANK,),
        ),
        Method(
            "sieve",
            "obs-fisher",
            "uniform",
            "least-squares",
            "output-aligned projections, the same share of every matrix, in closed form",
            "arXiv 2505.18350",
            (LOW_RANK,),
        ),
        Method(
            "numerical",
            "newton",
            "global",
            "least-squares",
            "relaxed-mask Newton score, global, closed-form refit",
            "arXiv 2412.12441",
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
            "first-order Taylor, the same share everywhere",
            "arXiv 2305.11627",
        ),
        Method(
            "wanda-sp",
            "wanda-sp",
            "uniform",
            "none",
            "input energy times squared weights, per unit",
            "arXiv 2306.11695",
        ),
        Method("flap", "flap", "global", "bias", "fluctuation score, global, bias for what went", "arXiv 2312.11983"),
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
