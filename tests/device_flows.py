"""What `test_devices.py` runs in processes of their own: `python device_flows.py FLOW DEVICE`."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import fake_device
from recover.recovering import by_topic, loaded, pool, small_model
from sentei.data.task_rows import TaskRow
from sentei.measure import measure
from sentei.measure.profile import Profile
from sentei.metrics.score import prepare
from sentei.models.load import as_loaded, load
from sentei.models.save import save
from sentei.plan import Budget
from sentei.prove.evaluate import evaluate
from sentei.prune.cut import cut
from sentei.prune.planning import menus_for, plan
from sentei.recover.capabilities import compare
from sentei.recover.select.select import select
from sentei.recover.tune.tune import tune
from sentei.search.choose import choose
from sentei.search.library import Library
from sentei.ship.export import export
from tiny import tiny_tokenizer

TEXT = [" ".join(f"w{(7 * i + j * j) % 120 + 3}" for j in range(400)) for i in range(8)]
SMALL = {"tokens": 512, "window": 64}


def dense(device: str) -> Any:
    """Low-rank plans pay from a certain width on."""
    return loaded(small_model(hidden_size=48, intermediate_size=64).to(device), "dense")


def prune_flow(device: str, scratch: Path) -> None:
    """Compensation, factors, biases, refinement; a pruned model pruned again, saved, loaded and exported."""
    model = dense(device)
    measure(model, TEXT, gradient_tokens=256, **SMALL).save(scratch / "profile")
    profile = Profile.load(scratch / "profile")
    for method in ("auto", "flap"):
        small = cut(model, plan(profile, Budget(sparsity=0.3), method), TEXT, **SMALL)
        assert small.device == model.model.device
    refined = plan(profile, Budget(sparsity=0.3), "structural", refine="block")
    small = cut(model, refined, TEXT, tokens=128, window=64)
    again = measure(loaded(small), TEXT, gradient_tokens=256, **SMALL)
    cut(loaded(small), plan(again, Budget(sparsity=0.2), "structural"), TEXT, **SMALL)
    save(small, scratch / "small", tokenizer=model.tokenizer, plan=refined)
    assert load(scratch / "small", device=device).model.device == model.model.device
    export(loaded(small), "hf", scratch / "export", check=False)


def prove_flow(device: str, scratch: Path) -> None:
    """Texts, tasks, speed, candidates in place."""
    model, tokenizer = dense(device), tiny_tokenizer()
    profile = measure(model, TEXT, gradient_tokens=256, keep_grams=True, **SMALL)
    windows = torch.randint(3, 120, (4, 64), generator=torch.Generator().manual_seed(0))
    from sentei.data.calibration import as_windows

    choose(model.model, profile, Budget(sparsity=0.3), as_windows(windows, tokenizer, window=64, tokens=256))
    rows = [TaskRow(str(i), f"w{i} w{i + 9}", (" w5", " w6 w7"), i % 2, "", (), {}, "") for i in range(8)]
    prepared, menus = prepare(rows, tokenizer, "acc"), menus_for(profile, Budget(sparsity=0.3), levels=6)
    library = Library(model.model, profile, menus, prepared)
    for level in (1, 3, 5):
        library([min(level, len(menu.entries) - 1) for menu in menus.parts], 0, 8)
    library.restore()
    evaluate(model, texts=[("text", TEXT)], window=64, windows=4, with_speed=True)


def recover_flow(device: str, scratch: Path) -> None:
    """Damage, every adapter that is ours, a checkpoint and going on from it, and what came back."""
    model = dense(device)
    small = cut(model, plan(measure(model, TEXT, gradient_tokens=256, **SMALL), Budget(sparsity=0.2)), TEXT, **SMALL)
    pruned = as_loaded(small, model.tokenizer, "pruned")
    with patch("sentei.recover.select.select._embedded", by_topic):
        chosen = select(model, pruned, pool(), scratch / "selection", budget="50%", clusters=2, filters=[])
    common: dict[str, Any] = {"tokens": 400, "batch_tokens": 100, "evaluations": 2, "budget_params": "5%"}
    for adapter, options in (("lora+sparse", {}), ("lora+sparse", {"mask": "grow"}), ("shira-gradient", {})):
        work = scratch / f"{adapter}-{len(options)}"
        for _ in range(2):  # the second goes on from the last checkpoint
            fresh = as_loaded(cut_again(small), model.tokenizer, "pruned")
            tuned = tune(fresh, chosen, adapter=adapter, teacher=model, work=work, **options, **common)
        tuned.save(work / "model")
    assert load(work / "model", device=device).model.device == model.model.device
    compare(lambda: model, lambda: load(work / "model", device=device), chosen, scratch / "work", seed=0)


def cut_again(model: Any) -> Any:
    """A copy on the same device."""
    from sentei.families.surgery import on_cpu

    return on_cpu(model).to(model.device)


if __name__ == "__main__":
    flow, where = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if where == fake_device.NAME:
            stack.enter_context(fake_device.known())
        globals()[f"{flow}_flow"](where, Path(folder))
    print("done")
