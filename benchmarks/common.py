"""What the benchmark scripts share: the data, the protocol, and results that survive a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from torch import Tensor

from sentei.data.text import read_texts, token_windows
from sentei.models.load import Loaded, load

MODEL = "smollm2-135m-instruct"
RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("SENTEI_DATA") or Path(__file__).parents[2] / "shared" / "data")
TASKS = (
    "piqa.val",
    "arc_easy.test",
    "arc_challenge.test",
    "hellaswag.val",
    "winogrande.val",
    "boolq.val",
    "openbookqa.test",
)


def lm(name: str) -> str:
    """Path of a text by name, compressed or not."""
    for ending in (".jsonl", ".jsonl.gz"):
        if (DATA / "lm" / f"{name}{ending}").is_file():
            return str(DATA / "lm" / f"{name}{ending}")
    raise SystemExit(f"{DATA / 'lm' / name}.jsonl is missing; set SENTEI_DATA to the data folder")


def task(name: str) -> str:
    """Path of a task by name, compressed or not."""
    found = next(iter((DATA / "eval").glob(f"{name}.jsonl*")), None)
    if found is None:
        raise SystemExit(f"{DATA / 'eval' / name}.jsonl is missing; set SENTEI_DATA to the data folder")
    return str(found)


def windows(loaded: Loaded, name: str, *, window: int, count: int, skip: int = 0) -> Tensor:
    """Token windows `[count, window]` of a text, after the first `skip` windows."""
    found = token_windows(read_texts(lm(name)), loaded.tokenizer, window=window, windows=skip + count)
    return found[skip:]


def model(dtype: str = "auto") -> Loaded:
    """The embedded model."""
    return load(MODEL, dtype=dtype)


class Rows:
    """Results, one JSON line per row, keyed by what was run: a second run only does what is missing."""

    def __init__(self, name: str) -> None:
        self.path = RESULTS / f"{name}.jsonl"
        self.path.parent.mkdir(exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.rows = [json.loads(line) for line in lines]
        self._done = {json.dumps(row["key"], sort_keys=True) for row in self.rows}

    def has(self, **key: Any) -> bool:
        """Whether the row is there."""
        return json.dumps(key, sort_keys=True) in self._done

    def run(self, work: Callable[[], dict[str, Any]], **key: Any) -> None:
        """Runs `work` unless its row is there, and appends the row."""
        name = json.dumps(key, sort_keys=True)
        if self.has(**key):
            return
        row = {"key": key, **work()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._done.add(name)
        self.rows.append(row)
        print(name, {k: v for k, v in row.items() if k != "key"}, flush=True)
