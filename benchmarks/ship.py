"""SmolLM2-135M in the engines that serve it: size, quality and speed, dense against pruned, in every precision.

    python benchmarks/ship.py quality      # perplexity computed by llama.cpp itself, of each file
    python benchmarks/ship.py speed        # prefill and decode, interleaved; run it alone on the machine
    python benchmarks/ship.py parity       # every route in its engine, 2,000 tokens

Models: dense; `auto` at 30 and 50 % of the block params with the legal sizes of GGUF; 32,768 tokens of WikiText-2 (valid) for
calibration. Quality is the perplexity of 8 windows of 512 tokens of the test text, from llama.cpp's own log-probabilities.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from common import Rows, model, windows

from sentei.measure import measure
from sentei.models.load import load
from sentei.models.save import save
from sentei.plan import Budget
from sentei.prune.cut import cut
from sentei.prune.planning import plan
from sentei.ship.bench import bench
from sentei.ship.engines import ENGINES
from sentei.ship.export import export
from sentei.ship.parity import parity

CACHE = Path(__file__).parents[1] / "runs" / "ship"
CALIBRATION = 32_768
SPARSITIES = (0.3, 0.5)
DTYPES = ("F16", "Q8_0", "Q5_0", "Q4_0")
ROUTES = {"gguf": "gguf", "nemotron-nas": "mlx", "hf": "transformers", "onnx": "onnx", "openvino": "openvino"}


def pruned(sparsity: float, engine: str) -> Path:
    """A cut model with an engine's sizes, made once; the dense one for 0."""
    path = CACHE / f"{engine}-{sparsity:.0%}"
    if not path.exists():
        loaded = model()
        if sparsity:
            data = windows(loaded, "wikitext2_tok.valid", window=512, count=CALIBRATION // 512)
            budget = Budget(sparsity=sparsity, target_engine=engine)
            decided = plan(measure(loaded, data, tokens=CALIBRATION), budget, "auto")
            save(cut(loaded, decided, data, tokens=CALIBRATION), path, tokenizer=loaded.tokenizer, plan=decided)
        else:
            save(loaded.model, path, tokenizer=loaded.tokenizer)
    return path


def exported(sparsity: float, route: str, dtype: str) -> Path:
    engine = ROUTES[route]
    suffix = ".gguf" if route == "gguf" else ""
    path = CACHE / f"{route}-{sparsity:.0%}-{dtype}{suffix}"
    if not path.exists():
        export(load(pruned(sparsity, engine), dtype="float32"), route, path, dtype=dtype, check=False)
    return path


def quality() -> None:
    rows = Rows("ship")
    text = windows(model(), "wikitext2_tok.test", window=512, count=8).tolist()
    for sparsity in (0.0, *SPARSITIES):
        for dtype in DTYPES:

            def work(sparsity: float = sparsity, dtype: str = dtype) -> dict[str, Any]:
                file = exported(sparsity, "gguf", dtype)
                losses = []
                with contextlib.closing(ENGINES["llama.cpp"].open(file)) as session:
                    for ids in text:
                        found = session.log_probs(ids)
                        losses.append(-float(np.mean(found[np.arange(len(ids) - 1), ids[1:]])))
                return {"bytes": file.stat().st_size, "perplexity": float(np.exp(np.mean(losses)))}

            rows.run(work, table="quality", sparsity=sparsity, dtype=dtype)


def speed() -> None:
    rows = Rows("ship")
    for dtype in ("F16", "Q8_0"):

        def work(dtype: str = dtype) -> dict[str, Any]:
            found = bench([exported(s, "gguf", dtype) for s in (0.0, *SPARSITIES)], prompt=512, new=64, rounds=7)
            for run in found["runs"]:
                run["export"] = Path(run["export"]).name  # no path of this machine
            return found

        rows.run(work, table="speed", dtype=dtype)


def proofs() -> None:
    rows = Rows("ship")
    for route in ROUTES:

        def work(route: str = route) -> dict[str, Any]:
            source = load(pruned(0.3, ROUTES[route]), dtype="float32")
            return parity(source, exported(0.3, route, "F32")).facts()

        rows.run(work, table="parity", route=route)


def main() -> None:
    tables = {"quality": quality, "speed": speed, "parity": proofs}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=tables)
    tables[parser.parse_args().table]()


if __name__ == "__main__":
    main()
