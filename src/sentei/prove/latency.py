"""Measures a latency table for a model, or finds the one that was measured before; see `sentei.prove.latency_table`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentei.errors import InputError
from sentei.files import hash_json
from sentei.progress import Progress
from sentei.prove.latency_probes import Stopwatch, measure_table, protocol_of
from sentei.prove.latency_table import LatencyTable


def build(
    model: Any,
    *,
    batch: int = 1,
    prompt: int = 512,
    rounds: int = 5,
    stopwatch: Stopwatch | None = None,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measures the table for everything that can be cut from `model`.

    Args:
        model: a transformers causal language model of a known family; it is not changed.
        batch: sequences at a time.
        prompt: tokens of each.
        rounds: counted rounds, after one that is not; everything takes turns within a round.
        stopwatch: calls a function and says how many seconds it took.
        progress: told about every round.

    Raises:
        InputError: unknown architecture, or a batch, prompt or number of rounds below one.
    """
    for name, value in (("batch", batch), ("prompt", prompt), ("rounds", rounds)):
        if value < 1:
            raise InputError(f"latency: {name} is {value}, expected at least 1")
    return measure_table(model, batch, prompt, rounds, stopwatch, progress)


def table_for(
    model: Any,
    directory: Path,
    *,
    batch: int = 1,
    prompt: int = 512,
    rounds: int = 5,
    progress: Progress | None = None,
) -> LatencyTable:
    """The table in `directory` that was measured for this machine, model shape and load; else it is measured and kept.

    Raises:
        InputError: as `build`, or a file there that is not a table.
    """
    key = hash_json(protocol_of(model, batch, prompt, rounds).model_dump(mode="json"))
    path = Path(directory) / f"latency-{key[:16]}.json"
    if path.is_file():
        return LatencyTable.load(path)
    table = build(model, batch=batch, prompt=prompt, rounds=rounds, progress=progress)
    table.save(path)
    return table
