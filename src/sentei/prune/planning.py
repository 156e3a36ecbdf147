"""`plan`: from a profile and a budget to what each block keeps. Seconds, no model, no forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from sentei.errors import InfeasibleError, InputError, unknown
from sentei.measure.curves import AttentionOption, BlockCurves
from sentei.measure.profile import Profile
from sentei.measure.ranking import rank_block
from sentei.measure.scores import SCORES, Score
from sentei.plan import BlockPlan, Budget, Plan, Refine, Storage, Weigh, by_expert, planned_shape
from sentei.protect import Protect
from sentei.prune.allocation import ALLOCATIONS, Choice, Problem
from sentei.prune.compensation import COMPENSATIONS
from sentei.prune.experts import arranged
from sentei.prune.matrices import Matrices
from sentei.prune.menu import LEVELS, Entry, Menus, Times
from sentei.prune.methods import KINDS, LOW_RANK, OURS, Method
from sentei.prune.methods import method as preset
from sentei.prune.weighing import weighed
from sentei.registry import Registry
from sentei.schema import parse

ANY_SIZE = "loss_increase_any_size"  # predicted, were every size legal
DEAR = 1.5  # times as much predicted loss as with any size is worth a warning
RANK_ALLOCATIONS = ("global", "uniform")
OWN_PROTECT: Protect = Protect.model_validate(OURS["protect"])


def plan(
    profile: Profile,
    budget: Budget,
    method: str = "auto",
    *,
    score: str | None = None,
    allocation: str | None = None,
    compensation: str | None = None,
    protect: Protect | str | None = None,
    weigh: Weigh | None = None,
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
        protect: what is not thinned, such as "first:4,last:2"; overrides the preset's.
        weigh: how the losses of different parts are compared (`sentei.prune.weighing`); overrides the preset's.
        storage: how low-rank matrices are stored: as two factors, or pivoted (smaller by R² each).
        refine: "block": the cut ends with a few hundred optimiser steps on each block; see `sentei.prune.refine`.
        seed: of the random score.

    Raises:
        InputError: an unknown name, or a score or comparison that needs gradients on a profile without.
        InfeasibleError: no legal plan meets the budget.
    """
    base = preset(method)
    weigh = weigh or base.weigh
    for kind, name, names_of in (("storage", storage, Storage), ("refine", refine, Refine), ("weigh", weigh, Weigh)):
        if name not in get_args(names_of):
            raise unknown(kind, name, get_args(names_of))
    names = parts_of(base, score, allocation, compensation)
    kept: Protect = parse(Protect, base.protect if protect is None else protect, "protect")
    if protect is None and budget.limits.uniform:
        kept = Protect()  # one size for all blocks: a preset's protection cannot be had
    ours = (base.score, base.allocation, base.compensation, base.weigh)
    changed = (*names, weigh) != ours or protect is not None
    label = f"{method} (changed)" if changed else method
    if LOW_RANK in base.kinds and (base.name != "auto" or budget.limits.low_rank):
        own = menus_for(
            profile,
            budget,
            base.kinds,
            score=names[0],
            compensation=names[2],
            protect=kept,
            storage=storage,
            levels=None,
        )
        made = plan_of(profile, own, solve_menus(own, names[1]), method=label, allocation=names[1])
    else:
        rule = ALLOCATIONS[names[1]]
        problem = problem_for(profile, budget, names[0], names[2], kept, weigh, seed, ranked=rule.needs_score)
        choices = rule.solve(problem)
        known = SCORES[names[0]].scale == "nats" and rule.needs_score
        ranks: list[dict[str, int]] = [{} for _ in choices]
        loss = problem.loss(choices) if known else None
        made = _as_plan(profile, problem, choices, ranks, method=label, names=names, loss=loss)
        free = budget.model_copy(update={"target_engine": "transformers", "ffn_multiple": None})
        if known and (budget.limits.legal() != free.limits.legal()):
            any_size = replace(problem, budget=free)
            made.predicted[ANY_SIZE] = any_size.loss(rule.solve(any_size))
    return made.model_copy(update={"refine": refine})


def parts_of(
    base: Method, score: str | None = None, allocation: str | None = None, compensation: str | None = None
) -> tuple[str, str, str]:
    """Names of score, allocation and compensation: those that are given, else the preset's.

    Raises:
        InputError: an unknown name, whether or not this plan would use it.
    """
    known: tuple[Registry[Any], ...] = (SCORES, ALLOCATIONS, COMPENSATIONS)
    given, own = (score, allocation, compensation), (base.score, base.allocation, base.compensation)
    names = tuple(preset if name is None else name for name, preset in zip(given, own, strict=True))
    for registry, name in zip(known, names, strict=True):
        registry[name]
    return names[0], names[1], names[2]


