"""`plan`: from a profile and a budget to what each block keeps. Seconds, no model, no forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from sentei.errors import InfeasibleError, InputError, unknown
from sentei.measure.profile import PartStats, Profile
from sentei.plan import BlockPlan, Budget, Plan, Refine, Storage, planned_shape
from sentei.prune.allocation import ALLOCATIONS, Choice, Problem
from sentei.prune.menu import LEVELS, Entry, Menus, Times, uniform
from sentei.prune.methods import KINDS, LOW_RANK
from sentei.prune.methods import method as preset
from sentei.prune.ranking import AttentionOption, BlockCurves, rank_block
from sentei.prune.scores import SCORES, Score


def plan(
    profile: Profile,
    budget: Budget,
    method: str = "auto",
    *,
    score: str | None = None,
    allocation: str | None = None,
    compensation: str | None = None,
    storage: Storage = "factors",
    refine: Refine = "none",
    seed: int = 0,
) -> Plan:
    """Decides what each block keeps.

    Args:
        profile: from `measure`.
        budget: how small, for which engine.
        method: a preset of `sentei.prune.methods`.
        score: overrides the preset's.
        allocation: overrides the preset's.
        compensation: overrides the preset's.
        storage: how low-rank matrices are stored: as two factors, or pivoted (smaller by R² each).
        refine: "block": the cut ends with a few hundred optimiser steps on each block; see `sentei.prune.refine`.
        seed: of the random score.

    Raises:
        InputError: an unknown name, or a score that needs gradients on a profile without.
        InfeasibleError: no legal plan meets the budget.
    """
    for kind, name, names_of in (("storage", storage, Storage), ("refine", refine, Refine)):
        if name not in get_args(names_of):
            raise unknown(kind, name, get_args(names_of))
    base = preset(method)
    names = (score or base.score, allocation or base.allocation, compensation or base.compensation)
    label = method if (score, allocation, compensation) == (None, None, None) else f"{method} (changed)"
    if LOW_RANK in base.kinds and (base.name != "auto" or budget.limits.low_rank):
        menus = menus_for(profile, budget, base.kinds, score=names[0], compensation=names[2], storage=storage)
        made = plan_of(profile, menus, solve_menus(menus, names[1]), method=label, allocation=names[1])
    else:
        rule = ALLOCATIONS[names[1]]
        problem = problem_for(profile, budget, names[0], names[2], seed, ranked=rule.needs_score)
        choices = rule.solve(problem)
        known = SCORES[names[0]].scale == "nats" and rule.needs_score
        ranks: list[dict[str, int]] = [{} for _ in choices]
        loss = problem.loss(choices) if known else None
        made = _made(profile, problem, choices, ranks, method=label, names=names, loss=loss)
    return made.model_copy(update={"refine": refine})


def problem_for(
    profile: Profile, budget: Budget, score: str, compensation: str, seed: int = 0, *, ranked: bool = True
) -> Problem:
    """What may be chosen in each block, and what it loses by that score; `ranked` off: whole blocks, without losses."""
    chosen = SCORES[score]
    curves = curves_of(profile, chosen, seed) if ranked else [_whole(profile, i) for i in range(len(profile.blocks))]
    angles = [block.angle for block in profile.blocks]
    return Problem(profile.shape, curves, angles, budget, score, compensation)


def menus_for(
    profile: Profile,
    budget: Budget,
    kinds: Sequence[str] = KINDS,
    *,
    score: str = "obs-fisher",
    compensation: str = "residual",
    storage: Storage = "factors",
    levels: int = LEVELS,
    times: Times | None = None,
) -> Menus:
    """What every part of every block may become; see `Menus`.

    Raises:
        InputError: the score is not in nats, the profile has no gradients, or the engine holds no low-rank matrices.
    """
    if LOW_RANK in kinds and SCORES[score].scale != "nats":
        nats = [name for name, found in SCORES.items() if found.scale == "nats"]
        raise InputError(f"ranks are priced in nats, score {score!r} is not; use one of {', '.join(nats)}")
    return Menus(problem_for(profile, budget, score, compensation), profile, kinds, storage, levels, times)


def plan_of(profile: Profile, menus: Menus, entries: Sequence[Entry], *, method: str, allocation: str) -> Plan:
    """The plan of one entry per part."""
    problem = menus.problem
    choices, ranks = menus.choices(entries)
    return _made(
        profile,
        problem,
        choices,
        ranks,
        method=method,
        names=(problem.score, allocation, problem.compensation),
        storage=menus.storage,
        loss=sum(entry.loss for entry in entries),
    )


def solve_menus(menus: Menus, allocation: str) -> list[Entry]:
    """One entry per part for the budget of the menus' problem: evenly, or with the least predicted loss."""
    problem = menus.problem
    if allocation == "uniform":
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if menus.cost(uniform(menus, middle)) <= problem.target else (low, middle)
        entries = uniform(menus, low)
        if menus.cost(entries) > problem.target:
            raise InfeasibleError(f"{problem.budget.describe()} leaves less than rank 1 of every matrix; ask for less")
        return menus.fill(entries)
    problem.refuse_above(menus.space.cost(menus.space.smallest))
    return menus.fill(menus.entries(menus.space.solve(problem.target)))


