"""What `fit` and `frontier` begin with: rows divided once, the dense model's score, its profile on the task, menus."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentei.data.calibration import task_windows
from sentei.data.splits import NAMES, Splits, split
from sentei.data.task_file import TaskFile
from sentei.data.task_rows import chance, read_rows
from sentei.data.windows import Windows
from sentei.errors import InputError
from sentei.files import hash_json
from sentei.fit.begun import begin
from sentei.fit.healing import healed
from sentei.fit.settings import Settings
from sentei.measure.collect import measure
from sentei.measure.profile import Profile
from sentei.metrics.score import Outcome, Prepared, prepare
from sentei.models.identity import check_same
from sentei.models.load import Loaded
from sentei.outputs import work_dir
from sentei.plan import BlockShape, Plan
from sentei.progress import Progress
from sentei.prove.latency import table_for
from sentei.prove.latency_table import Phase
from sentei.prune.cut import cut
from sentei.prune.menu import Entry, Menus, Times
from sentei.prune.planning import menus_for, plan_of
from sentei.search.goal import Goal

GRADIENT_TOKENS = 8192


@dataclass
class Setup:
    """Everything that a search needs.

    Attributes:
        loaded: the dense model.
        task: what it is for.
        rows: how many rows each split has.
        chance: what a model without knowledge scores.
        prepared: rows of search, confirm and test.
        dense: the dense model's outcome on the search rows.
        goal: on the search rows.
        windows: calibration rows.
        profile: of the dense model on them.
        menus: what the parts may become.
        settings: of the search.
        identity: hash of all that outcomes depend on, for journals.
        cut_seconds: expected of a cut with its score.
        score_seconds: of the dense model on the search rows.
    """

    loaded: Loaded
    task: TaskFile
    rows: dict[str, int]
    chance: float
    prepared: dict[str, Prepared]
    dense: Outcome
    goal: Goal
    windows: Windows
    profile: Profile
    menus: Menus
    settings: Settings
    identity: str
    cut_seconds: float
    score_seconds: float

    def plan(self, entries: Sequence[Entry]) -> Plan:
        """The plan of one entry per part."""
        return plan_of(self.profile, self.menus, entries, method="fit", allocation="search")

    def cut(self, plan: Plan, progress: Progress | None = None) -> Any:
        """The model of a plan, fitted on the calibration rows, and healed on them where that is asked for."""
        small = cut(self.loaded, plan, self.windows, tokens=self.windows.ids.numel(), progress=progress)
        if not self.settings.heal:
            return small
        return healed(small, self.loaded, plan.digest(), self.task, self.settings, progress)


def set_up(
    loaded: Loaded,
    task: TaskFile,
    out: Path,
    *,
    tolerance: float,
    settings: Settings,
    in_place: bool = True,
    overwrite: bool = False,
    progress: Progress,
) -> Setup:
    """Reads and divides the rows, scores the dense model, and measures it on the calibration rows.

    What is already in `out` from an earlier run of the same model, task and settings is used again.

    Args:
        loaded: the dense model, with a tokenizer.
        task: what it is for.
        out: run directory: splits.json and profile/ are kept there.
        tolerance: relative loss that is allowed.
        settings: of the search.
        in_place: whether candidates will be evaluated in place, for which the profile keeps its Gram matrices.
        overwrite: replace the run in `out`.
        progress: told about everything.

    Raises:
        InputError: rows or metric that cannot be used, a dense model at chance, another run in `out`.
    """
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.name} has no tokenizer, and the rows of a task are texts; add its tokenizer files")
    rows, stored = read_rows(task), out / "splits.json"
    splits = Splits.load(stored, rows) if stored.exists() else split(task, rows)
    prepared = {
        name: prepare(getattr(splits, name), loaded.tokenizer, task.metric, max_new_tokens=task.max_new_tokens)
        for name in NAMES[1:]
    }
    windows = task_windows(task, loaded.tokenizer, settings.length, splits.calibrate)
    before = time.monotonic()
    dense = prepared["search"].score(loaded.model, progress=progress)
    score_seconds = time.monotonic() - before
    goal = Goal(dense, tolerance, prepared["search"].metric)
    floor = chance(splits.search)
    _refuse_chance(goal, dense, floor, task)
    about = task.model_dump(mode="json", exclude={"data"})
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    identity = hash_json([loaded.digest, dtype, splits.digest, about, settings.key()])
    begin(out, identity, dtype, overwrite)  # nothing is written before here, so that what is refused leaves no trace
    if not stored.exists():
        splits.save(stored)
    profile = _profile(loaded, windows, out, in_place, progress)
    return Setup(
        loaded=loaded,
        task=task,
        rows={name: len(getattr(splits, name)) for name in NAMES},
        chance=floor,
        prepared=prepared,
        dense=dense,
        goal=goal,
        windows=windows,
        profile=profile,
        menus=menus_of(loaded, profile, out, settings, progress),
        settings=settings,
        identity=identity,
        # per token, a cut and a step of training cost about three of the forward passes that scoring is
        cut_seconds=score_seconds * (1 + 3 * (windows.tokens + settings.heal) / max(_tokens(prepared["search"]), 1)),
        score_seconds=score_seconds,
    )


def menus_of(loaded: Loaded, profile: Profile, out: Path, settings: Settings, progress: Progress) -> Menus:
    """What the parts may become, priced as the settings say."""
    times = None if settings.phase is None else _times(loaded, profile, out, settings.phase, progress)
    return menus_for(profile, settings.budget, settings.kinds, times=times)


def _times(loaded: Loaded, profile: Profile, out: Path, phase: Phase, progress: Progress) -> Times:
    """Prices by measured time."""
    table, shape = table_for(loaded.model, out, progress=progress), profile.shape

    def part(block: BlockShape) -> int:
        return round(1e9 * table.part_seconds(shape, block, phase))

    whole = table.predict(shape)[f"{phase}_seconds"]
    blocks = sum(table.part_seconds(shape, block, phase) for block in shape.blocks)
    return Times(part, round(1e9 * (whole - blocks)))


def about(setup: Setup) -> dict[str, Any]:
    """The task, for reports."""
    return {
        "name": setup.task.name,
        "metric": setup.task.metric,
        "higher": setup.goal.metric.higher,
        "data": Path(setup.task.data).name,
        "rows": setup.rows,
        "chance": setup.chance,
        "vocab": setup.profile.shape.vocab,
    }


def _tokens(rows: Prepared) -> int:
    """Tokens that scoring reads, about: four letters each."""
    return sum(len(row.context) + sum(map(len, row.choices or (row.target,))) for row in rows.rows) // 4


def _refuse_chance(goal: Goal, dense: Outcome, floor: float, task: TaskFile) -> None:
    """A model that does not know the task has nothing that could be kept."""
    if goal.metric.kind != "choices":
        return
    value = goal.value(dense)
    error = (value * (1 - value) / len(dense.score)) ** 0.5
    if value <= floor + error:
        raise InputError(
            f"the dense model is at chance on {task.name!r}: {goal.metric.name} {value:.3f} on {len(dense.score)} "
            f"rows, guessing gives {floor:.3f}; there is nothing to keep: tune it on the task first "
            "(sentei tune MODEL --data TASK.yaml --loss sft --out TUNED)"
        )


def _profile(loaded: Loaded, windows: Windows, out: Path, keep_grams: bool, progress: Progress) -> Profile:
    """The profile of the run: one that is there is used where it has what is needed, else measured again."""
    path = out / "profile"
    if not Profile.readable(path, grams=keep_grams):
        settings: dict[str, Any] = {"gradient_tokens": GRADIENT_TOKENS, "keep_grams": keep_grams}
        with work_dir(path, [loaded.digest, str(loaded.model.dtype), settings]) as work:
            made = measure(loaded, windows, tokens=windows.ids.numel(), work=work, progress=progress, **settings)
            made.save(path, overwrite=True)
    profile = Profile.load(path)  # as stored, with rounded weights: a resumed run must see the same menus
    check_same(loaded, profile.model_digest, profile.shape, str(path))
    return profile
