"""How fast exports are where they are served: in their engines, one process each, in turns."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from sentei.errors import InputError, SenteiError
from sentei.progress import Progress, shown
from sentei.ship.engines import ENGINES, Timing, engine_for
from sentei.ship.facts import read_facts

ROUNDS = 5  # that count
_WORDS = 256  # ids that every vocabulary has; which ones they are does not change the time


def bench(
    exports: Sequence[str | Path],
    *,
    engine: str | None = None,
    prompt: int = 512,
    new: int = 64,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Times exports in every installed engine that reads them, A/B/A/B after one round that is not counted.

    Args:
        exports: what `sentei export` wrote; the first that an engine reads is what its ratios compare with.
        engine: only this one.
        prompt: tokens of the prompt; the same random ones for all.
        new: tokens generated after it, greedily, whatever they are; at least 2.
        rounds: counted rounds.
        progress: told about every run.

    Returns:
        `protocol` (prompt, new, batch: always 1, rounds, threads) and `runs`, one per engine and export: `engine`,
        `version`, `export`, `route`, `dtype`, `bytes` (of the export), `first_token_s` (median), `prefill_tokens_per_s`
        and `decode_tokens_per_s` (medians; `…_spread`: the quartiles), `prefill_ratio` and `decode_ratio` (speed over
        the first export's in the same round: `median`, `low`, `high`, the last two the quartiles), and
        `peak_rss_bytes`: the most that a process held with nothing but the engine and the export.

    Raises:
        InputError: no export, no engine that reads it, or numbers that make no sense.
    """
    for name, value, least in (("prompt", prompt, 1), ("new", new, 2), ("rounds", rounds, 1)):
        if value < least:
            raise InputError(f"{name} is {value}, expected at least {least}")
    paths = [Path(export) for export in exports]
    facts = {path: read_facts(path) for path in paths}
    readers: dict[str, list[Path]] = {}
    for path in paths:
        engine_for(facts[path], engine)  # says what to install where nothing reads it
        for name in facts[path]["engines"]:
            if name in ENGINES and ENGINES[name].installed() and engine in (None, name):
                readers.setdefault(name, []).append(path)
    ids = random.Random(0).choices(range(_WORDS), k=prompt)
    total = (rounds + 1) * sum(len(group) for group in readers.values())
    runs = []
    with shown(progress).stage("bench", total=total, unit="runs") as bar:
        for name, group in readers.items():
            with _workers(name, group) as workers:
                times: dict[Path, list[Timing]] = {path: [] for path in group}
                for _ in range(rounds + 1):
                    for path, worker in workers.items():
                        times[path].append(_ask(worker, ids, new))
                        bar.advance()
                peaks = {path: _ask(worker, None, 0) for path, worker in workers.items()}
            rates = {path: _rates(found[1:], prompt, new) for path, found in times.items()}
            for path in group:
                known = {key: facts[path][key] for key in ("route", "dtype", "bytes")}
                about = {"engine": name, "version": ENGINES[name].version(), "export": str(path), **known}
                figures = _figures(rates[path], rates[group[0]], times[path][1:])
                runs.append({**about, **figures, "peak_rss_bytes": peaks[path]})
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    protocol = {"prompt": prompt, "new": new, "batch": 1, "rounds": rounds, "threads": threads}
    return {"schema_version": 1, "protocol": protocol, "runs": runs}


def _rates(times: list[Timing], prompt: int, new: int) -> dict[str, Any]:
    """Tokens per second [rounds]. The first new token belongs to the prefill: the prompt's logits give it."""
    return {
        "prefill": np.array([prompt / time.first for time in times]),
        "decode": np.array([(new - 1) / (time.total - time.first) for time in times]),
    }


def _figures(rates: dict[str, Any], first: dict[str, Any], times: list[Timing]) -> dict[str, Any]:
    figures: dict[str, Any] = {"first_token_s": float(np.median([time.first for time in times]))}
    for part, rate in rates.items():
        low, median, high = np.quantile(rate, [0.25, 0.5, 0.75]).tolist()
        figures |= {f"{part}_tokens_per_s": median, f"{part}_spread": [low, high]}
        low, median, high = np.quantile(rate / first[part], [0.25, 0.5, 0.75]).tolist()
        figures[f"{part}_ratio"] = {"median": median, "low": low, "high": high}
    return figures


@contextlib.contextmanager
def _workers(engine: str, exports: list[Path]) -> Iterator[dict[Path, Connection]]:
    """A process per export, with the export open in the engine; they end with the block."""
    context = multiprocessing.get_context("spawn")  # a fork would hold this process's memory too
    started = []
    try:
        workers = {}
        for path in exports:
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, engine, path), daemon=True)
            process.start()
            there.close()
            started.append((process, here))
            workers[path] = here
        yield workers
    finally:
        for process, pipe in started:
            pipe.close()  # a worker that waits reads the end, and ends
            process.join(10)
            process.kill()


def _work(pipe: Connection, engine: str, export: Path) -> None:
    """Answers (ids, new) with a `Timing`, (None, 0) with the peak memory, and what goes wrong with the exception."""
    session = None
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            ids, new = pipe.recv()
            try:
                session = session or ENGINES[engine].open(export)
                answer: Any = _peak() if ids is None else session.generate(ids, new)
            except SenteiError as error:
                answer = error
            except Exception as error:  # a fault of the engine's, which only this process can tell
                answer = SenteiError(f"{engine} failed on {export}: {type(error).__name__}: {error}")
            pipe.send(answer)
    if session is not None:
        session.close()


def _ask(worker: Connection, ids: list[int] | None, new: int) -> Any:
    try:
        worker.send((ids, new))
        answer = worker.recv()
    except (EOFError, OSError) as error:
        raise SenteiError("the engine's process ended without an answer; is there enough memory?") from error
    if isinstance(answer, SenteiError):
        raise answer
    return answer


def _peak() -> int:
    """The most memory that this process held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # the count of getrusage begins before this process was what it is
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:")) * 1024
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
