"""Peak memory and time of measure, plan and cut against the size of the model, with and without `--memory`.

    python benchmarks/scale.py                            # 0.1B and 0.5B; resumable
    python benchmarks/scale.py --shapes 1.7B 7B           # 7B only with --memory: 13.5 GB of weights, 40 GB of disk
    python benchmarks/scale.py --shapes 7B --log 7b.log   # keeps what the verbs said

Weights are random (`random_model.py`). Every verb is a process of its own, whose peak is what the system says of it.
Writes the table of docs/scale.md. Run it alone: figures of a busy machine are too large.

Floors. Memory: all weights, or with `--memory` what is outside of the blocks and the largest block. Time: reading the
files once as the disk (or the page cache) gives them, and the products of the forward passes and Gram matrices at the rate
of one large product in bf16.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import Rows
from random_model import WORDS, write_model
from result_rows import rows, table

from sentei.machine import processor

SHAPES: dict[str, dict[str, Any]] = {  # of SmolLM2-135M, Qwen2.5-0.5B, SmolLM2-1.7B, Llama-2-7B
    "0.1B": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    | {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    | {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32}
    | {"num_key_value_heads": 32, "vocab_size": 49152, "tie_word_embeddings": True},
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False},
}
MEMORY = {"0.1B": "1GB", "0.5B": "1.5GB", "1.7B": "2.5GB", "7B": "4GB"}
ALWAYS_STREAMED = ("7B",)
VERBS = ("measure", "plan", "cut")
TOKENS, WINDOW = 2048, 512
WORK = Path(__file__).parents[1] / "runs" / "scale"
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- scale:begin -->\n", "<!-- scale:end -->\n"


def measured(arguments: list[str], log: Path | None) -> dict[str, Any]:
    """A verb in a process of its own, started by one that has no other child: seconds, and the most that it held."""
    code = (
        "import resource, subprocess, sys, time\n"
        "start = time.perf_counter()\n"
        "code = subprocess.call([sys.executable, '-m', 'sentei', *sys.argv[1:]], stdout=sys.stderr)\n"
        "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if log is not None:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"$ sentei {' '.join(arguments)}\n{done.stderr}{done.stdout}\n")
    if done.returncode:
        raise SystemExit(f"sentei {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    seconds, peak = done.stdout.split()[-2:]
    return {"seconds": round(float(seconds), 2), "peak_rss_bytes": int(peak)}


def floors(directory: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """What cannot be undercut; see above."""
    start = time.perf_counter()
    for file in directory.glob("*.safetensors"):
        with open(file, "rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass
    read = time.perf_counter() - start
    h, f, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    groups, heads, vocab = sizes["num_key_value_heads"], sizes["num_attention_heads"], sizes["vocab_size"]
    block = 2 * h * h + 2 * h * h * groups // heads + 3 * h * f
    outside = vocab * h * (1 if sizes["tie_word_embeddings"] else 2)
    passes = 2 * TOKENS * block * layers
    grams = 2 * TOKENS * layers * (2 * h * h + h * h + f * f) // 2  # one triangle of each
    return {
        "weights_bytes": 2 * (block * layers + outside),
        "block_bytes": 2 * (block + outside),
        "read_seconds": round(read, 2),
        # a backward pass costs two forward passes; the window of the gradient pass is read by measure alone
        "measure_flops": passes + grams + 3 * passes * WINDOW // TOKENS,
        "cut_flops": 2 * passes + grams,
        "flops_per_second": rate(),
    }


def rate(size: int = 2048) -> float:
    """FLOPs per second of a product in bf16, the best of five."""
    a = torch.randn(size, size).bfloat16()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return round(2 * size**3 / best)


def run(shape: str, log: Path | None, keep: bool) -> None:
    """All rows of one shape that are not there."""
    found, place, sizes = Rows("scale"), WORK / shape, SHAPES[shape]
    budgets = [MEMORY[shape]] if shape in ALWAYS_STREAMED else [None, MEMORY[shape]]
    if all(found.has(shape=shape, memory=memory, verb=verb) for memory in budgets for verb in VERBS):
        return
    shutil.rmtree(place, ignore_errors=True)
    write_model(place / "model", **sizes)
    text = place / "text.txt"
    text.write_text(" ".join(f"w{3 + i * i % (WORDS - 3)}" for i in range(2 * TOKENS)))
    found.run(lambda: floors(place / "model", sizes), shape=shape, verb="floor")
    for memory in budgets:
        limit = [] if memory is None else ["--memory", memory]
        data = ["--data", str(text), "--tokens", str(TOKENS), "--window", str(WINDOW)]
        out = {verb: place / f"{verb}-{memory}" for verb in VERBS}
        commands = {
            "measure": ["measure", str(place / "model"), *data, "--gradient-tokens", str(WINDOW), *limit],
            "plan": ["plan", str(out["measure"]), "--sparsity", "0.2", "--method", "structural"],
            "cut": ["cut", str(place / "model"), "--plan", str(out["plan"]), *data, *limit],
        }
        for verb in VERBS:
            shutil.rmtree(out[verb], ignore_errors=True)
            command = [*commands[verb], "--out", str(out[verb]), *(["--overwrite"] if verb == "plan" else [])]
            row = {"processor": processor(), "threads": torch.get_num_threads(), "tokens": TOKENS}
            row["load"] = round(os.getloadavg()[0], 1)  # of what else runs
            if found.has(shape=shape, memory=memory, verb=verb):
                measured(command, log)  # what comes after it needs its output
            found.run(lambda: measured(command, log) | row, shape=shape, memory=memory, verb=verb)  # noqa: B023
        shutil.rmtree(out["cut"])
    if not keep:
        shutil.rmtree(place)


def page(text: str) -> str:
    """docs/scale.md with its table anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{figures()}{END}{rest.partition(END)[2]}"


