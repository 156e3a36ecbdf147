"""`auto` where the model is at hand: structural, low-rank or both, by measured loss, for this budget.

Each kind's plan is put into the model in place (`sentei.search.library`) and reads the same text; the least loss wins.
Without a model, `sentei plan` takes both kinds where the target engine holds low-rank matrices: their knapsack holds
the other two as special cases.
"""

from __future__ import annotations

import math
from typing import Any

from sentei.data.windows import Windows
from sentei.errors import InfeasibleError
from sentei.measure.profile import Profile
from sentei.metrics.perplexity import perplexity
from sentei.plan import Budget, Plan
from sentei.progress import Progress
from sentei.prune.methods import KINDS, LOW_RANK, STRUCTURAL
from sentei.prune.planning import menus_for, plan, plan_of, solve_menus
from sentei.search.library import Library

CANDIDATES = {"structural": (STRUCTURAL,), "low-rank": (LOW_RANK,), "mixed": KINDS}
WINDOWS = 16  # that judge


def choose(model: Any, profile: Profile, budget: Budget, windows: Windows, *, progress: Progress | None = None) -> Plan:
    """The plan of the kind whose candidate in place loses least.

    Args:
        model: the dense model that `profile` is of; it is as before afterwards.
        profile: with gradients.
        budget: how small; an engine that holds no low-rank matrices leaves the structural plan.
        windows: text to judge on, best what `measure` did not read; the last few are used.
        progress: told about each kind.

    Raises:
        InfeasibleError: no kind meets the budget.
    """
    if not budget.limits.low_rank:
        return plan(profile, budget, "auto")
    ids = windows.ids[-WINDOWS:]
    losses: dict[str, float] = {}
    plans: dict[str, Plan] = {}
    with (progress or Progress()).stage("choose", total=len(CANDIDATES), unit="kinds") as bar:
        dense = math.log(perplexity(model, ids).value)
        for name, kinds in CANDIDATES.items():
            menus = menus_for(profile, budget, kinds, levels=None)
            try:
                entries = solve_menus(menus, "global")
            except InfeasibleError:
                continue
            library = Library(model, profile, menus)
            try:
                library.switch(entries)
                losses[name] = math.log(perplexity(model, ids).value) - dense
            finally:
                library.restore()
            plans[name] = plan_of(profile, menus, entries, method="auto", allocation="global")
            bar.advance()
    if not plans:
        return plan(profile, budget, "auto")  # says what is reachable
    best = min(losses, key=lambda name: losses[name])
    measured = {f"loss_increase_in_place_{name.replace('-', '_')}": loss for name, loss in losses.items()}
    return plans[best].model_copy(update={"predicted": plans[best].predicted | measured})
