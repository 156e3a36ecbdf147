from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentei.data.splits import NAMES, Splits, split
from sentei.data.task_file import TaskFile
from sentei.data.task_rows import TaskRow
from sentei.errors import InputError


def row(number: int, context: str, target: str) -> TaskRow:
    raw = {"context": context, "target": target}
    return TaskRow(str(number), context, (), -1, target, (), raw, f"f:{number + 1}")


def task(seed: int = 0, **sizes: int) -> TaskFile:
    return TaskFile(name="t", data="f.jsonl", splits={name: sizes.get(name, 10) for name in NAMES}, seed=seed)


ROWS = [row(i, f"c{i}", f" {'abbb'[i % 4]}") for i in range(100)]


def test_rows_are_divided_evenly_and_by_the_seed() -> None:
    parts = split(task(calibrate=40, search=20, confirm=20, test=20), ROWS)
    for name, size in (("calibrate", 40), ("search", 20), ("confirm", 20), ("test", 20)):
        part = getattr(parts, name)
        assert len(part) == size
        for stop in range(1, size + 1):  # every beginning, because a search looks at these
            assert abs(Counter(r.target for r in part[:stop])[" a"] - stop / 4) <= 2
    again = split(task(calibrate=40, search=20, confirm=20, test=20), ROWS)
    assert again == parts and split(task(1, calibrate=40, search=20, confirm=20, test=20), ROWS) != parts
    assert [r.id for r in parts.calibrate] != sorted((r.id for r in parts.calibrate), key=int)


@given(st.data())
def test_splits_are_disjoint_and_keep_contexts_together(data: st.DataObject) -> None:
    contexts = data.draw(st.lists(st.integers(0, 30), min_size=4, max_size=60))
    rows = [row(i, f"c{c}", f" {data.draw(st.sampled_from('ab'))}") for i, c in enumerate(contexts)]
    sizes = dict(zip(NAMES, data.draw(st.lists(st.integers(1, 8), min_size=4, max_size=4)), strict=True))
    try:
        parts = split(task(data.draw(st.integers(0, 5)), **sizes), rows)
    except InputError as error:
        few = len(rows) < sum(sizes.values())
        assert few or max(Counter(contexts).values()) > 1, error
        return
    chosen = [(r, name) for name in NAMES for r in getattr(parts, name)]
    assert {name: len(getattr(parts, name)) for name in NAMES} == sizes
    assert len({r.id for r, _ in chosen}) == len(chosen)
    homes: dict[str, set[str]] = {}
    for r, name in chosen:
        homes.setdefault(r.context, set()).add(name)
    assert all(len(names) == 1 for names in homes.values())


def test_too_few_rows_are_counted_and_sizes_proposed() -> None:
    message = "f.jsonl: 30 rows, the splits need 40 (calibrate 10, search 10, confirm 10, test 10); give more rows, or "
    with pytest.raises(InputError, match=re.escape(message)) as error:
        split(task(), ROWS[:30])
    assert "`splits: {calibrate: 7, search: 7, confirm: 7, test: 7}`" in str(error.value)
    with pytest.raises(InputError, match=r"3 rows, the splits need 40 .*; give more rows$"):
        split(task(), ROWS[:3])
    same = [row(i, "c", " a") for i in range(60)]
    with pytest.raises(InputError, match="one context has 60 rows; ask for smaller splits"):
        split(task(), same)


def test_splits_are_stored_once_for_one_file(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    parts = split(task(), ROWS)
    parts.save(path)
    assert Splits.load(path, ROWS) == parts
    with pytest.raises(InputError, match=r"splits\.json was made from other data .*; give the same data, or another"):
        Splits.load(path, [*ROWS[:-1], row(99, "c99", " other")])
    for text in ("[]", '{"calibrate": [1]}'):
        path.write_text(text)
        with pytest.raises(InputError, match="holds no splits"):
            Splits.load(path, ROWS)
    parts.save(path)
    path.write_text(path.read_text().replace(f'"{parts.test[0].id}"', '"nobody"'))
    with pytest.raises(InputError, match="names row 'nobody', which the data do not have"):
        Splits.load(path, ROWS)