def figures() -> str:
    """What stands between the marks."""
    found = {(r["key"]["shape"], r["key"].get("memory"), r["key"]["verb"]): r for r in rows("scale")}
    body, used, marked = [], set(), False
    for (shape, memory, verb), row in found.items():
        if verb == "floor":
            continue
        floor = found[shape, None, "floor"]
        least = floor["weights_bytes" if memory is None else "block_bytes"]
        time_floor = "–"
        if verb != "plan":
            arithmetic = floor[f"{verb}_flops"] / floor["flops_per_second"]
            time_floor = f"{floor['read_seconds']:.1f} + {arithmetic:.1f} s"
        peak = f"{row['peak_rss_bytes'] / 1e9:.2f} GB"
        body.append([shape, memory or "–", verb, peak, "–" if verb == "plan" else f"{least / 1e9:.2f} GB"])
        busy = row["load"] > row["threads"] + 0.5
        body[-1] += [f"{row['seconds']:.1f} s{' †' if busy else ''}", time_floor]
        marked = marked or busy
        used.add(f"{row['processor']}, {row['threads']} threads")
    if not body:
        return ""
    head = ["shape", "`--memory`", "verb", "peak", "its floor", "time", "its floor: reading + products"]
    return (
        f"`python benchmarks/scale.py --shapes {' '.join(dict.fromkeys(row[0] for row in body))}`: random weights in bf16, "
        f"{TOKENS:,} calibration tokens, {WINDOW} of them with gradients, `structural` at 20 %; {'; '.join(sorted(used))}. "
        "The peak is that of the process, 0.4 GB of which are torch and transformers; times include their import.\n\n"
        + table(head, body)
        + ("† while other work ran on the machine: an upper bound.\n" if marked else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.1B", "0.5B"])
    parser.add_argument("--log", type=Path, help="what the verbs say is appended here")
    parser.add_argument("--keep", action="store_true", help="keep the models in runs/scale/")
    given = parser.parse_args()
    for shape in given.shapes:
        run(shape, given.log, given.keep)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
