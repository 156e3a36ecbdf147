"""Recovery on SmolLM2-135M: which data, with poison in it, which adapter, which loss. Resumable arm by arm.

    python benchmarks/recover.py quality                 # choice of data; --preset auto for the other pruning
    python benchmarks/recover.py poison                  # a tenth of the pool is bad
    python benchmarks/recover.py rates                   # learning rate per adapter, on the validation split
    python benchmarks/recover.py adapters                # at equal trainable parameters
    python benchmarks/recover.py kd                      # text, teacher, both

The model is cut by 25 %, calibrated on `c4_demo`. The pool is the first --rows of alpaca; every arm may select TOKENS tokens
and trains on as many, in the same batches' size, with the same seed. Tested on 24 windows of 1,024 tokens of
`wikitext2_raw.test` and on LIMIT rows of seven zero-shot tasks; learning rates are chosen on held-out alpaca rows only.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, MODEL, TASKS, Rows, model, task, windows

from sentei.data.pools import read_pool
from sentei.data.tasks import read_task
from sentei.measure import measure
from sentei.metrics.perplexity import perplexity
from sentei.models.load import Loaded, load
from sentei.models.save import save
from sentei.plan import Budget
from sentei.prove.tasks import score_tasks
from sentei.prune.cut import cut
from sentei.prune.planning import plan
from sentei.recover.select.select import reselect, select
from sentei.recover.select.selection import Selection
from sentei.recover.tune.adapters.files import merge
from sentei.recover.tune.tune import tune

CACHE = Path(__file__).parents[1] / "runs" / "recover"
SPARSITY, CALIBRATION, TOKENS, LIMIT = 0.25, 65_536, 60_000, 100
NORMALISED = ("arc_challenge.test", "hellaswag.val", "openbookqa.test")  # scored by acc_norm, as is usual
RATES = (5e-4, 1e-3, 2e-3)
ADAPTERS = ("lora", "rslora", "shira", "shira-gradient", "lora+sparse")


def pruned(preset: str) -> Path:
    """The cut model, made once."""
    path = CACHE / preset
    if not path.exists():
        loaded = model()
        calibration = windows(loaded, "c4_demo", window=512, count=CALIBRATION // 512)
        decided = plan(measure(loaded, calibration, tokens=CALIBRATION), Budget(sparsity=SPARSITY), preset)
        small = cut(loaded, decided, calibration, tokens=CALIBRATION)
        save(small, path, tokenizer=loaded.tokenizer, plan=decided)
    return path


def alpaca(count: int) -> list[dict[str, Any]]:
    rows = read_pool(DATA / "instruct" / "alpaca_52k.part0.jsonl.gz").rows[:count]
    return [{**row.raw, "id": f"alpaca-{row.id}"} for row in rows]


def poisoned(count: int) -> list[dict[str, Any]]:
    """A tenth of the rows replaced: half by off-language and off-topic rows, half by copies with another answer."""
    rows, chance = alpaca(count), random.Random(0)
    bad = count // 10
    negatives = [
        {key: row.raw.get(key, "") for key in ("instruction", "input", "output")}
        for name in ("neg_alpaca_zh_3k", "neg_alpaca_gpt4_zh_1k", "neg_identity_91")
        for row in read_pool(DATA / "instruct" / f"{name}.jsonl").rows
    ]
    places = chance.sample(range(count), bad)
    kept = sorted(set(range(count)) - set(places))
    for at, negative in zip(places[: bad // 2], chance.sample(negatives, bad // 2), strict=True):
        rows[at] = {**negative, "id": f"poison-{at}"}
    for at, (source, other) in zip(
        places[bad // 2 :], [chance.sample(kept, 2) for _ in range(bad - bad // 2)], strict=True
    ):
        rows[at] = {**rows[source], "output": rows[other]["output"], "id": f"poison-{at}"}
    return rows


def scored(preset: str, name: str, rows: list[dict[str, Any]]) -> Selection:
    """The pool, scored once; every strategy selects from it."""
    path = CACHE / f"{preset}-{name}-{len(rows)}"
    if path.exists():
        return Selection.load(path)
    return select(model(), load(pruned(preset)), rows, path, budget="10%", strategy="auto", ifd=True)


def tested(loaded: Loaded, net: Any) -> dict[str, Any]:
    """Perplexity and accuracies; `right` holds the outcome of every row, for paired intervals."""
    found = score_tasks(net, loaded.tokenizer, [read_task(task(name)) for name in TASKS], limit=LIMIT)
    right = {name: r.correct_norm if name in NORMALISED and r.correct_norm else r.correct for name, r in found.items()}
    return {
        "perplexity": perplexity(net, windows(loaded, "wikitext2_raw.test", window=1024, count=24)).value,
        "general": float(np.log(perplexity(net, windows(loaded, "c4_demo", window=512, count=32, skip=130)).value)),
        "accuracy": float(np.mean([np.mean(rows) for rows in right.values()])),
        "tasks": {name: float(np.mean(rows)) for name, rows in right.items()},
        "right": {name: "".join(str(int(v)) for v in rows) for name, rows in right.items()},
    }


def arm(preset: str, data: Any, options: dict[str, Any], *, test: bool = True) -> dict[str, Any]:
    """Tunes, and tests the merged model."""
    loaded = load(pruned(preset))
    started = time.perf_counter()
    made = tune(loaded, data, **({"tokens": TOKENS, "patience": None} | options))
    seconds = time.perf_counter() - started
    record = {key: made.record[key] for key in ("stopped", "trainable_params", "learning_rate", "tokens", "steps")}
    row = {**record, "seconds": round(seconds), "heldout": [p["heldout"] for p in made.record["curve"]]}
    return row | (tested(loaded, merge(made.adapted)) if test else {})


def quality(preset: str, count: int) -> None:
    rows = Rows("recover")
    key = {"table": "quality", "preset": preset, "rows": count, "tokens": TOKENS}
    loaded = model()
    rows.run(lambda: tested(loaded, loaded.model), table="quality", arm="dense")
    rows.run(lambda: tested(loaded, load(pruned(preset)).model), arm="none", **key)
    base = scored(preset, "alpaca", alpaca(count))
    common = {"adapter": "lora", "loss": "sft"}
    ours = {"adapter": "lora+sparse", "loss": "both", "learning_rate": best_rate(rows, "lora+sparse")}
    arms: list[tuple[str, str, int, dict[str, Any]]] = [
        ("random", "random", 0, common),
        ("random", "random", 1, common),
        ("random", "random", 2, common),
        ("length", "length", 0, common),
        ("ours: auto, lora+sparse, teacher", "auto", 0, ours),
        ("auto", "auto", 0, common),
        ("efficiency", "efficiency", 0, common),
        ("paser as published", "paser", 0, common),
        ("ifd", "ifd", 0, common),
        ("uniform", "uniform", 0, common),
        ("all", "all", 0, common),
    ]
    for name, strategy, seed, options in arms:

        def work(strategy: str = strategy, seed: int = seed, options: dict[str, Any] = options) -> dict[str, Any]:
            chosen = again(base, strategy, seed)
            return {"selected": len(chosen.chosen)} | arm(preset, chosen, options)

        rows.run(work, arm=name, seed=seed, **key)


def again(base: Selection, strategy: str, seed: int = 0) -> Selection:
    """TOKENS tokens from the stored scores."""
    path = CACHE / f"{base.directory.name}-{strategy}-{seed}-{TOKENS}"
    if path.exists():
        return Selection.load(path)
    return reselect(base, path, budget=f"{TOKENS} tokens", strategy=strategy, seed=seed)


def poison(preset: str, count: int) -> None:
    rows = Rows("recover")
    base = scored(preset, "poisoned", poisoned(count))
    for strategy in ("random", "paser", "auto"):

        def work(strategy: str = strategy) -> dict[str, Any]:
            chosen = again(base, strategy)
            ids = [json.loads(line)["id"] for line in (chosen.directory / "selected.jsonl").open(encoding="utf-8")]
            bad = sum(id.startswith("poison") for id in ids)
            return {"selected": len(ids), "poison": bad} | arm(preset, chosen, {"adapter": "lora", "loss": "sft"})

        rows.run(work, table="poison", preset=preset, rows=count, tokens=TOKENS, arm=strategy)


def rates(preset: str, count: int) -> None:
    """A quarter of the tokens for each rate: only the held-out loss is looked at."""
    rows = Rows("recover")
    for adapter in ADAPTERS:
        for rate in RATES:

            def work(adapter: str = adapter, rate: float = rate) -> dict[str, Any]:
                options = {"adapter": adapter, "learning_rate": rate, "loss": "sft", "tokens": TOKENS // 4}
                return arm(preset, alpaca(count), options, test=False)

            rows.run(work, table="rates", preset=preset, rows=count, tokens=TOKENS // 4, arm=adapter, rate=rate)


def best_rate(rows: Rows, adapter: str) -> float:
    found = [row for row in rows.rows if row["key"].get("table") == "rates" and row["key"]["arm"] == adapter]
    if not found:
        raise SystemExit("run `python benchmarks/recover.py rates` first")
    return float(min(found, key=lambda row: min(row["heldout"]))["key"]["rate"])


def adapters(preset: str, count: int) -> None:
    rows = Rows("recover")
    for adapter in ADAPTERS:

        def work(adapter: str = adapter) -> dict[str, Any]:
            options = {"adapter": adapter, "learning_rate": best_rate(rows, adapter), "loss": "sft"}
            return arm(preset, alpaca(count), options)

        rows.run(work, table="adapters", preset=preset, rows=count, tokens=TOKENS, arm=adapter)


def kd(preset: str, count: int) -> None:
    rows = Rows("recover")
    chosen = again(scored(preset, "alpaca", alpaca(count)), "random")
    for loss in ("sft", "kd", "both"):

        def work(loss: str = loss) -> dict[str, Any]:
            return arm(preset, chosen, {"adapter": "lora", "loss": loss})

        rows.run(work, table="kd", preset=preset, rows=count, tokens=TOKENS, arm=loss)


def main() -> None:
    tables = {"quality": quality, "poison": poison, "rates": rates, "adapters": adapters, "kd": kd}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=tables)
    parser.add_argument("--preset", default="llm-pruner")
    parser.add_argument("--rows", type=int, default=3000, help="of the pool")
    options = parser.parse_args()
    print(MODEL, options)
    tables[options.table](options.preset, options.rows)


if __name__ == "__main__":
    main()
