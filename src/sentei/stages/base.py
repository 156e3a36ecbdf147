"""What a stage of a run is, what it is given, and the names of all stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentei.progress import Progress
from sentei.recipe import Recipe
from sentei.registry import Registry

if TYPE_CHECKING:
    from sentei.models.load import Loaded


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        work: writes its files into `context.out`; what it returns goes into `stage.json`.
        reads: what it reads of the recipe, JSON values; sources of data and models as their `fingerprint`.
        check: raises an InputError for what can be seen to be wrong before any work begins.
        suits: the same, for what can be seen with the dense model at hand: its context, sizes and tokenizer.
        after: the stages whose files it reads, as far as the recipe wants them.
        wanted: whether a recipe has this stage.
        tokens: what it costs, in tokens of forward passes of the dense model; see `sentei.estimate`.
        publishes: files and directories of it that appear at the top of the run directory as soon as it is done; of
            several stages that publish the same, the last one counts.
        optional: whether the stages after it can do without it: where it fails, they run, and then the run fails.
    """

    work: Callable[[Context], dict[str, Any]]
    reads: Callable[[Recipe], Any]
    check: Callable[[Recipe], None] = lambda recipe: None
    suits: Callable[[Recipe, Loaded], None] | None = None
    after: tuple[str, ...] = ()
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    tokens: Callable[[Recipe], float] = lambda recipe: 0.0
    publishes: tuple[str, ...] = ()
    optional: bool = False


@dataclass
class Context:
    """What a stage gets: the recipe, the dense model, the directories of earlier stages, and where to write.

    What is in `out` becomes the stage's directory. `work` is for what a long stage can go on with: it belongs to the
    stage's key, survives a kill, and is removed when the stage is done. `failed` holds the errors of optional stages,
    whose directories are not there.
    """

    recipe: Recipe
    out: Path
    work: Path
    progress: Progress
    dense: Callable[[], Loaded]
    before: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


# In the order in which they run.
STAGES: Registry[Stage] = Registry(
    "stage",
    {
        "measure": "sentei.stages.spine:MEASURE",
        "plan": "sentei.stages.spine:PLAN",
        "cut": "sentei.stages.spine:CUT",
        "accel": "sentei.stages.accel:ACCEL",
        "select": "sentei.stages.recover:SELECT",
        "tune": "sentei.stages.recover:TUNE",
        "compare": "sentei.stages.recover:COMPARE",
        "prove": "sentei.stages.spine:PROVE",
        "ship": "sentei.stages.ship:SHIP",
        "report": "sentei.stages.spine:REPORT",
    },
)
