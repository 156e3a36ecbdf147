"""What a person says about a selection, read: weights of clusters and published lists of ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from sentei.data.rows import decode, read_bytes, read_jsonl
from sentei.errors import InputError


def parse_weights(texts: Sequence[str]) -> dict[int, float]:
    """`["3=2.0", "5=0"]` as factors by cluster.

    Raises:
        InputError: not of this form, or a factor that is negative or not finite.
    """
    weights = {}
    for text in texts:
        cluster, _, factor = text.partition("=")
        try:
            weights[int(cluster)] = float(factor)
        except ValueError:
            raise InputError(f"--weight {text!r}: expected cluster=factor, such as 3=2.0") from None
        if not (math.isfinite(weights[int(cluster)]) and weights[int(cluster)] >= 0):
            raise InputError(f"--weight {text!r}: the factor must be a finite number of at least 0")
    return weights


def read_ids(path: Path) -> list[str]:
    """Ids of a published selection, in its order: JSON lines with the key `id`, or one id per line.

    Raises:
        InputError: unreadable, empty, or a line without an id.
    """
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        ids = []
        for number, row in read_jsonl(path):
            if row.get("id") is None:
                raise InputError(f"{path}:{number}: there is no key 'id'; found: {', '.join(row) or 'none'}")
            ids.append(str(row["id"]))
    else:
        ids = [line.strip() for line in decode(read_bytes(path), path).split("\n") if line.strip()]
    if not ids:
        raise InputError(f"{path} is empty: there are no ids in it")
    return ids
