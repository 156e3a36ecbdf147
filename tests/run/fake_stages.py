"""Stages that only write files, to test the engine with. `FAKE_SLEEP` slows them down so that they can be killed."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

from sentei.errors import InputError
from sentei.files import write_json
from sentei.fingerprint import fingerprint
from sentei.recipe import Recipe
from sentei.registry import Registry
from sentei.stages.base import Context, Stage

CALLS: list[str] = []


def slow() -> None:
    time.sleep(float(os.environ.get("FAKE_SLEEP", "0")))


def first(context: Context) -> dict[str, Any]:
    CALLS.append("first")
    for number in range(5):
        slow()
        (context.out / f"{number}.txt").write_text(str(random.random()))
    return {"files": 5}


def second(context: Context) -> dict[str, Any]:
    CALLS.append("second")
    begun = context.work / "begun"
    begun.write_text("again" if begun.exists() else "once")
    if context.recipe.prune.method == "broken":
        raise InputError("this method is broken")
    slow()
    texts = [path.read_text() for path in sorted(context.before["first"].glob("*.txt"))]
    (context.out / "model").mkdir()
    (context.out / "model" / "weights.bin").write_text("".join(texts) * 60_000)
    (context.out / "model" / "config.json").write_text(json.dumps({"method": context.recipe.prune.method}))
    return {}


def third(context: Context) -> dict[str, Any]:
    CALLS.append("third")
    slow()
    write_json(context.out / "report.json", {"schema_version": 1, "draw": random.random()})
    return {}


def check(recipe: Recipe) -> None:
    if not Path(recipe.data).exists():
        raise InputError(f"{recipe.data} does not exist")


FIRST = Stage(first, reads=lambda r: [fingerprint(r.data), r.seed], check=check)
SECOND = Stage(second, reads=lambda r: r.prune.model_dump(), after=("first",), publishes=("model",))
THIRD = Stage(third, reads=lambda r: None, after=("first", "second"), publishes=("report.json",))


def registry() -> Registry[Stage]:
    names = ("first", "second", "third")
    return Registry("stage", {name: f"run.fake_stages:{name.upper()}" for name in names})
