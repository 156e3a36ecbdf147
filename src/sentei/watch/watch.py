"""`watch`: the requests of a log against the pool of a run, once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentei.errors import InputError
from sentei.files import write_json, write_text
from sentei.outputs import atomic_dir
from sentei.places import check_output
from sentei.progress import Progress, shown
from sentei.recover.select.embed import embed
from sentei.watch.capabilities import assign, beyond, moved, uncovered
from sentei.watch.distinct import apart, first_of_each
from sentei.watch.drift import Vectors, classify, growth, mmd
from sentei.watch.labels import groups_of, harm, read_labels
from sentei.watch.logs import Log, Request, read_log
from sentei.watch.page import render
from sentei.watch.reference import Known, read_known
from sentei.watch.result import Compared, result_of
from sentei.watch.verdict import is_drift, judge

LEAST = 100  # requests that differ, below which nothing is judged
MOST = 2000  # of the window, and rows of the reference, that are compared
CHECKED, ALIKE = 8, 0.99  # rows of the pool that are embedded again, and how near they must come to what was stored


def watch(
    run: str | Path,
    log: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    window: int | None = None,
    strict: bool = False,
    seed: int = 0,
    device: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compares the requests of a log with the pool that a run selected from, and says what to do.

    Args:
        run: a finished run with recovery, or a selection.
        log: see `read_log`.
        out: the directory to write: watch.json and watch.html.
        labels: what users said of the answers, see `read_labels`.
        window: judge the last so many requests; default: all.
        strict: refuse a line that cannot be used; else it is skipped and counted.
        seed: of what is drawn and permuted.
        device: for the embedder, as for `sentei.load`.
        overwrite: replace what is at `out`.
        progress: told about each step.

    Returns:
        watch.json; docs/watch.md describes it.

    Raises:
        InputError: see `read_known`, `read_log` and `read_labels`; fewer requests than are needed; the embedder gives
            other vectors than when the pool was read.
    """
    out, progress = check_output(Path(out), inputs=(run, log, labels), overwrite=overwrite), shown(progress)
    known, read = read_known(run), read_log(log, strict=strict)
    requests, texts, notes = _window(read, known, window)
    feedback = read_labels(labels, [request.id for request in requests], strict=strict) if labels else None
    notes += feedback.notes() if feedback else []
    generator = np.random.default_rng(seed)
    x, clusters = _reference(known, generator)
    drawn = np.array(first_of_each(texts))
    drawn = drawn if len(drawn) <= MOST else np.sort(generator.permutation(drawn)[:MOST])
    _enough(len(drawn), len(requests), read.source)
    y = _embedded([texts[at] for at in drawn.tolist()], known, progress, device)
    kept = apart(y)
    used, y = drawn[kept].tolist(), y[kept]
    _enough(len(used), len(requests), read.source)
    if len(used) < len(requests):
        notes.append(
            f"{len(used):,} of {len(requests):,} requests are compared: those that differ in more than numbers, case "
            f"or a few words, at most {MOST:,}, drawn with the seed {seed}"
        )
    for note in notes:
        progress.say(note)
    classified, whole = classify(x, y, seed=seed), mmd(x, y, seed=seed)
    grown, count = growth(classified), len(known.names)
    then, now = assign(x, known.reference, clusters), assign(y, known.reference)
    moves, outside = moved(x, y, then, now, count, seed=seed), beyond(then, now, count)[1]
    new = classified.window >= grown.least
    strange = uncovered(new, classified.reference >= grown.least, then, now, outside)
    covered = np.bincount(now.capability[new & ~strange], minlength=count).tolist()
    said = feedback.of(requests[at].id for at in used) if feedback else None
    more = [move.cluster for move in moves if move.cluster is not None and move.grew]
    groups = groups_of(is_drift(grown), new, more, now.capability, known.names)
    labelled = [] if said is None else harm(said, groups)
    verdict = judge(grown, classified, whole, moves, covered, int(strange.sum()), known.names, known.damage, labelled)
    compared = Compared(
        [requests[at] for at in used], [texts[at] for at in used], len(x), classified, whole, grown, now, outside, said
    )
    result = result_of(str(run), read, requests, known, compared, moves, verdict, seed, notes)
    with atomic_dir(out, overwrite=overwrite) as scratch:
        write_json(scratch / "watch.json", result)
        write_text(scratch / "watch.html", render(result))
    return result


def _window(read: Log, known: Known, window: int | None) -> tuple[list[Request], list[str], list[str]]:
    """The requests that are judged, their texts as the pool's are made, and what to know of both."""
    if window is not None and len(read.requests) < window:
        raise InputError(
            f"{read.source} has {len(read.requests):,} requests, --window {window:,} needs {window:,}; wait for more, "
            "or give a smaller window"
        )
    requests, notes = read.requests[-(window or len(read.requests)) :], read.notes()
    _enough(len(requests), len(requests), read.source)
    system = known.has_system
    if not system and (count := sum(bool(request.system) for request in requests)):
        notes.append(f"system prompts, which the pool has none of: {count:,}, left out")
    texts = ["\n".join(part for part in (r.system, r.user) if part) if system else r.user for r in requests]
    return requests, texts, notes


def _enough(count: int, requests: int, source: str) -> None:
    if count < LEAST:
        differ = f", of which {count:,} differ" if count < requests else ""
        raise InputError(
            f"{source} has {requests:,} requests to judge{differ}; at least {LEAST:,} that differ are needed to tell "
            "drift from chance; wait for more"
        )


def _reference(known: Known, generator: np.random.Generator) -> tuple[Vectors, NDArray[np.int64]]:
    """The vectors of the rows of the pool that requests are compared with, and their clusters."""
    reference = known.reference
    kept = np.array(first_of_each([known.rows[row].prompt for row in reference.rows.tolist()]))
    kept = kept[apart(reference.vectors[kept])]
    if len(kept) < LEAST:
        raise InputError(
            f"the pool of the run has {len(kept):,} rows that differ; at least {LEAST:,} are needed to tell drift from "
            "chance; select from a larger pool"
        )
    kept = kept if len(kept) <= MOST else np.sort(generator.permutation(kept)[:MOST])
    return reference.vectors[kept], reference.labels[kept]


def _embedded(texts: list[str], known: Known, progress: Progress, device: str | None) -> Vectors:
    """Vectors of requests, after a look whether the embedder is still the one of the pool."""
    reference = known.reference
    again = [known.rows[row].prompt for row in reference.rows[:CHECKED].tolist()]
    vectors = embed([*again, *texts], model=reference.embedder, device=device, progress=progress)
    new, old = vectors[: len(again)], reference.vectors[: len(again)]
    near = float((new * old).sum(axis=1).min()) if new.shape == old.shape else math.nan
    if not near >= ALIKE:
        raise InputError(
            f"the embedder {reference.embedder} gives other vectors than when the pool was read (cosine {near:.3f}, "
            f"expected {ALIKE} or more), so that all would look like drift; install its version of then"
            " or select again"
        )
    return vectors[len(again) :]
