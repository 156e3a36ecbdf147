"""`fit`: the smallest model that still does a task, within a tolerance of the dense one.

1. A search finds a genome on the search rows, candidates being switched in place.
2. Real cuts, which fit every part for what the cut parts before it give, go on from there along the same path: they
   lose less than candidates in place, so that more can go.
3. The smallest cut that holds is measured again on the confirmation rows, because the best of many looks better than it
   is; where it does not hold there, the next larger one is tried, and how often is reported.
4. The test rows are read once.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentei.data.task_file import TaskFile
from sentei.errors import InputError, QualityError, unknown
from sentei.files import finite, write_json
from sentei.fit.cuts import Candidate, Cutter, climbed
from sentei.fit.healing import confirmed_dense, procedure
from sentei.fit.settings import Settings
from sentei.fit.setup import Setup, about, set_up
from sentei.fit.workers import coding_for, evaluator
from sentei.models.identity import made_with
from sentei.models.load import Loaded
from sentei.models.save import save
from sentei.plan import Plan
from sentei.progress import Progress, shown
from sentei.report.build import blocks
from sentei.report.task import sizes
from sentei.search.bisect import bisect
from sentei.search.cache import Cache
from sentei.search.evolve import evolve
from sentei.search.genetic import genetic
from sentei.search.goal import Evaluator, Goal
from sentei.search.ledger import Allowance, Result
from sentei.search.library import Coding
from sentei.search.workers import Mapper

SEARCHES = ("evolve", "path", "genetic", "uniform")
IN_PLACE = 0.2  # share of the time for candidates in place; real cuts have the rest
LOOKS = 4  # cuts that are tried on the confirmation rows
APART = 0.02  # of the dense size, between two of them


@dataclass(frozen=True)
class Fitted:
    """The contents of report.json, and the plan whose model was saved."""

    report: dict[str, Any]
    plan: Plan
    directory: Path


def fit(
    loaded: Loaded,
    task: TaskFile,
    out: Path,
    *,
    tolerance: float = 0.01,
    minutes: float | None = None,
    search: str = "evolve",
    strict: bool = False,
    settings: Settings | None = None,
    evaluations: float = math.inf,
    workers: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Fitted:
    """Finds, confirms and saves the smallest model within the tolerance.

    Args:
        loaded: the dense model.
        task: data, metric and splits.
        out: run directory: model/, plan.json, report.json, and journals with which an interrupted run goes on.
        tolerance: 0.01 allows the metric to be 1 % worse than the dense model's, relatively.
        minutes: for everything; None: until the search ends by itself.
        search: "evolve" (ours), "path" (the knapsack's path alone), "genetic" and "uniform" (LLM-Sieve's).
        strict: the whole 95 % interval of the change must be within the tolerance, not only its point estimate.
        settings: what size means, what may go, and how the calibration rows are used.
        evaluations: of candidates in place, at most.
        workers: processes that evaluate them, each with the model and its share of the threads.
        seed: of the search.
        overwrite: replace the run in `out`.
        progress: told about everything.

    Raises:
        InputError: a task, metric or setting that cannot be used.
        QualityError: nothing smaller than the dense model was confirmed; report.json is written all the same.
    """
    if search not in SEARCHES:
        raise unknown("search", search, SEARCHES)
    if minutes is not None and not minutes > 0:
        raise InputError(f"minutes: {minutes:g} is no time; give more than 0")
    settings = settings or Settings()
    if settings.phase is not None and search in ("genetic", "uniform"):
        raise InputError(f"search {search!r} counts params, FLOPs or bytes; {settings.phase} time: evolve or path")
    progress, clock = shown(progress), _Clock()
    deadline = clock.started + 60 * minutes if minutes is not None else math.inf
    setup = set_up(loaded, task, out, tolerance=tolerance, settings=settings, overwrite=overwrite, progress=progress)
    clock.lap("set up")
    now = time.monotonic()
    allowance = Allowance(evaluations, now + IN_PLACE * (deadline - now), pace=setup.score_seconds)
    coding = coding_for(setup.menus, search)
    with evaluator(setup, coding, search, out, workers) as evaluate:
        found = _in_place(setup, coding, evaluate, search, allowance, out, seed, progress)
    clock.lap("search in place")
    cutter = Cutter(setup, progress)
    journal = out / f"{search}-cuts.jsonl"
    candidates, scored, history, ended = _cut(setup, cutter, search, found, coding, deadline, journal, progress)
    clock.lap("real cuts")
    verdict, chosen = _confirm(setup, cutter, candidates, strict=strict, progress=progress)
    clock.lap("confirm and test")
    trained = confirmed_dense(setup, progress) if chosen is not None and settings.heal else None
    clock.lap("dense, trained alike")
    fitted = {
        "tolerance": tolerance,
        "strict": strict,
        "search": search,
        "seed": seed,
        "heal": settings.heal,
        "dense_searched": setup.goal.value(setup.dense),
        "searched_in_place": setup.goal.value(found.outcome),
        "removed_in_place": 1 - found.cost / coding.space.cost(coding.space.dense),
        **verdict,
        "evaluations": round(found.evaluations + scored, 2),
        "cuts": scored,
        "stopped": found.stopped,
        "cuts_ended": ended,
        "dense_trained": trained,
        "minutes": round(clock.minutes, 2),
    }
    report = _report(setup, fitted, chosen, [*found.history, *history], clock)
    if chosen is not None:
        chosen.plan.save(out / "plan.json")
        model = cutter.model(chosen.plan)
        save(model, out / "model", tokenizer=loaded.tokenizer, plan=chosen.plan, overwrite=True)
    write_json(out / "report.json", report)
    if chosen is None:
        raise QualityError(_nothing(setup, fitted, out))
    return Fitted(report, chosen.plan, out)


class _Clock:
    """When it began, and how long each step took."""

    def __init__(self) -> None:
        self.started = self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.started) / 60


def _in_place(
    setup: Setup,
    coding: Coding,
    evaluate: Evaluator | Mapper,
    search: str,
    allowance: Allowance,
    out: Path,
    seed: int,
    progress: Progress,
) -> Result:
    """The search over candidates in place."""
    space, goal = coding.space, setup.goal
    cache = Cache(space, goal.rows, out / f"{search}.jsonl", setup.identity)
    shared: dict[str, Any] = {"allowance": allowance, "cache": cache, "progress": progress}
    if search == "evolve":
        return evolve(space, evaluate, goal, seed=seed, **shared)
    if search == "genetic":
        return genetic(space, evaluate, goal, seed=seed, **shared)
    return bisect(space, evaluate, goal, path=space.even if search == "uniform" else space.at, **shared)


def _cut(
    setup: Setup,
    cutter: Cutter,
    search: str,
    found: Result,
    coding: Coding,
    deadline: float,
    journal: Path,
    progress: Progress,
) -> tuple[list[Candidate], float, list[dict[str, Any]], str]:
    """Real cuts that hold on the search rows, the smallest first; the published searches make one only."""
    if search in ("genetic", "uniform"):
        if found.genome == coding.space.dense:
            return [], 0.0, [], found.stopped
        made = cutter.candidate(coding.entries(found.genome))
        return [made] if setup.goal.met(made.outcome) else [], 1.0, [], found.stopped
    ahead = setup.rows["confirm"] + setup.rows["test"]
    reserve = setup.cut_seconds + 2.5 * setup.score_seconds * ahead / setup.rows["search"]
    if setup.settings.heal:  # the dense model is trained alike, and scored too
        reserve += setup.cut_seconds + setup.score_seconds * ahead / setup.rows["search"]
    return climbed(setup, cutter, found.genome, deadline=deadline - reserve, journal=journal, progress=progress)


def _confirm(
    setup: Setup, cutter: Cutter, candidates: list[Candidate], *, strict: bool, progress: Progress
) -> tuple[dict[str, Any], Candidate | None]:
    """The smallest candidate that holds on the confirmation rows too; then its test."""
    rows, dense_model = setup.prepared["confirm"], setup.loaded.model
    goal = Goal(rows.score(dense_model), setup.goal.tolerance, setup.goal.metric)
    verdict: dict[str, Any] = {"dense": goal.value(goal.dense), "looks": 0, "verdict": "missed"}
    verdict |= dict.fromkeys(("searched", "confirmed", "interval", "removed", "rows_needed", "test"))
    best: tuple[float, Candidate, Any] | None = None
    for candidate in _spaced(candidates):
        with progress.stage("confirm", total=len(rows), unit="rows"):
            outcome = rows.score(cutter.model(candidate.plan))
        verdict["looks"] += 1
        if best is None or goal.margin(outcome) > best[0]:
            best = goal.margin(outcome), candidate, outcome
        if goal.met_strictly(outcome) if strict else goal.met(outcome):
            best, verdict["verdict"] = (0.0, candidate, outcome), "met"
            break
    if best is None:
        return verdict, None
    _, candidate, outcome = best
    verdict |= {
        "searched": setup.goal.value(candidate.outcome),
        "confirmed": finite(goal.value(outcome)),
        "interval": [finite(end) for end in goal.interval(outcome)],
        "removed": candidate.plan.predicted["removed"],
        "rows_needed": goal.rows_needed(outcome),
    }
    if verdict["verdict"] == "missed":
        return verdict, None
    verdict["test"] = _test(setup, cutter.model(candidate.plan))
    return verdict, candidate


def _spaced(candidates: list[Candidate]) -> list[Candidate]:
    """A few, each clearly larger than the one before it."""
    kept: list[Candidate] = []
    for candidate in candidates:
        if not kept or kept[-1].plan.predicted["removed"] - candidate.plan.predicted["removed"] >= APART:
            kept.append(candidate)
    return kept[:LOOKS]


def _test(setup: Setup, model: Any) -> dict[str, Any]:
    """The test rows, once."""
    rows = setup.prepared["test"]
    goal = Goal(rows.score(setup.loaded.model), setup.goal.tolerance, setup.goal.metric)
    outcome = rows.score(model)
    return {
        "dense": goal.value(goal.dense),
        "pruned": finite(goal.value(outcome)),
        "interval": [finite(end) for end in goal.interval(outcome)],
        "rows": len(rows),
        "met": goal.met(outcome),
    }


def _report(
    setup: Setup, fitted: dict[str, Any], chosen: Candidate | None, history: list[dict[str, Any]], clock: _Clock
) -> dict[str, Any]:
    """The contents of report.json."""
    dense = setup.profile.shape
    return {
        "schema_version": 1,
        **made_with(setup.loaded),
        "kind": "fit",
        "model": setup.loaded.name,
        "task": about(setup),
        "fit": fitted,
        "sizes": {"dense": sizes(dense)} | ({"pruned": sizes(chosen.plan.shape())} if chosen else {}),
        "made": procedure(setup),
        "history": history,
        "blocks": blocks(chosen.plan, setup.profile) if chosen else [],
        "seconds": clock.seconds,
    }


def _nothing(setup: Setup, fitted: dict[str, Any], out: Path) -> str:
    """Why there is no result, and the best that was reached."""
    name, tolerance = setup.goal.metric.name, fitted["tolerance"]
    wanted = f"{name} within {tolerance:.1%} of the dense model's {fitted['dense']:.3f}"
    if fitted["confirmed"] is None:
        return f"no smaller model keeps {wanted} on the search rows; allow more (--tolerance), or give it more time"
    return (
        f"no smaller model keeps {wanted} on the confirmation rows; the best of {fitted['looks']} looks reached "
        f"{fitted['confirmed']:.3f} with {fitted['removed']:.1%} of the block params removed "
        f"(see {out / 'report.json'}); allow more (--tolerance), or give more rows"
    )
