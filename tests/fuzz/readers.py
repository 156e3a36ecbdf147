"""A valid file of each format, and what reads it and then does what can be done without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from recover.recovering import damaged, loaded, pool, small_model
from report import example, task_example
from sentei.data.pools import read_pool
from sentei.data.splits import NAMES, Splits, digest
from sentei.data.task_file import TaskFile
from sentei.data.task_rows import TaskRow
from sentei.data.tasks import read_task
from sentei.files import hash_json
from sentei.measure import measure
from sentei.measure.profile import Profile
from sentei.plan import Plan
from sentei.recipe import Recipe
from sentei.record import read_record
from sentei.recover.select.about import read_manifest
from sentei.recover.select.select import reselect, select
from sentei.recover.select.selection import Selection
from sentei.report import fit, frontier, html
from sentei.report.build import build
from sentei.report.formats import read_report
from sentei.report.table import report_table
from sentei.ship.facts import read_facts

RECIPE = {
    "model": "tiny",
    "task": {"preset": "general"},
    "data": "demo",
    "budget": {"sparsity": 0.2, "target_engine": "gguf"},
    "prune": {"method": "auto", "storage": "factors"},
    "measure": {"tokens": 32768, "window": 512, "gradient_tokens": 8192},
    "prove": {"texts": ["demo"], "tasks": ["demo"], "windows": 16, "limit": 60, "speed": True},
    "recover": {"pool": "demo", "budget": 0.5, "tune": "lora+sparse", "budget_params": "1%", "learning_rate": 0.0005},
    "ship": {"to": ["gguf"], "dtype": "F16"},
    "seed": 0,
}
TASK = {
    "name": "support",
    "data": "rows.jsonl",
    "metric": "exact_match",
    "input": "{text}\nIntent:",
    "target": " {intent}",
    "aliases": "answers[*].text",
    "splits": {"calibrate": 5, "search": 5, "confirm": 5, "test": 5},
    "seed": 3,
}
FACTS = {
    "schema_version": 1, "sentei": "1", "route": "gguf", "model": "tiny", "digest": "a" * 64, "loaded": "float32",
    "bytes": 1000, "lossless": True, "padding_bytes": 0, "options": {}, "dtype": "F32", "engines": ["llama.cpp"],
    "unreachable": {}, "serve": {"llama.cpp": "llama-server -m {path}"}, "parity": {}, "not_run": {"llama.cpp": "why"},
}  # fmt: skip
ROWS = [TaskRow(str(n), f"c{n}", (), -1, "t", (), {"id": str(n)}, f"rows:{n}") for n in range(8)]


@dataclass
class Reader:
    """A format.

    Attributes:
        value: a valid one.
        path: where the mutated one is written.
        read: what is done with it then.
        share: of the mutations, in parts.
    """

    value: Any
    path: Path
    read: Callable[[Path], object]
    share: int = 2


def readers(directory: Path) -> dict[str, Reader]:
    """All formats, each in a directory of its own; what stands beside a file is valid."""
    dense = small_model()
    profile = measure(dense, torch.randint(0, 128, (4, 16)), gradient_tokens=16)
    profile.save(directory / "profile")
    select(loaded(dense), loaded(damaged(dense)), pool(), directory / "sel", budget=10, filters=[], clusters=2)
    reports = {
        "run": build(
            recipe=example.recipe(),
            profile=example.profile(),
            plan=example.plan(),
            evidence=example.evidence_recovered(),
            seconds={"measure": 2.0},
            recovery=example.recovery(),
        ),
        "fit": task_example.fit(),
        "missed": task_example.missed(),
        "frontier": task_example.frontier(points=3) | {"given": {"model": "m", "task": "t.yaml", "out": "o"}},
    }
    for row in [
        *reports["fit"]["history"][4:],
        *reports["run"]["blocks"][2:],
    ]:  # small, so that all keys get their turn
        (reports["fit"]["history"] if "by" in row else reports["run"]["blocks"]).remove(row)
    reports["fit"]["fit"]["cuts"] = 1.0
    splits = {"data": digest(ROWS), **{name: [str(2 * n), str(2 * n + 1)] for n, name in enumerate(NAMES)}}
    multiple = [{"context": "a", "choices": [" b", " c"], "label": 1}] * 3
    shown = {"run": _run, "fit": _fit, "missed": _fit, "frontier": _frontier}
    chats = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 4
    found = {
        "recipe": Reader(RECIPE, directory / "recipe.yaml", _recipe, 8),
        "plan": Reader(example.plan().model_dump(mode="json"), directory / "plan.json", _plan, 8),
        "task": Reader(TASK, directory / "task.yaml", _task, 8),
        "profile": Reader(_json(directory / "profile/profile.json"), directory / "profile/profile.json", _profile, 4),
        "selection": Reader(_json(directory / "sel/selection.json"), directory / "sel/selection.json", _selection, 4),
        "manifest": Reader(_lines(directory / "sel/manifest.jsonl")[:3], directory / "manifest.jsonl", _manifest),
        "rejections": Reader([None] * 40, directory / "sel2/rejections.json", _selection, 1),
        "pool": Reader(pool(6), directory / "pool.jsonl", partial(read_pool, strict=True), 4),
        "chats": Reader(chats, directory / "chats.jsonl", read_pool, 4),
        "multiple choice": Reader(multiple, directory / "rows.jsonl", read_task),
        "splits": Reader(splits, directory / "splits.json", lambda path: Splits.load(path, ROWS)),
        "stage": Reader(
            {"key": "a" * 64, "seconds": 1.5}, directory / "stage/stage.json", lambda p: read_record(p.parent)
        ),
        "facts": Reader(FACTS, directory / "model.gguf.json", lambda p: read_facts(p.with_suffix(""))),
        **{f"{kind} report": Reader(reports[kind], directory / f"{kind}.json", shown[kind], 4) for kind in reports},
    }
    select(loaded(dense), loaded(damaged(dense)), pool(), directory / "sel2", budget=10, filters=[], clusters=2)
    (directory / "model.gguf").write_bytes(b"")
    for reader in found.values():
        reader.path.parent.mkdir(exist_ok=True)
    return found


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _recipe(path: Path) -> None:
    recipe = Recipe.load(path)
    recipe.save(path.with_name("resolved.yaml"))
    hash_json(recipe.model_dump(mode="json"))
    assert Recipe.load(path.with_name("resolved.yaml")) == recipe


def _plan(path: Path) -> None:
    plan = Plan.load(path)
    plan.save(path.with_name("again.json"))
    assert Plan.load(path.with_name("again.json")).digest() == plan.digest()
    plan.budget.describe()
    plan.budget.target(plan.dense)
    plan.shape().bytes(plan.budget.batch, plan.budget.context)
    plan.shape().flops(plan.budget.context)


def _task(path: Path) -> None:
    task = TaskFile.load(path)
    assert task.templates is None or len(task.templates) == 2


def _stage(path: Path) -> None:
    read_record(path.parent)


def _profile(path: Path) -> None:
    profile = Profile.load(path.parent)
    assert profile.digest() and profile.angles


def _selection(path: Path) -> None:
    Selection.load(path.parent).scored()
    reselect(path.parent, path.parent.with_name("reselected"), budget=5, overwrite=True)


def _manifest(path: Path) -> None:
    path.rename(path.with_name("sel") / "manifest.jsonl")
    read_manifest(path.with_name("sel"))


def _run(path: Path) -> None:
    report = read_report(path, ("run",))[1]
    report_table(report)
    html.summary(report)
    html.render(report).encode()


def _fit(path: Path) -> None:
    fit.render(read_report(path, ("fit",))[1]).encode()


def _frontier(path: Path) -> None:
    frontier.render(read_report(path, ("frontier",))[1]).encode()
