"""`plan`: from a profile and a budget to what each block keeps. Seconds, no model, no forward pass."""

from __future__ import annotations

from dataclasses import replace

from sentei.errors import InfeasibleError
from sentei.measure.profile import PartStats, Profile
from sentei.plan import BlockPlan, Budget, Plan, Storage, planned_shape
from sentei.prune.allocation import ALLOCATIONS, Choice, Problem
from sentei.prune.compensation import COMPENSATIONS
from sentei.prune.menu import Entry, Menus, uniform
from sentei.prune.methods import LOW_RANK, Method
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
        seed: of the random score.

    Raises:
        InputError: an unknown name, or a score that needs gradients on a profile without.
        InfeasibleError: no legal plan meets the budget.
    """
    base = preset(method)
    names = (score or base.score, allocation or base.allocation, compensation or base.compensation)
    rule, chosen, fit = ALLOCATIONS[names[1]], SCORES[names[0]], COMPENSATIONS[names[2]]
    curves = (
        curves_of(profile, chosen, seed)
        if rule.needs_score
        else [_whole(profile, i) for i in range(len(profile.blocks))]
    )
    problem = Problem(profile.shape, curves, [block.angle for block in profile.blocks], budget, fit.bias)
    loss = None
    if LOW_RANK in base.kinds:
        menus = Menus(problem, profile, base.kinds, storage)
        entries = solve_menus(menus, base if allocation is None else replace(base, allocation=allocation))
        loss = sum(entry.loss for entry in entries)
        choices, ranks = menus.choices(entries)
    else:
        choices = rule.solve(problem)
        ranks = [{} for _ in choices]
        if chosen.scale == "nats" and rule.needs_score:
            loss = problem.loss(choices)
    return make_plan(
        profile,
        problem,
        choices,
        ranks,
        method=method if (score, allocation, compensation) == (None, None, None) else f"{method} (changed)",
        names=names,
        storage=storage,
        loss=loss,
    )


def solve_menus(menus: Menus, method: Method) -> list[Entry]:
    """One entry per part for the budget of the menus' problem: evenly, or with the least predicted loss."""
    from sentei.search.space import Gene, Space

    problem = menus.problem
    if method.allocation == "uniform":
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if menus.cost(uniform(menus, middle)) <= problem.target else (low, middle)
        entries = uniform(menus, low)
        if menus.cost(entries) > problem.target:
            raise InfeasibleError(f"{problem.budget.describe()} leaves less than rank 1 of every matrix; ask for less")
        return menus.fill(entries)
    space = Space(
        tuple(
            Gene(f"{menu.block}.{menu.part}", tuple(e.cost for e in menu.entries), tuple(e.loss for e in menu.entries))
            for menu in menus.parts
        ),
        problem.fixed,
    )
    genome = space.solve(problem.target)
    return menus.fill([menu.entries[level] for menu, level in zip(menus.parts, genome, strict=True)])


def make_plan(
    profile: Profile,
    problem: Problem,
    choices: list[Choice],
    ranks: list[dict[str, int]],
    *,
    method: str,
    names: tuple[str, str, str],
    storage: Storage = "factors",
    loss: float | None = None,
) -> Plan:
    """The plan of some choices, with what it is predicted to cost.

    Args:
        profile: that the choices were made from.
        problem: its curves and its budget.
        choices: one per block.
        ranks: one per block.
        method: what to call it.
        names: of the score, the allocation and the compensation.
        storage: of low-rank matrices.
        loss: predicted increase, nats per token; None where there is no prediction.
    """
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
