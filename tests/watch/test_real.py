"""Real requests through the real embedder: another mix of the same sets is no drift, another language is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sentei.data.pools import read_pool
from sentei.errors import InputError
from sentei.recover.select.embed import embed
from sentei.watch.drift import Vectors, classify, growth
from sentei.watch.verdict import is_drift


@pytest.fixture(scope="module")
def sets() -> dict[str, Vectors]:
    """Embeddings of the demo's pool, by the set that its rows are of: six skills and five others."""
    try:
        rows = read_pool("demo", evaluated=150).rows[:330]
        vectors = embed([row.prompt for row in rows])
    except InputError as error:
        pytest.skip(str(error))
    names = [row.id.rpartition("-")[0] for row in rows]
    return {name: vectors[[at for at, other in enumerate(names) if other == name]] for name in dict.fromkeys(names)}


def test_halves_of_a_pool_and_other_mixes_of_it_are_no_drift(sets: dict[str, Vectors]) -> None:
    first, second = (np.concatenate([some[part::2] for some in sets.values()]) for part in (0, 1))
    assert not is_drift(growth(classify(first, second)))
    others = np.concatenate([sets[name][1::2] for name in ("science", "everyday", "sums", "programs", "passages")])
    assert not is_drift(growth(classify(first, others)))


def test_another_language_is_a_drift(sets: dict[str, Vectors], data_dir: Path) -> None:
    source = data_dir / "instruct" / "neg_alpaca_zh_3k.jsonl"
    if not source.is_file():
        pytest.skip(f"needs {source}")
    chinese = embed([row.prompt for row in read_pool(source).rows[:120]])
    pool = np.concatenate(list(sets.values()))
    usual, reference = pool[::3], np.delete(pool, np.s_[::3], axis=0)
    for share in (0.2, 1.0):
        window = np.concatenate([usual[: round((1 - share) * 110)], chinese[: round(share * 110)]])
        grown = growth(classify(reference, window))
        assert is_drift(grown) and grown.then <= 0.1
