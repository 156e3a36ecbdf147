"""Forward and backward of one adapted linear: peft's wrapper against the effective weight, and its two backward routes.

    OMP_NUM_THREADS=1 python benchmarks/effective_linear.py

Times are CPU time of one thread, medians of interleaved repetitions; 2,048 tokens, 576 -> 1,536, bf16, fp32 masters.
"""

from __future__ import annotations

import statistics
import time
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from sentei.recover.tune import effective
from sentei.recover.tune.effective import effective_linear

TOKENS, INPUTS, OUT, RANK, REPEAT = 2048, 576, 1536, 8, 30


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(INPUTS, OUT, bias=False, dtype=torch.bfloat16).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(1, TOKENS, INPUTS).bfloat16().requires_grad_()
    grad = torch.randn(1, TOKENS, OUT).bfloat16()
    plain = One()
    stock = get_peft_model(One(), LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["linear"]))
    stock_values = [p for p in stock.parameters() if p.requires_grad]

    def ours(rank: int, k: int, thin: bool):
        A, B = torch.randn(rank, INPUTS, requires_grad=True), torch.randn(OUT, rank, requires_grad=True)
        values, indices = torch.randn(k, requires_grad=True), torch.randperm(OUT * INPUTS)[:k].sort().values.int()
        trained = [x, *(t for t in (A, B, values) if t.numel())]

        def run() -> None:
            with mock.patch.object(effective, "thin_is_cheaper", lambda *_: thin):
                y = effective_linear(x, plain.linear.weight, None, A, B, 2.0, values, indices)
                torch.autograd.grad(y, trained, grad)

        return run

    percent = OUT * INPUTS // 100
    arms = {
        "plain, frozen": lambda: torch.autograd.grad(plain(x), [x], grad),
        f"peft LoRA r={RANK}": lambda: torch.autograd.grad(stock(x), [x, *stock_values], grad),
        f"effective r={RANK}, thin products": ours(RANK, 0, True),
        f"effective r={RANK}, through dYᵀX": ours(RANK, 0, False),
        f"effective r={RANK} and 1 % sparse": ours(RANK, percent, False),
        "effective, 1 % sparse alone": ours(0, percent, False),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for step in range(REPEAT + 3):
        for name, run in arms.items():
            start = time.process_time()
            run()
            if step >= 3:
                times[name].append(time.process_time() - start)
    base = statistics.median(times["plain, frozen"])
    print("| forward + backward | ms | of the plain linear |\n|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {statistics.median(seconds) * 1e3:.1f} | {statistics.median(seconds) / base:.2f} |")


if __name__ == "__main__":
    main()
