"""Runs a recipe: a chain of stages, each keyed by the hash of what it reads, so that a killed run can go on.

A stage works in a scratch directory that is renamed to `stages/NN-name/` when it is done. Its key is the hash of what
it reads of the recipe, the contents of the files named there, and the keys of the stages before it; a stage whose key
has not changed is kept. Every stage starts from the recipe's seed, so a resumed run gives what an unbroken one gives.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentei
from sentei.errors import InputError, for_shell
from sentei.files import hash_json, write_json
from sentei.machine import describe
from sentei.outputs import locked, publish, remove, replaced_dir
from sentei.places import check_output, probe, refuse_place
from sentei.progress import Progress, TerminalProgress, duration, shown
from sentei.recipe import Recipe
from sentei.record import MachineRecord, read_record
from sentei.run_machine import seed_all, settle
from sentei.scaling import known_scaling
from sentei.schema import read
from sentei.stages.base import STAGES, Context

if TYPE_CHECKING:
    from sentei.models.load import Loaded


def run(
    recipe: Recipe | str | Path, out: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Runs a recipe into a new directory.

    Args:
        recipe: a recipe or the path of one.
        out: the run directory: `recipe.yaml`, `events.jsonl`, `stages/`, `model/`, `report.html`, `report.json`.
        overwrite: use an existing run directory; stages whose inputs have not changed are kept.
        progress: told what is going on.

    Returns:
        The contents of `report.json`.

    Raises:
        InputError: a bad recipe, model or data file, or a directory that is not empty.
        InfeasibleError: a budget that cannot be met.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(Path(recipe))
    out = Path(out)
    resumable = _holds_run(out)
    refuse_place(out, recipe.sources())
    if resumable:
        if not overwrite:
            hint = f"`sentei resume {for_shell(out)}` goes on with the run in it, --overwrite runs another recipe there"
            raise InputError(f"{out} exists and is not empty; {hint}")
        probe(out / "recipe.yaml")
        recipe = known_scaling(recipe, Recipe.load(out / "recipe.yaml"))
    elif out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty; choose another --out: it holds no run")
    else:
        check_output(out)
    return _Run(recipe, out, shown(progress)).go()


def resume(out: str | Path, *, device: str | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Goes on with a run that was stopped, on `device`; a finished one is left as it is. Returns, raises as `run`."""
    out = Path(out)
    if not _holds_run(out):
        raise InputError(
            f"{out} holds no run (recipe.yaml is missing); `sentei run recipe.yaml --out {for_shell(out)}` starts one"
        )
    recipe = Recipe.load(out / "recipe.yaml", [] if device is None else [f"device={device}"])
    return _Run(recipe, out, shown(progress)).go()


def _holds_run(out: Path) -> bool:
    """Whether a directory is that of a run, begun or done; a recipe alone may be anywhere."""
    return (out / "recipe.yaml").is_file() and ((out / ".lock").is_file() or (out / "stages").is_dir())


