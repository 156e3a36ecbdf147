"""`frontier`: the whole curve of size, quality and speed of a task; each point is a plan that `sentei cut` applies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentei.data.task_file import TaskFile
from sentei.errors import InfeasibleError, InputError
from sentei.files import write_json
from sentei.fit.cuts import Cutter
from sentei.fit.healing import figures_of, procedure, trained_dense
from sentei.fit.settings import Settings
from sentei.fit.setup import Setup, about, set_up
from sentei.models.identity import made_with
from sentei.models.load import Loaded
from sentei.plan import Plan
from sentei.progress import Progress, shown
from sentei.prove.latency import table_for
from sentei.prove.latency_table import LatencyTable
from sentei.report.build import blocks
from sentei.report.formats import read_report
from sentei.report.task import sizes

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def frontier(
    loaded: Loaded,
    task: TaskFile,
    out: Path,
    *,
    shares: Sequence[float] = SHARES,
    settings: Settings | None = None,
    latency: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Cuts the least predicted loss at every size, and measures it on the search rows.

    Args:
        loaded: the dense model.
        task: data, metric and splits.
        out: run directory: frontier.json, plans/, and a journal with which an interrupted run goes on.
        shares: of the dense size to remove, between 0 and 1.
        settings: what size means, what may go, and how the calibration rows are used.
        latency: predict the seconds of every point, from a table that is measured on this machine first.
        overwrite: replace the run in `out`.
        progress: told about everything.

    Returns:
        The contents of frontier.json.

    Raises:
        InputError: a task, metric or share that cannot be used.
    """
    if wrong := [share for share in shares if not 0 < share < 1]:
        raise InputError(f"shares: {wrong[0]:g} must be between 0 and 1; 0.3 removes 30 %")
    progress, settings = shown(progress), settings or Settings()
    given: dict[str, Any] = {"settings": settings, "overwrite": overwrite, "in_place": False}
    setup = set_up(loaded, task, out, tolerance=0.01, progress=progress, **given)
    table = table_for(loaded.model, out, progress=progress) if latency else None
    path = out / "frontier.json"
    known, trained = _known(path) if path.exists() else ({}, None)
    report: dict[str, Any] = {
        "schema_version": 1,
        **made_with(loaded),
        "kind": "frontier",
        "model": loaded.name,
        "task": about(setup),
        "made": procedure(setup),
        "points": [_dense(setup, table)],
    }
    if setup.settings.heal:
        report["dense_trained"] = trained or figures_of(setup, trained_dense(setup, progress))
    cutter, missing = Cutter(setup, progress), []
    with progress.stage("frontier", total=len(shares), unit="points") as bar:
        for number, share in enumerate(sorted(shares), start=1):
            try:
                genome = setup.menus.space.at(share)
            except InfeasibleError:
                missing.append(f"{share:.0%}")
                continue
            plan = setup.plan(setup.menus.entries(genome))
            plan.save(out / "plans" / f"{number:02d}.json")
            report["points"].append(known.get(plan.digest()) or _point(setup, cutter, plan, number, table))
            write_json(path, report)  # an interrupted run goes on from here
            bar.advance()
    if missing:
        progress.say(f"  frontier: no legal model has {', '.join(missing)} removed")
    return report


def _known(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Points of an interrupted run, by plan; and the dense model that was trained alike."""
    report = read_report(path, ("frontier",))[1]
    return {point["plan"]: point for point in report["points"] if "plan" in point}, report.get("dense_trained")


def _dense(setup: Setup, latency: LatencyTable | None) -> dict[str, Any]:
    shape = setup.profile.shape
    return {
        "number": 0,
        "removed": 0.0,
        "value": setup.goal.value(setup.dense),
        "change": 0.0,
        "interval": [0.0, 0.0],
        "sizes": sizes(shape),
        **({} if latency is None else {"latency": latency.predict(shape)}),
    }


def _point(setup: Setup, cutter: Cutter, plan: Plan, number: int, latency: LatencyTable | None) -> dict[str, Any]:
    return {
        "number": number,
        "plan": plan.digest(),
        "file": f"plans/{number:02d}.json",
        "removed": plan.predicted["removed"],
        **figures_of(setup, cutter.model(plan)),
        "sizes": sizes(plan.shape()),
        "blocks": blocks(plan, setup.profile),
        **({} if latency is None else {"latency": latency.predict(plan.shape())}),
    }
