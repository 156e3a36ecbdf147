"""What `fit` and `frontier` begin with: rows divided once, the dense model's score, its profile on the task, menus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentei.data.calibration import task_windows
from sentei.data.splits import NAMES, Splits, split
from sentei.data.task_file import TaskFile
from sentei.data.task_rows import chance, read_rows
from sentei.data.windows import Windows
from sentei.errors import InputError, unknown
from sentei.files import hash_json, write_json
from sentei.fit.begun import RUN, begun
from sentei.fit.healing import HEAL, healed
from sentei.marks import write_mark
from sentei.measure.collect import measure
from sentei.measure.profile import Profile
from sentei.metrics.score import Outcome, Prepared, prepare
from sentei.models.identity import check_same
from sentei.models.load import Loaded
from sentei.outputs import atomic_dir, check_output, probe, refuse_place, work_dir
from sentei.plan import BlockShape, Budget, Plan
from sentei.progress import Progress
from sentei.prove.latency import table_for
from sentei.prove.latency_table import PHASES, Phase
from sentei.prune.cut import cut
from sentei.prune.menu import Entry, Menus, Times
from sentei.prune.methods import KINDS
from sentei.prune.planning import menus_for, plan_of
from sentei.schema import parse
from sentei.search.goal import Goal

LENGTH = 512  # tokens of a calibration row at most
GRADIENT_TOKENS = 8192
# What lies in a run directory, as patterns: the searches' journals are named after them.
_FILES = (
    *(
        RUN,
        "splits.json",
        "profile/*",
        ".profile.*",
        "latency-*.json",
        "plan.json",
        "plans/*",
        "model/*",
        "report.*",
        "frontier.*",
    ),
    *("evolve*.jsonl", "path*.jsonl", "genetic*.jsonl", "uniform*.jsonl"),
)


@dataclass(frozen=True)
class Settings:
    """What size means, what may go, and how the calibration rows are used.

    Attributes:
        budget: its unit (`sparsity`: params, `flops`, `bytes`) and its engine are those of the search; its amount is
            not used.
        kinds: of removal: "structural", "low-rank".
        length: tokens of a calibration row at most.
        heal: tokens of the calibration rows that every cut model is trained on; 0: none.
        phase: "prefill" or "decode": size is the time that it takes on this machine, which is measured first.
    """

    budget: Budget = field(default_factory=lambda: Budget(sparsity=0.0))
    kinds: tuple[str, ...] = KINDS
    length: int = LENGTH
    heal: int = HEAL
    phase: Phase | None = None

    def key(self) -> list[Any]:
        """All that outcomes depend on, for a hash."""
        return [self.budget.model_dump(), list(self.kinds), self.length, self.heal, self.phase]


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
    _claim(out, identity, dtype, overwrite)  # nothing is written before here, so that what is refused leaves no trace
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


def claim(out: Path, *, inputs: Iterable[str | Path | None] = (), overwrite: bool = False) -> None:
    """Refuses a bad place, and a directory that holds something else than a run of this kind. Nothing is changed.

    Raises:
        InputError: as said, before any work is done; see `check_output`.
    """
    if (out / RUN).exists() and not overwrite:
        refuse_place(out, inputs)
        probe(out / RUN)
    else:
        check_output(out, inputs=inputs, overwrite=overwrite)


def _claim(out: Path, identity: str, dtype: str, overwrite: bool) -> None:
    """One run per directory."""
    if overwrite and out.exists():
        with atomic_dir(out, overwrite=True):
            pass
    if (before := begun(out)) and before["identity"] != identity:
        raise InputError(
            f"{out} holds a run of another model, dtype, task or setting; choose another --out, or --overwrite"
        )
    write_json(out / RUN, {"schema_version": 1, "identity": identity, "dtype": dtype})
    write_mark(out, _FILES)


def search_budget(objective: str, target_engine: str) -> tuple[Budget, Phase | None]:
    """A budget without an amount: what size means, and which sizes are legal; and the phase where size is time.

    Raises:
        InputError: an unknown objective or engine.
    """
    amounts: dict[str, float] = {"params": 0.0, "flops": 1.0, "bytes": 1}
    phase = next((found for found in PHASES if found == objective), None)
    if objective not in amounts and phase is None:
        raise unknown("objective", objective, [*amounts, *PHASES])
    key = objective if objective in ("flops", "bytes") else "sparsity"
    budget: Budget = parse(Budget, {key: amounts.get(objective, 0.0), "target_engine": target_engine}, "budget")
    return budget, phase


def search_kinds(text: str, budget: Budget) -> tuple[str, ...]:
    """Kinds of removal from `a,b`; without one: all that the engine holds.

    Raises:
        InputError: an unknown kind, or one that the engine cannot hold.
    """
    if not text:
        return KINDS if budget.limits.low_rank else KINDS[:1]
    for kind in (kinds := tuple(part.strip() for part in text.split(","))):
        if kind not in KINDS:
            raise unknown("kind of removal", kind, KINDS)
    return kinds


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
