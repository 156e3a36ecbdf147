"""sentei: structured pruning of language models. Measure once, decide many times, cut, and prove what was lost.

The Python API is imported on first use, so that `import sentei` is quick.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentei.data.task_file import TaskFile as TaskFile
    from sentei.fit.fit import fit as fit
    from sentei.fit.frontier import frontier as frontier
    from sentei.measure.collect import measure as measure
    from sentei.measure.profile import Profile as Profile
    from sentei.models.load import Loaded as Loaded
    from sentei.models.load import load as load
    from sentei.models.save import save as save
    from sentei.plan import Budget as Budget
    from sentei.plan import Plan as Plan
    from sentei.prove.evaluate import evaluate as evaluate
    from sentei.prune.cut import cut as cut
    from sentei.prune.planning import plan as plan
    from sentei.recipe import Recipe as Recipe
    from sentei.recover.select.select import reselect as reselect
    from sentei.recover.select.select import select as select
    from sentei.recover.select.selection import Selection as Selection
    from sentei.recover.tune.tune import tune as tune
    from sentei.run import resume as resume
    from sentei.run import run as run
    from sentei.ship.export import export as export
    from sentei.ship.parity import parity as parity

__version__ = "0.1.0"

_API = {
    "Budget": "sentei.plan",
    "Loaded": "sentei.models.load",
    "Plan": "sentei.plan",
    "Profile": "sentei.measure.profile",
    "Recipe": "sentei.recipe",
    "Selection": "sentei.recover.select.selection",
    "TaskFile": "sentei.data.task_file",
    "cut": "sentei.prune.cut",
    "evaluate": "sentei.prove.evaluate",
    "export": "sentei.ship.export",
    "fit": "sentei.fit.fit",
    "frontier": "sentei.fit.frontier",
    "load": "sentei.models.load",
    "measure": "sentei.measure.collect",
    "parity": "sentei.ship.parity",
    "plan": "sentei.prune.planning",
    "reselect": "sentei.recover.select.select",
    "resume": "sentei.run",
    "run": "sentei.run",
    "save": "sentei.models.save",
    "select": "sentei.recover.select.select",
    "tune": "sentei.recover.tune.tune",
}

__all__ = ["__version__", *sorted(_API)]


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module 'sentei' has no attribute {name!r}")
    value = getattr(importlib.import_module(_API[name]), name)
    setattr(sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})


class _Package(types.ModuleType):
    """Keeps `sentei.plan` the function, though `from sentei.plan import Plan` works too; `measure`, `fit`, `run` alike.

    The import system sets a submodule on its package when the submodule has run, and what is set there is never asked
    of `__getattr__` again. Nothing within either module comes after that but the package's own `__setattr__`, which
    only its class can have. Importing the submodules here, before the functions are set, would do without; it
    would also import torch.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _API and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