class _Run:
    """One recipe in one directory."""

    def __init__(self, recipe: Recipe, out: Path, progress: Progress) -> None:
        self.asked, self.recipe, self.out, self.progress = recipe, recipe, out, progress
        self.stages = {name: STAGES[name] for name in STAGES if STAGES[name].wanted(recipe)}
        self.dirs = {name: out / "stages" / f"{n:02d}-{name}" for n, name in enumerate(self.stages, 1)}
        self.failed: dict[str, Exception] = {}
        self.reads: dict[str, dict[str, Any]] = {}  # what the stages read, by recipe: files are hashed once
        self.kept: Loaded | None = None  # the dense model, from when the recipe was looked at to the first stage

    def go(self) -> dict[str, Any]:
        """Runs the stages that are not done, and publishes what each made when it is done."""
        self.recipe = settle(self.asked, *self._began(), self.progress.say)
        keys = self._keys(self.recipe)
        todo = [name for name, key in keys.items() if not self._done(name, key)]
        for name in todo:
            self.stages[name].check(self.recipe)
        if any(self.stages[name].suits for name in todo):
            self._look(todo)
            keys = self._keys(self.recipe)
        fresh = not self.out.exists()
        with locked(self.out):
            try:
                self.asked.save(self.out / "recipe.yaml")
                if isinstance(self.progress, TerminalProgress):
                    self.progress.events = self.out / "events.jsonl"
                self._sweep(keys)
                self._publish([name for name, key in keys.items() if self._done(name, key)])
                for name in self.stages:
                    self._attempt(name)
                self._publish([name for name in self.stages if name not in self.failed])
                for error in self.failed.values():
                    raise error
            except Exception:  # whatever went wrong, an empty run directory is not left behind
                if fresh and not any(path.exists() for path in self.dirs.values()):
                    shutil.rmtree(self.out)  # nothing was done that a resume could use
                raise
            shutil.rmtree(self.out / "work", ignore_errors=True)  # nothing is left to go on with
        report: dict[str, Any] = read(self.out / "report.json", dict[str, Any])
        return report

    def _look(self, todo: list[str]) -> None:
        """What only the dense model can tell: what the recipe becomes with it, and how long all will take."""
        from sentei.estimate import RANK, RANK_GRADED, estimate, inversions, pace_of
        from sentei.models.load import context_length
        from sentei.scaling import digest_of, within_context, within_minutes

        def tokens_of(recipe: Recipe) -> dict[str, float]:
            counts = {name: stage.tokens(recipe) for name, stage in self.stages.items()}
            if "measure" in counts:  # curves cost the same however many tokens they are of
                counts["measure"] += (RANK_GRADED if recipe.measure.gradient_tokens else RANK) * inverted
            return counts

        dense, say, asked = self._dense(), self.progress.say, digest_of(self.asked)
        pace = pace_of(dense)
        inverted = inversions(dense) * pace if "measure" in self.stages else 0.0
        self.asked = within_context(self.asked, context_length(dense.model), say)
        self.asked = within_minutes(self.asked, tokens_of, pace, say, asked)
        self.recipe = self.asked.model_copy(update={"dtype": self.recipe.dtype})
        for name in todo:
            if suits := self.stages[name].suits:
                suits(self.recipe, dense)
        tokens = {name: count for name, count in tokens_of(self.recipe).items() if count and name in todo}
        if tokens and isinstance(self.progress, TerminalProgress):
            say(f"  {estimate(dense, tokens, pace)}")
        self.kept = dense

    def _attempt(self, name: str) -> None:
        """One stage. Where an optional one fails, the error is kept for the end."""
        try:
            self._stage(name, self._keys(self.recipe)[name])
        except Exception as error:
            if not self.stages[name].optional:
                raise
            self.failed[name] = error
            self.progress.say(f"  {name} failed: {error}")

    def _began(self) -> tuple[MachineRecord | None, Callable[[Recipe], bool]]:
        """The machine of the first stage, and whether a recipe keeps that stage."""
        name, directory = next(iter(self.dirs.items()))
        machine = read_record(directory).get("machine") if (directory / "stage.json").exists() else None
        return machine, lambda recipe: self._done(name, self._keys(recipe)[name])

    def _after(self, name: str) -> list[str]:
        """The stages before one whose files are there for it."""
        return [other for other in self.stages[name].after if other in self.stages and other not in self.failed]

    def _keys(self, recipe: Recipe) -> dict[str, str]:
        said = recipe.dump()
        if said not in self.reads:
            self.reads[said] = {name: stage.reads(recipe) for name, stage in self.stages.items()}
        keys: dict[str, str] = {}
        for name, reads in self.reads[said].items():
            keys[name] = hash_json(
                [name, sentei.__version__, reads, {other: keys[other] for other in self._after(name)}]
            )
        return keys

    def _done(self, name: str, key: str) -> bool:
        record = self.dirs[name] / "stage.json"
        return record.exists() and read_record(self.dirs[name])["key"] == key

    def _work(self, name: str, key: str) -> Path:
        return self.out / "work" / f"{name}-{key[:12]}"

    def _sweep(self, keys: dict[str, str]) -> None:
        """Removes what a killed run or another recipe left behind, but not the work that can be gone on with."""
        going_on = {self._work(name, key) for name, key in keys.items() if not self._done(name, key)}
        for folder, kept in (("stages", set(self.dirs.values())), ("work", going_on)):
            for path in (self.out / folder).glob("*"):
                if path not in kept:
                    remove(path)
        for item in {item for stage in STAGES.values() for item in stage.publishes}:
            for path in self.out.glob(f".{item}.*"):
                remove(path)

    def _stage(self, name: str, key: str) -> None:
        number = f"[{list(self.stages).index(name) + 1}/{len(self.stages)}] {name}"
        if self._done(name, key):
            self.progress.event("kept", stage=name, key=key)
            self.progress.say(f"{number}: done before")
            return
        self.progress.event("begin", stage=name, key=key)
        self.progress.say(f"{number} …")
        started = time.monotonic()
        work = self._work(name, key)
        with replaced_dir(self.dirs[name]) as scratch:
            work.mkdir(parents=True, exist_ok=True)
            before = {other: self.dirs[other] for other in self._after(name)}
            failed = {other: str(error) for other, error in self.failed.items()}
            context = Context(self.recipe, scratch, work, self.progress, self._dense, before, failed)
            seed_all(self.recipe.seed)
            summary = self.stages[name].work(context)
            seconds = round(time.monotonic() - started, 3)
            record = {"schema_version": 1, "name": name, "key": key, "status": "done", "seconds": seconds}
            record["machine"] = describe(self.recipe.dtype, self.recipe.device)
            write_json(scratch / "stage.json", {**record, "summary": summary})
        self.kept = None
        shutil.rmtree(work)
        for item in self.stages[name].publishes:
            publish(self.dirs[name] / item, self.out / item)
        self.progress.event("done", stage=name, key=key, seconds=seconds)
        self.progress.say(f"{number}: {duration(seconds)}")

    def _publish(self, done: Iterable[str]) -> None:
        """Shows at the top what these stages made, and nothing else: what another recipe left there goes."""
        shown = {item: self.dirs[name] / item for name in done for item in self.stages[name].publishes}
        for item, source in shown.items():
            publish(source, self.out / item)
        for item in {item for stage in STAGES.values() for item in stage.publishes} - set(shown):
            remove(self.out / item)

    def _dense(self) -> Loaded:
        """The dense model, anew for each stage: none finds what another one left in memory."""
        from sentei.models.load import load

        if self.kept is not None:  # just loaded, to look at the recipe
            loaded, self.kept = self.kept, None
            return loaded
        recipe = self.recipe
        self.progress.say(f"  loading {Path(recipe.model).name}")
        trust = recipe.trust_remote_code
        return load(
            recipe.model, dtype=recipe.dtype, device=recipe.device, trust_remote_code=trust, memory=recipe.limit
        )
