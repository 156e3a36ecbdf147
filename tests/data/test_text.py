from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentei.data.rows import stem
from sentei.data.text import read_texts, token_windows
from sentei.errors import InputError


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_formats_give_the_same_texts(tmp_path: Path) -> None:
    texts = ["one", "", "drei – ü\u2028line"]
    rows = [{"page": i, "text": text} for i, text in enumerate(texts)]
    plain = write(tmp_path / "a.jsonl", *rows)
    assert read_texts(plain) == texts
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert read_texts(tmp_path / "b.jsonl.gz") == texts
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    assert read_texts(tmp_path / "c.parquet") == texts
    (tmp_path / "d.txt").write_bytes(b"\xef\xbb\xbfwhole\n\nfile")
    assert read_texts(str(tmp_path / "d.txt")) == ["whole\n\nfile"]
    assert read_texts(tmp_path) == [*texts * 3, "whole\n\nfile"]


def test_the_field_is_found_or_named(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", {"id": 1, "story": "a"}, {"id": 2, "story": "b"})
    assert read_texts(one) == ["a", "b"]
    two = write(tmp_path / "two.jsonl", {"title": "t", "story": "a"})
    assert read_texts(two, field="story") == ["a"]
    with pytest.raises(InputError, match=r"two\.jsonl:1 has no field \"text\" \(found: title, story\)"):
        read_texts(two)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n\n{broken\n', r"x\.jsonl:3 is not JSON: .* at column 2"),
        (b'{"text": "a"}\n[1]\n', r"x\.jsonl:2 is list, expected an object"),
        (b'{"text": "a"}\n{"txt": "b"}\n', r"x\.jsonl:2: there is no field 'text' \(did you mean 'txt'\?\)"),
        (b'{"text": "a"}\n{"text": 3}\n', r"x\.jsonl:2: 'text' is int, expected a string"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"x\.jsonl:2 is not UTF-8: byte 0xff at offset 24"),
        (b"", r"x\.jsonl is empty"),
        (b'{"text": " "}\n{"text": ""}\n', r"x\.jsonl is empty"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_texts(path)
    assert "\n" not in str(error.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl does not exist"):
        read_texts(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="nowhere does not exist"):
        read_texts(tmp_path / "nowhere")
    whole = gzip.compress(b'{"text": "a"}\n' * 99)
    for name, content in (("cut", whole[:-12]), ("no", b"plain")):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}\.jsonl\.gz is not a complete gzip file"):
            read_texts(tmp_path / f"{name}.jsonl.gz")
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(InputError, match=r"unknown format; expected .*\.parquet"):
        read_texts(tmp_path / "x.csv")
    (tmp_path / "x.parquet").write_text("a")
    with pytest.raises(InputError, match=r"x\.parquet cannot be read as parquet"):
        read_texts(tmp_path / "x.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no text in it"):
        read_texts(tmp_path / "empty")


def test_datasets(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}]).save_to_disk(str(tmp_path / "saved"))
    assert read_texts(f"hf:{tmp_path / 'saved'}") == ["a", "b"]
    with pytest.raises(InputError, match="cannot be loaded"):
        read_texts(f"hf:{tmp_path / 'none'}")
    with pytest.raises(InputError, match="is not understood"):
        read_texts("hf:a:b:c:d")


def test_stem() -> None:
    assert stem("x/wikitext2_tok.test.jsonl.gz") == "wikitext2_tok.test"
    assert stem("notes.txt") == "notes"


class Letters:
    """One token per character, and a merge that reaches over the end of a cut text: "ab" is one token."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        self.seen = max(self.seen, len(text))
        return {"input_ids": [ord(c) for c in text.replace("ab", "ß")]}


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.text(alphabet="ab c", max_size=90), min_size=1, max_size=40),
    window=st.integers(1, 9),
    limit=st.integers(1, 40),
)
def test_lazy_windows_are_those_of_the_whole_text(texts: list[str], window: int, limit: int) -> None:
    ids = Letters()("\n\n".join(texts))["input_ids"]
    count = min(limit, len(ids) // window)
    if count == 0:
        with pytest.raises(InputError, match=rf"has {len(ids)} tokens, one window needs {window}"):
            token_windows(texts, Letters(), window=window, windows=limit)
        return
    found = token_windows(texts, Letters(), window=window, windows=limit)
    assert found.tolist() == [ids[i * window : (i + 1) * window] for i in range(count)]
    last = token_windows(texts, Letters(), window=window, windows=limit, tail=True)
    assert last.flatten().tolist() == ids[len(ids) - count * window :]
    assert token_windows(texts, Letters(), window=window).numel() == len(ids) // window * window


def test_token_limits_round_down_but_give_one_window() -> None:
    texts = ["x" * 100]
    assert token_windows(texts, Letters(), window=8, tokens=31).shape == (3, 8)
    assert token_windows(texts, Letters(), window=8, tokens=5).shape == (1, 8)
    assert token_windows(texts, Letters(), window=8, tokens=64, windows=2).shape == (2, 8)
    with pytest.raises(InputError, match="windows is 0"):
        token_windows(texts, Letters(), window=8, windows=0)


@pytest.mark.parametrize("texts", [["x" * 100] * 10_000, ["x" * 1_000_000]])
def test_a_small_limit_tokenises_little(texts: list[str]) -> None:
    tokenizer = Letters()
    token_windows(texts, tokenizer, window=10, windows=2)
    assert tokenizer.seen < 1000