def warning(plan: Plan) -> str | None:
    """A line where the engine's legal sizes make a plan much worse than it could be; None where they do not."""
    loss, free = plan.predicted.get("loss_increase"), plan.predicted.get(ANY_SIZE)
    if loss is None or free is None or loss <= DEAR * max(free, 1e-3):
        return None
    limits = plan.budget.limits
    sizes = [f"FFN widths in multiples of {limits.ffn_multiple}"] if limits.ffn_multiple > 1 else []
    sizes += ["each attention whole or gone"] if limits.fixed_query_heads else []
    sizes += ["all blocks alike"] if limits.uniform else []
    return (
        f"warning: the legal sizes of --target-engine {plan.budget.target_engine} ({', '.join(sizes)}) cost quality: "
        f"predicted loss +{loss:.3g} nats, +{free:.3g} with any size; remove less, or use an engine "
        "that takes any size (transformers, onnx, openvino)"
    )


def problem_for(
    profile: Profile,
    budget: Budget,
    score: str,
    compensation: str,
    protect: Protect,
    weigh: Weigh,
    seed: int = 0,
    *,
    ranked: bool = True,
) -> Problem:
    """What may be chosen in each block, and what it loses by that score; `ranked` off: whole blocks, without losses."""
    chosen = SCORES[score]
    whole = [_whole(profile, i) for i in range(len(profile.blocks))]
    curves = curves_of(profile, chosen, weigh, seed) if ranked else whole
    pairs = zip(curves, profile.shape.blocks, strict=True)
    curves, angles = [arranged(own, block, budget) for own, block in pairs], profile.angles
    return Problem(profile.shape, curves, angles, budget, score, compensation, protect, weigh)


def menus_for(
    profile: Profile,
    budget: Budget,
    kinds: Sequence[str] = KINDS,
    *,
    score: str = "obs-fisher",
    compensation: str = "residual",
    protect: Protect = OWN_PROTECT,
    storage: Storage = "factors",
    levels: int | None = LEVELS,
    times: Times | None = None,
) -> Menus:
    """What every part of every block may become; see `Menus`.

    Raises:
        InputError: the score is not in nats, the profile has no gradients, or the engine holds no low-rank matrices.
    """
    if LOW_RANK in kinds and SCORES[score].scale != "nats":
        nats = [name for name, found in SCORES.items() if found.scale == "nats"]
        raise InputError(
            f"ranks are priced in nats of the loss, and score {score!r} is none; use --method structural, "
            f"or --score {' or '.join(nats)}"
        )
    if LOW_RANK in kinds and not profile.contents.ranks:
        raise InputError("the profile holds no losses of low ranks, which this method needs; measure again with them")
    problem = problem_for(profile, budget, score, compensation, protect, "gradient")
    return Menus(problem, profile, kinds, storage, levels, times)


def plan_of(profile: Profile, menus: Menus, entries: Sequence[Entry], *, method: str, allocation: str) -> Plan:
    """The plan of one entry per part."""
    problem = menus.problem
    choices, ranks = menus.choices(entries)
    return _as_plan(
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
    """One entry per part for the budget of the menus' problem: evenly, or with the least predicted loss.

    Raises:
        InputError: another allocation.
        InfeasibleError: no choice meets the budget.
    """
    problem = menus.problem
    if allocation not in RANK_ALLOCATIONS:
        known = " or ".join(RANK_ALLOCATIONS)
        raise InputError(f"allocation {allocation!r} knows no ranks; use {known}, or --method structural")
    if allocation == "uniform":
        matrices = Matrices(menus, kept=None)
        if not matrices.genes or matrices.space.cost(matrices.space.smallest) > problem.target:
            raise InfeasibleError(f"{problem.budget.describe()} leaves less than rank 1 of every matrix; ask for less")
        return matrices.entries(matrices.space.evenly(problem.target))
    return menus.solve()


def _as_plan(
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
        own_text=profile.own_tokens,
        method=method,
        score=names[0],
        allocation=names[1],
        compensation=names[2],
        protect=problem.protect,
        weigh=problem.weigh,
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


def curves_of(profile: Profile, score: Score, weigh: Weigh, seed: int = 0) -> list[BlockCurves]:
    """The removal curves of every block, computed once per score, comparison and seed and kept with the profile."""
    raw, key = (score.name, seed), (score.name, weigh, seed)
    if raw not in profile.curves:
        profile.curves[raw] = [
            stats.curves.get(score.name) or rank_block(stats, profile.shape, i, score, seed)
            for i, stats in enumerate(profile.blocks)
        ]
    if key not in profile.curves:
        profile.curves[key] = weighed(profile.curves[raw], profile, score, weigh, seed)
    found: list[BlockCurves] = profile.curves[key]
    return found


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
    experts = problem.dense.blocks[index].experts
    left = [len(own) for own in by_expert(kept, experts) if own]
    stay = f"; {len(left)} of {len(experts)} experts, of {min(left)} to {max(left)} channels" if left else ""
    losses = f"attention +{option.loss:.2e}, FFN +{curves.ffn_loss[choice.removed]:.2e}{unit}"
    return BlockPlan(
        kv_groups=list(option.kv_groups),
        query_heads=[list(heads) for heads in option.query_heads],
        ffn=kept,
        ranks=ranks,
        reason=(f"predicted loss {losses}; in/out cosine {problem.angles[index]:.3f}{stay}"),
    )
