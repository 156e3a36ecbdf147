"""watch.json: what was compared, what moved, and the requests that show it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentei.files import finite
from sentei.watch.capabilities import Assigned, Moved
from sentei.watch.drift import GROWTH, Classified, Growth, Mmd
from sentei.watch.labels import told
from sentei.watch.logs import Log, Request
from sentei.watch.reference import Known
from sentei.watch.verdict import ACTING, Verdict

SCHEMA = 1
EXAMPLES = 5
LONGEST = 500  # characters of an example
NOWHERE = "beyond all capabilities"


@dataclass(frozen=True)
class Compared:
    """What was compared with the reference, and what came of it.

    Attributes:
        requests: those that differ, m.
        texts: what they ask, as it was embedded [m].
        rows: of the reference.
        classified: with the score of each.
        whole: MMD of all.
        grown: the densest part against the reference.
        now: where they belong.
        outside: whether they are beyond all capabilities [m].
        labels: of the answers, from 0 to 1, NaN where there is none [m]; None: none were given.
    """

    requests: Sequence[Request]
    texts: Sequence[str]
    rows: int
    classified: Classified
    whole: Mmd
    grown: Growth
    now: Assigned
    outside: NDArray[np.bool_]
    labels: NDArray[np.float64] | None


def acts(result: dict[str, Any]) -> bool:
    """Whether more than an alert is recommended."""
    return result["recommendation"] in ACTING


def result_of(
    run: str,
    log: Log,
    window: Sequence[Request],
    known: Known,
    compared: Compared,
    moves: Iterable[Moved],
    verdict: Verdict,
    seed: int,
    notes: list[str],
) -> dict[str, Any]:
    """The value of watch.json; docs/watch.md describes it."""
    new = np.flatnonzero(compared.classified.window >= compared.grown.least) if verdict.drift else ()
    return {
        "schema_version": SCHEMA,
        "run": run,
        "drift": verdict.drift,
        "mix": verdict.mix,
        "changed": verdict.changed,
        "recommendation": verdict.recommendation,
        "arithmetic": verdict.arithmetic,
        "log": {
            "source": log.source,
            "requests": len(log.requests),
            "schemas": log.schemas,
            "skipped": log.skipped.count,
            "others": log.others,
            "duplicates": log.duplicates,
            "backwards": log.backwards,
        },
        "window": {
            "requests": len(window),
            "compared": len(compared.requests),
            "first": window[0].when,
            "last": window[-1].when,
        },
        "reference": {
            "rows": len(known.rows),
            "compared": compared.rows,
            "embedder": known.reference.embedder,
            "sha256": known.hash,
        },
        "tests": _tests(compared),
        "labels": None if compared.labels is None else told(compared.labels),
        "damage": known.measured,
        "capabilities": [_capability(move, known, compared) for move in moves],
        "foreign": _examples(new, known, compared),
        "seed": seed,
        "notes": notes,
    }


def _tests(compared: Compared) -> dict[str, Any]:
    grown, classified, whole = compared.grown, compared.classified, compared.whole
    return {
        "growth": {"p": grown.p, "now": grown.now, "then": grown.then, "times": GROWTH},
        "classifier": {"auc": classified.auc, "interval": list(classified.interval)},
        "mmd": {
            "value": whole.value,
            "p": whole.p,
            "width": whole.width,
            "permutations": whole.permutations,
            "rows": list(whole.rows),
        },
    }


def _capability(move: Moved, known: Known, compared: Compared) -> dict[str, Any]:
    k = move.cluster
    own = compared.outside if k is None else compared.now.capability == k
    return {
        "name": NOWHERE if k is None else known.names[k],
        "cluster": k,
        "typical": known.typical[k] if k is not None and known.typical else "",
        "then": {"requests": move.then, "share": move.share_then},
        "now": {"requests": move.now, "share": move.share_now},
        "p": move.p,
        "inside": None if move.inside is None else {"mmd": move.inside.value, "p": move.inside_p},
        "alarm": move.alarm,
        "damage": None if k is None else finite(float(known.damage[k])),
        "labels": None if compared.labels is None else told(compared.labels[own]),
        "examples": _examples(np.flatnonzero(own) if move.alarm else (), known, compared),
    }


def _examples(members: Iterable[int], known: Known, compared: Compared) -> list[dict[str, Any]]:
    """Those of some requests that the classifier finds most foreign."""
    scores = compared.classified.window
    order = sorted(map(int, members), key=lambda at: (-scores[at], at))[:EXAMPLES]
    return [
        {
            "id": compared.requests[at].id,
            "time": compared.requests[at].when,
            "text": _cut(compared.texts[at]),
            "capability": known.names[int(compared.now.capability[at])],
            "score": float(scores[at]),
        }
        for at in order
    ]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