def _made(
    profile: Profile,
    problem: Problem,
    choices: list[Choice],
    ranks: list[dict[str, int]],
    *,
    method: str,
    names: tuple[str, str, str],
    storage: Storage = "factors",
    loss: float | None,
) -> Plan:
    budget, scale = problem.budget, SCORES[names[0]].scale
    blocks = [_block_plan(problem, i, choice, ranks[i], scale) for i, choice in enumerate(choices)]
    small = planned_shape(profile.shape, blocks, bias=problem.bias, storage=storage)
    return Plan(
        model=profile.model_digest,
        profile=profile.digest(),
        method=method,
        score=names[0],
        allocation=names[1],
        compensation=names[2],
        storage=storage,
        budget=budget,
        dense=profile.shape,
        blocks=blocks,
        predicted={
            "block_params": small.block_params(),
            "params": small.params(),
            "removed": 1 - small.block_params() / profile.shape.block_params(),
            "flops_per_token": small.flops(budget.context),
            "flops_ratio": small.flops(budget.context) / profile.shape.flops(budget.context),
            "bytes": small.bytes(budget.batch, budget.context),
            **({} if loss is None else {"loss_increase": loss}),
        },
    )


def curves_of(profile: Profile, score: Score, seed: int = 0) -> list[BlockCurves]:
    """The removal curves of every block, computed once per score and seed and kept with the profile."""
    key = (score.name, seed)
    if key not in profile.curves:
        profile.curves[key] = [
            rank_block(
                stats, profile.shape, i, score, (_weight(stats.attention, score), _weight(stats.ffn, score)), seed
            )
            for i, stats in enumerate(profile.blocks)
        ]
    return profile.curves[key]


def _weight(part: PartStats | None, score: Score) -> float:
    """Makes losses of different parts comparable.

    Nats are already. Squared output errors are weighed by the mean squared gradient at the output where the profile
    has gradients (then they approximate nats), else relative to the residual stream's energy.
    """
    if part is None or score.scale == "nats":
        return 1.0
    if score.scale == "none":
        return 1.0 / max(part.norm.sum().item(), 1e-30) if score.name == "magnitude" else 1.0
    if part.output_grad is not None:
        return 0.5 * part.output_grad.diagonal().mean().item()
    return 1.0 / max(part.energy, 1e-30)


def _whole(profile: Profile, index: int) -> BlockCurves:
    """Curves for an allocation that removes whole blocks: only the dense and the empty choice, no losses."""
    full = profile.shape.blocks[index]
    heads = tuple(tuple(range(full.heads_per_group)) for _ in range(full.kv_groups))
    options = (AttentionOption(tuple(range(full.kv_groups)), heads, 0.0), AttentionOption((), (), 0.0))
    return BlockCurves(options, tuple(range(full.ffn)), (0.0,) * (full.ffn + 1))


def _block_plan(problem: Problem, index: int, choice: Choice, ranks: dict[str, int], scale: str) -> BlockPlan:
    curves = problem.curves[index]
    option = curves.attention[choice.attention]
    kept = sorted(curves.ffn_order[choice.removed :])
    unit = {"nats": " nats", "output": " (weighted output error)", "none": " (score units)"}[scale]
    losses = f"attention +{option.loss:.2e}, FFN +{curves.ffn_loss[choice.removed]:.2e}{unit}"
    return BlockPlan(
        kv_groups=list(option.kv_groups),
        query_heads=[list(heads) for heads in option.query_heads],
        ffn=kept,
        ranks=ranks,
        reason=(f"predicted loss {losses}; in/out cosine {problem.angles[index]:.3f}"),
    )
