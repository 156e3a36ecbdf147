"""How cut models are trained on the task's calibration rows, and the dense model alike, to be set beside them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from sentei.data.task_file import TaskFile
from sentei.files import finite
from sentei.fit.settings import Settings
from sentei.models.load import Loaded
from sentei.progress import Progress
from sentei.recover.tune.adapters.files import merge
from sentei.recover.tune.tune import tune
from sentei.search.goal import Goal

if TYPE_CHECKING:
    from sentei.fit.setup import Setup

HEALING: dict[str, Any] = {"adapter": "lora", "loss": "sft", "learning_rate": 5e-4, "patience": None}


def healed(
    model: Any, dense: Loaded, digest: str, task: TaskFile, settings: Settings, progress: Progress | None
) -> Any:
    """The model, trained on the task's calibration rows; it is changed."""
    loaded = Loaded(model, dense.tokenizer, f"{dense.name}, changed", digest)
    return merge(tune(loaded, task, tokens=settings.heal, length=settings.length, progress=progress, **HEALING).adapted)


def trained_dense(setup: Setup, progress: Progress) -> Any:
    """A copy of the dense model, trained as every cut model is."""
    model = copy.deepcopy(setup.loaded.model)
    return healed(model, setup.loaded, setup.loaded.digest, setup.task, setup.settings, progress)


def figures_of(setup: Setup, model: Any) -> dict[str, Any]:
    """The metric of a model on the search rows, and how it differs from the dense model's."""
    outcome = setup.prepared["search"].score(model)
    return {
        "value": finite(setup.goal.value(outcome)),
        "change": finite(setup.goal.change(outcome)),
        "interval": [finite(end) for end in setup.goal.interval(outcome)],
    }


def confirmed_dense(setup: Setup, progress: Progress) -> dict[str, float | None]:
    """What the dense model, trained alike, has on the confirmation and on the test rows."""
    model, found = trained_dense(setup, progress), {}
    for name in ("confirm", "test"):
        rows = setup.prepared[name]
        with progress.stage(f"dense, trained alike: {name}", total=len(rows), unit="rows"):
            outcome = rows.score(model)
        found[name] = finite(Goal(outcome, setup.goal.tolerance, setup.goal.metric).value(outcome))
    return found


def procedure(setup: Setup) -> dict[str, Any]:
    """How cut models are made, for the commands that make them again: `sentei cut`, then `sentei tune`."""
    settings = setup.settings
    healing = {"tokens": settings.heal, **HEALING} if settings.heal else None
    return {"calibration_tokens": setup.windows.ids.numel(), "length": settings.length, "healing": healing}
