"""A training step of ours against the stock step of transformers + peft, on the same batch, in turns.

    python benchmarks/tune_speed.py

Stock: `model(ids, labels=…)` with peft's LoRA on every linear of the blocks, bf16 weights, AdamW. Ours: the same rank on the
same linears as effective weights, and the fused loss. The floor is three forward passes of the plain model's body.
Batches: 8 × 256 tokens of text, all of them targets; and 2,048 tokens of alpaca rows, with the loss on the responses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from common import DATA, Rows, model, windows
from peft import LoraConfig, get_peft_model
from torch import Tensor

from sentei.data.batches import Batch, pad, shuffled
from sentei.data.chat import encode
from sentei.data.pools import read_pool
from sentei.recover.attention import short_attention
from sentei.recover.tune.adapters import ADAPTERS, Context
from sentei.recover.tune.adapters.base import linears, trainable
from sentei.recover.tune.impact import measure_impact
from sentei.recover.tune.loss import SFT

RANK, ROUNDS = 8, 5


def batches(loaded: Any) -> dict[str, Batch]:
    ids = windows(loaded, "wikitext2_tok.valid", window=256, count=8)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    everywhere[:, 0] = False
    rows = read_pool(DATA / "instruct" / "alpaca_52k.part0.jsonl.gz").rows[:400]
    samples = encode(rows, loaded.tokenizer, length=512)
    order = shuffled([len(sample.ids) for sample in samples], 2048, seed=0)
    return {"text": Batch(tuple(range(8)), ids, everywhere), "alpaca": pad(samples, order[0])}


def stepper(net: Any, loss: Callable[[], Tensor]) -> Callable[[], float]:
    """A whole optimiser step; gives the loss."""
    optimizer = torch.optim.AdamW(list(trainable(net).values()), lr=1e-5)
    net.train()

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return float(value.detach())

    return step


def stock(batch: Batch) -> Callable[[], float]:
    net = model().model
    kind = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=sorted(linears(net)), task_type="CAUSAL_LM")
    wrapped = get_peft_model(net, kind)
    labels = batch.ids.masked_fill(~batch.response, -100)
    return stepper(wrapped, lambda: wrapped(input_ids=batch.ids, labels=labels, use_cache=False).loss)


def ours(batch: Batch, adapter: str) -> Callable[[], float]:
    net = model().model
    budget = RANK * sum(m.in_features + m.out_features for m in linears(net).values())

    def impact() -> Any:
        return measure_impact(net, [batch], SFT, list(linears(net)))

    wrapped = ADAPTERS[adapter].wrap(net, budget, Context(impact))
    step = stepper(wrapped, lambda: SFT(net, batch))

    def short() -> float:
        with short_attention(net):
            return step()

    return short


def plain(batch: Batch) -> Callable[[], float]:
    net = model().model

    def forward() -> float:
        with torch.inference_mode():
            net.base_model(input_ids=batch.ids, use_cache=False)
        return float("nan")

    return forward


def main() -> None:
    rows = Rows("tune_speed")
    for name, batch in batches(model()).items():

        def work() -> dict[str, Any]:
            steps = {
                "forward": plain(batch),  # noqa: B023 - called at once
                "stock": stock(batch),  # noqa: B023
                "lora": ours(batch, "lora"),  # noqa: B023
                "lora+sparse": ours(batch, "lora+sparse"),  # noqa: B023
            }
            seconds: dict[str, list[float]] = {arm: [] for arm in steps}
            losses: dict[str, float] = {arm: step() for arm, step in steps.items()}  # warm up, at equal weights
            for _ in range(ROUNDS):
                for arm, step in steps.items():
                    started = time.perf_counter()
                    step()
                    seconds[arm].append(time.perf_counter() - started)
            return {
                "tokens": batch.ids.numel(),  # noqa: B023
                "targets": len(batch.targets),  # noqa: B023
                "seconds": {arm: median(times) for arm, times in seconds.items()},
                "spread": {arm: [min(times), max(times)] for arm, times in seconds.items()},
                "loss": {arm: value for arm, value in losses.items() if arm != "forward"},
            }

        rows.run(work, batch=name)


if __name__ == "__main__":
    main()
