"""How small each task allows SmolLM2-135M to be: three searches, two tolerances; and projections at equal size.

    python benchmarks/fit.py searches [--tasks science intent …] [--searches evolve path uniform genetic]
    python benchmarks/fit.py projections
    python benchmarks/fit.py transfer
    python benchmarks/fit.py cost

Every task's model is first tuned on its calibration rows where the plain one is at chance (`TUNE`). Candidates are judged
on 150 search rows, results confirmed on 150 and tested on 200 others. Searches of one task share the profile and, between
tolerances, the journal of outcomes, so that the second tolerance is cheap; evaluations count what a search asked for.
Ours (`evolve`, `path`) has MINUTES for candidates in place and real cuts; the published searches run to their end, the
genetic algorithm to GENETIC evaluations of all rows (the paper's: 1,000 to 3,000), and then cut once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any

from common import DATA, MODEL, Rows, model

from sentei.data.task_file import TaskFile
from sentei.errors import QualityError
from sentei.families import family_of
from sentei.fit.fit import fit
from sentei.fit.settings import Settings
from sentei.fit.setup import Setup, set_up
from sentei.models.load import Loaded, load
from sentei.plan import stored
from sentei.progress import Progress
from sentei.prune.projections import PROJECTIONS
from sentei.recover.tune.tune import tune

CACHE = Path(__file__).parents[1] / "runs" / "fit"
SPLITS = {"calibrate": 400, "search": 150, "confirm": 150, "test": 200}
TASKS: dict[str, dict[str, Any]] = {
    "science": {"data": "arc_easy.train.jsonl"},
    "openbook": {"data": "openbookqa.train.jsonl", "metric": "acc_norm"},
    "intent": {"data": "bitext_support.train.jsonl", "preset": "intent"},
    "multihop": {
        "data": "hotpotqa.train.jsonl.gz",
        "preset": "hotpotqa",
        "splits": {"calibrate": 100, "search": 70, "confirm": 60, "test": 70},
    },
}
TUNE = {"intent": 20_000}  # tokens, where the plain model is at chance; on RTE it stays there, with 40,000 too
GENETIC = 40
MINUTES = 10.0


def task(name: str) -> TaskFile:
    given = {"splits": SPLITS} | TASKS[name]
    return TaskFile(name=name, **(given | {"data": str(DATA / "tasks" / given["data"])}))


def dense(name: str) -> Loaded:
    """The model that the task is fitted from."""
    if name not in TUNE:
        return model()
    path = CACHE / f"{name}-tuned"
    if not path.exists():
        tuned = tune(model(), task(name), adapter="lora", loss="sft", tokens=TUNE[name], patience=None)
        tuned.save(path)
    return load(path)


def searches(names: list[str], which: list[str], tolerances: list[float]) -> None:
    rows = Rows("fit")
    for name in names:
        for search in which:
            for tolerance in tolerances:

                def work(name: str = name, search: str = search, tolerance: float = tolerance) -> dict[str, Any]:
                    out = CACHE / name
                    limit: dict[str, Any] = {"minutes": MINUTES} if search in ("evolve", "path") else {}
                    limit |= {"evaluations": GENETIC} if search == "genetic" else {}
                    with contextlib.suppress(QualityError):  # nothing smaller holds: report.json says so
                        fit(dense(name), task(name), out, tolerance=tolerance, search=search, **limit)
                    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
                    return report["fit"] | {"seconds": report["seconds"], "chance": report["task"]["chance"]}

                rows.run(work, table="searches", task=name, search=search, tolerance=tolerance)


def ready(name: str) -> Setup:
    return set_up(dense(name), task(name), CACHE / name, tolerance=0.05, settings=Settings(), progress=Progress())


def projections(names: list[str]) -> None:
    """Every matrix keeps the same share of its parameters, by each projection, in place: accuracy and task loss."""
    import torch

    from sentei.algebra.lowrank import break_even
    from sentei.families.parts import MATRICES_OF

    rows = Rows("fit")
    for name in names:
        setup: Setup | None = None
        for share in (0.9, 0.75):
            for kind in ("svd", "input-pca", "svd-llm", "closed-form"):

                def work(name: str = name, share: float = share, kind: str = kind) -> dict[str, Any]:
                    nonlocal setup
                    setup = setup or ready(name)
                    net = setup.loaded.model
                    family = family_of(net.config)
                    kept = 0
                    backup = {}
                    for block, stats in zip(family.blocks(net), setup.profile.blocks, strict=True):
                        for part in MATRICES_OF:
                            own = stats.attention if part == "attention" else stats.ffn
                            for matrix, linear in family.linears(block, part).items():
                                out, into = linear.weight.shape
                                rank = max(1, int(share * out * into / (out + into)))
                                if rank > break_even(out, into):
                                    continue
                                gram = own.gram if matrix in ("o_proj", "down_proj") else own.input_gram
                                u, v = PROJECTIONS[kind](linear.weight.detach().float(), gram, rank)
                                backup[linear] = linear.weight.detach().clone()
                                kept += out * into - stored(out, into, rank)
                                with torch.no_grad():
                                    linear.weight.copy_(u @ v)
                    outcome = setup.prepared["search"].score(net)
                    with torch.no_grad():
                        for linear, weight in backup.items():
                            linear.weight.copy_(weight)
                    removed = kept / setup.profile.shape.block_params()
                    return {
                        "removed": removed,
                        "value": float(outcome.score.mean()),
                        "loss": float(outcome.loss.mean()),
                    }

                rows.run(work, table="projections", task=name, share=share, projection=kind)


def transfer() -> None:
    """The model that was fitted to one data set, on others of the same domain and of another."""
    from common import task as task_path

    from sentei.data.tasks import read_task
    from sentei.prove.tasks import score_tasks

    rows = Rows("fit")
    for role, path in (("dense", MODEL), ("science", CACHE / "science" / "model")):

        def work(path: Any = path) -> dict[str, Any]:
            loaded = load(path)
            names = ("arc_easy.test", "arc_challenge.test", "openbookqa.test", "piqa.val", "hellaswag.val")
            found = score_tasks(loaded.model, loaded.tokenizer, [read_task(task_path(n)) for n in names], limit=200)
            return {n: {"acc": r.acc, "acc_norm": r.acc_norm, "interval": list(r.interval)} for n, r in found.items()}

        rows.run(work, table="transfer", model=role)


def cost() -> None:
    """Building all that the knapsack's path uses, and a candidate in place against the dense model on the same rows."""
    import numpy as np

    from sentei.search.evolve import swap
    from sentei.search.library import Library

    def work() -> dict[str, Any]:
        setup = ready("science")
        rows, space = setup.prepared["search"], setup.menus.space
        library = Library(setup.loaded.model, setup.profile, setup.menus)
        started = time.monotonic()
        for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
            library.switch(setup.menus.entries(space.at(share)))
        built = time.monotonic() - started
        library.restore()  # one library at a time on a model
        library = Library(setup.loaded.model, setup.profile, setup.menus, rows)
        rng, ratios = np.random.default_rng(0), []
        for share in (0.1, 0.2, 0.3, 0.4):
            parent = space.at(share)
            library(parent, 0, 1)
            for child in (swap(space, parent, space.cost(parent), np.ones(len(space.genes)), rng) for _ in range(2)):
                library.restore()
                begun = time.monotonic()
                rows.score(setup.loaded.model)
                between = time.monotonic()
                library(child, 0, len(rows))
                ratios.append((time.monotonic() - between) / (between - begun))
        library.restore()
        return {"library_s": built, "ratio": float(np.median(ratios)), "spread": [min(ratios), max(ratios)]}

    Rows("fit").run(work, table="cost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("searches", "projections", "transfer", "cost"))
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--searches", nargs="*", default=["evolve", "uniform", "genetic"])
    parser.add_argument("--tolerances", nargs="*", type=float, default=[0.05, 0.01])
    options = parser.parse_args()
    if options.table == "searches":
        searches(options.tasks, options.searches, options.tolerances)
    elif options.table == "projections":
        projections(options.tasks)
    elif options.table == "cost":
        cost()
    else:
        transfer()


if __name__ == "__main__":
    main()
