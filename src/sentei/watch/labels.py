"""What users said of answers, by id of the request: told per capability, and whether what moved is answered worse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sentei.data.skipped import Skipped
from sentei.data.sources import ROW_FILES, file_rows, find_files
from sentei.errors import InputError
from sentei.files import finite_pair
from sentei.metrics.intervals import mean_interval
from sentei.watch.drift import LEVEL

KEYS = ("label", "score")
FEW = 10  # labels of a group below which nothing is said of it


@dataclass(frozen=True)
class Labels:
    """Labels of requests.

    Attributes:
        source: where they are.
        values: by id of the request, from 0 (bad) to 1 (good).
        skipped: lines that could not be used.
        duplicates: labels of an id that an earlier one has.
    """

    source: str
    values: dict[str, float]
    skipped: Skipped = field(default_factory=Skipped)
    duplicates: int = 0

    def of(self, ids: Iterable[str]) -> NDArray[np.float64]:
        """Of requests [m], NaN where there is none."""
        return np.array([self.values.get(id, np.nan) for id in ids])

    def notes(self) -> list[str]:
        """What a person should know of how they were read."""
        lines = self.skipped.lines("of the labels are skipped")
        if self.duplicates:
            lines.append(f"labels of an id that has one: {self.duplicates:,}, dropped")
        return lines


def read_labels(source: str | Path, ids: Iterable[str], *, strict: bool = False) -> Labels:
    """Reads `{"id", "label"}` or `{"id", "score"}`: true or false, or a number from 0 (bad) to 1 (good).

    Args:
        source: files as `read_log` takes them.
        ids: of the requests of the log.
        strict: refuse the first line that would be skipped.

    Raises:
        InputError: missing, unreadable or empty; no label is of a request of the log; with `strict`, a bad line.
    """
    skipped, values, duplicates = Skipped(strict), dict[str, float](), 0
    for file in find_files(Path(source), ROW_FILES):
        for place, row in file_rows(file, skipped):
            key = next((key for key in KEYS if key in row), None)
            if row.get("id") is None or key is None:
                missing = "id" if row.get("id") is None else " or ".join(KEYS)
                skipped(place, f"has no {missing}; found: {', '.join(map(str, row))[:200] or 'nothing'}")
            elif not isinstance(row[key], bool | int | float) or not 0 <= row[key] <= 1:
                skipped(place, f"has a {key} that is {row[key]!r:.40}, expected true, false, or a number from 0 to 1")
            elif (id := str(row["id"])) in values:
                duplicates += 1
            else:
                values[id] = float(row[key])
    if not values:
        why = skipped.examples[0] if skipped.count else "it is empty"
        raise InputError(f'{source} has no label: {why}; expected lines like {{"id": "17", "label": true}}')
    if values.keys().isdisjoint(ids):
        raise InputError(
            f"{source}: none of {len(values):,} labels is of a request that is judged (the first id is "
            f"{next(iter(values))!r:.80}); label requests by the id that the log has"
        )
    return Labels(str(source), values, skipped, duplicates)


def told(values: NDArray[np.float64]) -> dict[str, Any] | None:
    """How many labels, their mean and its 95 % interval, where there are enough; None where there is no label."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    interval = finite_pair(mean_interval(known.tolist())) if len(known) >= FEW else None
    return {"count": len(known), "mean": float(known.mean()), "interval": interval}


def harm(values: NDArray[np.float64], groups: Mapping[str, NDArray[np.bool_]]) -> list[tuple[str, str]]:
    """Whether groups of requests are answered worse than all others: findings for `sentei.watch.verdict.judge`.

    The Mann-Whitney test, one-sided, each p-value times the number of groups (Bonferroni).

    Args:
        values: labels [m], NaN where there is none.
        groups: by how to name them, which requests are in them [m].
    """
    pairs = {name: (_known(values[of]), _known(values[~of])) for name, of in groups.items()}
    enough = {name: pair for name, pair in pairs.items() if min(map(len, pair)) >= FEW}
    findings = [
        ("nothing", f"Of {name} {len(pairs[name][0]):,} have labels, too few to say whether they are answered worse.")
        for name in pairs
        if name not in enough
    ]
    for name, (inside, others) in enough.items():
        p = min(1.0, len(enough) * float(stats.mannwhitneyu(inside, others, alternative="less").pvalue))
        means = f"{name}: their mean label is {inside.mean():.3f}, that of the others {others.mean():.3f}"
        if p <= LEVEL:
            findings.append(("re-tune", f"Known harm to {means} (lower with p = {p:.2g}): tune again with them."))
        else:
            findings.append(("nothing", f"No known harm to {means} (lower with p = {p:.2g})."))
    return findings


def _known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]


def groups_of(
    drift: bool, new: NDArray[np.bool_], grown: Sequence[int], capability: NDArray[np.int64], names: Sequence[str]
) -> dict[str, NDArray[np.bool_]]:
    """What moved: the new requests, and those of capabilities that get more."""
    found = {"the new requests": new} if drift else {}
    return found | {f"the requests of {names[k]!r}": capability == k for k in grown}
