"""Evaluators of candidates in place, here or in processes of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentei.data.splits import Splits
from sentei.data.task_file import TaskFile
from sentei.data.task_rows import read_rows
from sentei.errors import InputError
from sentei.fit.settings import Settings
from sentei.fit.setup import Setup, menus_of
from sentei.measure.profile import Profile
from sentei.metrics.score import prepare
from sentei.models.load import load
from sentei.progress import Progress
from sentei.prune.matrices import FINE, Matrices
from sentei.prune.menu import Menus
from sentei.search.goal import Evaluator
from sentei.search.library import Coding, Library
from sentei.search.workers import Mapper, Processes


def coding_for(menus: Menus, search: str) -> Coding:
    """What genomes mean: levels of the menus, or LLM-Sieve's one gene per matrix."""
    if search == "uniform":
        return Matrices(menus, FINE)
    return Matrices(menus) if search == "genetic" else menus


@contextlib.contextmanager
def evaluator(setup: Setup, coding: Coding, search: str, out: Path, count: int) -> Iterator[Evaluator | Mapper]:
    """What scores candidates in place: this process, whose model is dense again afterwards, or `count` others.

    Raises:
        InputError: others, and a model that only exists in memory.
    """
    if count > 1:
        with Processes(Workshop.of(setup, out, search), count) as workers:
            yield workers
        return
    library = Library(setup.loaded.model, setup.profile, setup.menus, setup.prepared["search"], coding)
    try:
        yield library
    finally:
        library.restore()


@dataclass(frozen=True)
class Workshop:
    """Makes the evaluator of a run in another process, from what the run has stored.

    Attributes:
        source: directory of the dense model.
        dtype: that it is loaded in.
        device: that it is loaded on.
        task: its search rows are read.
        out: run directory with splits.json and profile/.
        settings: of the run.
        search: what genomes mean.
    """

    source: str
    dtype: str
    device: str
    task: TaskFile
    out: Path
    settings: Settings
    search: str

    @classmethod
    def of(cls, setup: Setup, out: Path, search: str) -> Workshop:
        """For a run that is set up.

        Raises:
            InputError: a model that only exists in memory.
        """
        model: Any = setup.loaded.model
        if not (Path(model.name_or_path) / "config.json").is_file():
            raise InputError(
                f"workers load the model again, and {setup.loaded.name} is in no directory; use --workers 1"
            )
        dtype = str(model.dtype).removeprefix("torch.")
        return cls(model.name_or_path, dtype, str(model.device), setup.task, out, setup.settings, search)

    def __call__(self) -> Library:
        """The evaluator."""
        loaded, profile = load(self.source, dtype=self.dtype, device=self.device), Profile.load(self.out / "profile")
        rows = Splits.load(self.out / "splits.json", read_rows(self.task)).search
        menus = menus_of(loaded, profile, self.out, self.settings, Progress())
        scored = prepare(rows, loaded.tokenizer, self.task.metric, max_new_tokens=self.task.max_new_tokens)
        return Library(loaded.model, profile, menus, scored, coding_for(menus, self.search))
