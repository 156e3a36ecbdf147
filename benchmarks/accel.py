"""Cutting and training in turns against one cut, at equal tokens, data and precision. Resumable arm by arm, within an arm too.

    python benchmarks/accel.py                                   # SmolLM2-135M to 75 %, 60,000 tokens an arm
    python benchmarks/accel.py --to 0.5 --tokens 200000
    python benchmarks/accel.py --model stories260k --tokens 60000 --rate 1e-3
    python benchmarks/accel.py --arms rates                      # learning rates, on held-out rows only

Every arm reads the same rows of alpaca in the same order, calibrates on the same windows of `c4_demo` and ends with the
same size. Told: the distance to the dense model on 32 held-out rows and on text behind the calibration (nats per token,
95 % intervals), the perplexity of `wikitext2_raw.test`, with --tasks the accuracy on zero-shot tasks, and what was spent.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from common import DATA, MODEL, TASKS, Rows, lm, task, windows

from sentei.accel.evidence import evidence, judging_windows
from sentei.accel.family import Family
from sentei.accel.feed import Sliced
from sentei.accel.loop import ROWS, accel
from sentei.accel.schedule import rate
from sentei.accel.settings import Settings
from sentei.data.pools import Pool, read_pool
from sentei.data.tasks import read_task
from sentei.data.text import read_texts
from sentei.families import family_of
from sentei.families.surgery import skeleton
from sentei.files import hash_json
from sentei.metrics.perplexity import perplexity
from sentei.models.load import Loaded, context_length, load
from sentei.plan import Budget, Plan
from sentei.progress import TerminalProgress
from sentei.prove.tasks import score_tasks
from sentei.recover.attention import short_attention
from sentei.recover.tune.adapters import ADAPTERS
from sentei.recover.tune.adapters.base import Context
from sentei.recover.tune.data import read_data, teach
from sentei.recover.tune.loss import LOSSES
from sentei.recover.tune.train import Trainer

CACHE = Path(__file__).parents[1] / "runs" / "accel"
ARMS: dict[str, dict[str, Any]] = {
    "one cut": {"stages": 1},
    "5 stages": {"stages": 5},
    "10 stages": {"stages": 10},
    "20 stages": {"stages": 20},
    "10 stages, moments anew": {"stages": 10, "moments": "restart"},
    "10 stages, first moments kept": {"stages": 10, "refitted": "keep"},
    "10 stages, first moments scaled": {"stages": 10, "refitted": "scale"},
    "10 stages, no refit": {"stages": 10, "compensation": "none"},
    "one cut, no refit": {"stages": 1, "compensation": "none"},
    "10 stages, text": {"stages": 10, "loss": "sft"},
    "one cut, text": {"stages": 1, "loss": "sft"},
    "10 stages, all positions": {"stages": 10, "loss": "kl-all"},
    "10 stages, warm again": {"stages": 10, "rewarm": 5},
    "10 stages, constant slices": {"stages": 10, "slices": "constant"},
    "10 stages, by damage": {"stages": 10, "select": "damage"},
    "random weights": {},
    "random weights, text": {"loss": "sft"},
}
RATES = (1e-4, 3e-4, 1e-3)


def pool(rows: int) -> Pool:
    return read_pool([row.raw for row in read_pool(DATA / "instruct" / "alpaca_52k.part0.jsonl.gz").rows[:rows]])


def base_of(asked: argparse.Namespace) -> Settings:
    """What all arms have in common."""
    return Settings(
        tokens=asked.tokens,
        learning_rate=asked.rate,
        seed=asked.seed,
        batch_tokens=asked.batch_tokens,
        calibration=asked.calibration,
    )


def made(dense: Loaded, asked: argparse.Namespace, changes: dict[str, Any]) -> dict[str, Any]:
    """Runs one arm, and tells of its last model."""
    changes = dict(changes)
    prune = {"method": "structural"}
    if "compensation" in changes:
        prune["compensation"] = changes.pop("compensation")
    base = base_of(asked)
    settings = dataclasses.replace(base, **changes)
    texts, rows = read_texts(lm("c4_demo")), pool(asked.rows)
    work = CACHE / hash_json([asked.model, asked.to, asked.rows, prune, dataclasses.asdict(settings)])[:16]
    work.mkdir(parents=True, exist_ok=True)
    budget, progress, started = Budget(sparsity=1 - asked.to), TerminalProgress(), time.monotonic()
    family = accel(dense, texts, rows, budget, settings, work, prune=prune, progress=progress)
    if family.stopped == "diverged":
        return {"stopped": family.note}
    last = family.stages[-1]
    spent: dict[str, float] = {}
    for stage in family.stages:
        for part, seconds in stage["seconds"].items():
            spent[part] = round(spent.get(part, 0.0) + seconds, 1)
    found = {
        "share": last["share"],
        "kv_groups": last["kv_groups"],
        "tokens": last["tokens_so_far"],
        "heldout": [last["curve"][0]["heldout"], last["curve"][-1]["heldout"]],
        "evidence": last["evidence"],
        "by_stage": [[s["share"], s["tokens_so_far"], s["evidence"]["rows"]["jsd"]] for s in family.stages],
        "spent": spent,
        "seconds": round(time.monotonic() - started),
    }
    small = load(family.model(len(family.stages)), dtype=str(dense.model.dtype).removeprefix("torch."))
    found |= tested(dense, small.model, asked)
    for state in work.glob("stage-*/done/state.safetensors"):
        state.unlink()
    return found


def scratch(dense: Loaded, asked: argparse.Namespace, changes: dict[str, Any]) -> dict[str, Any]:
    """The shape of "one cut" with random weights, trained on the same tokens in the same way."""
    base = base_of(asked)
    settings = dataclasses.replace(base, **{"stages": 1, **changes})
    texts, loss = read_texts(lm("c4_demo")), LOSSES[settings.loss]
    first = dataclasses.replace(base, stages=1)
    place = (
        CACHE / hash_json([asked.model, asked.to, asked.rows, {"method": "structural"}, dataclasses.asdict(first)])[:16]
    )
    if not place.is_dir():
        raise SystemExit("run the arm 'one cut' first: its shape is what is trained from random weights")
    plan = Plan.load(Family(place).model(1) / "plan.json")
    model = skeleton(dense.model, plan.shape())
    generator = torch.Generator().manual_seed(asked.seed)
    with torch.no_grad():
        for value in family_of(model.config).blocks(model).parameters():
            drawn = torch.ones(value.shape) if value.ndim == 1 else torch.randn(value.shape, generator=generator) * 0.02
            value.copy_(drawn)
    progress, length = TerminalProgress(), min(settings.length, context_length(dense.model))
    data = read_data(pool(asked.rows), dense.tokenizer, length, settings.seed, progress, None, loss)
    (steps,) = Sliced(data, settings).slices
    teach(data, loss, steps, dense, dense, CACHE / "scratch", progress)
    ADAPTERS["full"].wrap(model, 0, Context(lambda: None))  # type: ignore[arg-type, return-value]
    each, heldout = data.loss(loss), data.heldout_loss(loss, settings.step_tokens)
    trainer = Trainer(
        model,
        lambda batch: each(model, batch),
        [(data.size(rows), lambda rows=rows: data.batch(rows)) for rows in steps],  # type: ignore[misc]
        lambda: heldout(model),
        learning_rate=asked.rate,
        schedule=lambda step, count: rate((step + 0.5) / count),
        keep="last",
        patience=None,
        progress=progress,
    )
    started = time.monotonic()
    with short_attention(model, dense.model):
        history = trainer.run()
    rows = [data.samples[row] for row in data.heldout[:ROWS]]
    judging = judging_windows(texts, dense, settings.calibration)
    shutil.rmtree(CACHE / "scores", ignore_errors=True)
    found = evidence(dense.model, model.eval(), rows, judging, CACHE / "scores", progress)
    return {
        "tokens": sum(size for size, _ in trainer.batches),
        "heldout": [history.curve[0]["heldout"], history.curve[-1]["heldout"]],
        "evidence": found,
        "seconds": round(time.monotonic() - started),
        **tested(dense, model, asked),
    }


def tested(dense: Loaded, model: Any, asked: argparse.Namespace) -> dict[str, Any]:
    window = min(1024, context_length(dense.model))
    text = perplexity(model, windows(dense, "wikitext2_raw.test", window=window, count=24))
    found: dict[str, Any] = {"perplexity": text.value, "interval": list(text.interval)}
    if asked.tasks:
        scores = score_tasks(model, dense.tokenizer, [read_task(task(name)) for name in TASKS], limit=asked.tasks)
        found["accuracy"] = {name: score.acc for name, score in scores.items()}
        found["right"] = {name: "".join(str(int(v)) for v in score.correct) for name, score in scores.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="built-in name, directory, or stories260k of the data folder")
    parser.add_argument("--to", type=float, default=0.75, help="share of the block params that is left")
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--rows", type=int, default=4000, help="of alpaca, in the pool")
    parser.add_argument("--rate", type=float, default=2e-4, help="the highest learning rate, of every arm")
    parser.add_argument("--batch-tokens", type=int, default=None)
    parser.add_argument("--calibration", type=int, default=Settings.calibration, help="tokens of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=int, default=0, help="rows of each zero-shot task")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), help=f"rates, or of: {', '.join(ARMS)}")
    parser.add_argument("--dtype", default="auto")
    asked = parser.parse_args()
    source = DATA / "models" / asked.model if (DATA / "models" / asked.model).is_dir() else asked.model
    dense, rows = load(source, dtype=asked.dtype), Rows("accel")
    key = {name: getattr(asked, name) for name in ("model", "to", "tokens", "rows", "batch_tokens", "seed", "tasks")}
    key["calibration"] = asked.calibration
    key["dtype"] = str(dense.model.dtype).removeprefix("torch.")
    if asked.arms == ["rates"]:
        for value in RATES:
            asked.rate = value
            rows.run(lambda: made(dense, asked, {"stages": 1}), arm="one cut", **key, rate=value)
        return
    rows.run(lambda: tested(dense, dense.model, asked), arm="dense", model=asked.model, dtype=key["dtype"])
    for name in asked.arms:
        run = scratch if name.startswith("random") else None
        changes = ARMS[name]
        rows.run(
            lambda name=name, run=run, changes=changes: (  # type: ignore[misc]
                run(dense, asked, changes) if run else made(dense, asked, changes)
            ),
            arm=name,
            rate=asked.rate,
            **key,
        )


if __name__ == "__main__":
    main()
