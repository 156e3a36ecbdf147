from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sentei.data.formats import FORMATS
from sentei.data.pools import Turn, read_pool
from sentei.errors import InputError

ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "format", "turns"),
    [
        (ALPACA, "alpaca", "user:Add.\n\n1 2|assistant:3"),
        ({**ALPACA, "input": None, "text": "whole", "system": "S"}, "alpaca", "system:S|user:Add.|assistant:3"),
        ({**ALPACA, "history": [["q", "a"]]}, "alpaca", "user:q|assistant:a|user:Add.\n\n1 2|assistant:3"),
        ({"instruction": "", "output": ""}, "alpaca", "user:|assistant:"),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "S"},
            "sharegpt",
            "system:S|user:q|assistant:a",
        ),
        (
            {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "q", "name": "x"}]},
            "messages",
            "system:S|user:q",
        ),
        ({"prompt": "q", "completion": "a"}, "completion", "user:q|assistant:a"),
        ({"prompt": "q", "response": "a"}, "completion", "user:q|assistant:a"),
        ({"question": "q", "answer": "a"}, "completion", "user:q|assistant:a"),
    ],
)
def test_formats_are_told_by_their_keys(row: dict[str, Any], format: str, turns: str) -> None:
    pool = read_pool([row])
    assert (pool.format, pool.source) == (format, "rows in memory")
    (found,) = pool.rows
    assert "|".join(f"{turn.role}:{turn.content}" for turn in found.turns) == turns
    assert (found.raw, found.text, found.id, found.place) == (row, "", "0", "row 0")


def test_prompt_and_response() -> None:
    (row,) = read_pool([{**ALPACA, "system": "S", "history": [["q", "a"]]}]).rows
    assert (row.prompt, row.response) == ("S\nq\nAdd.\n\n1 2", "a\n3")
    assert row.turns[-1] == Turn("assistant", "3")
    (text,) = read_pool([{"text": "raw"}]).rows
    assert (text.turns, text.prompt, text.response) == ((), "raw", "raw")


def test_sources_give_the_same_rows(tmp_path: Path) -> None:
    import datasets
    import pyarrow
    from pyarrow import parquet

    rows = [{**ALPACA, "id": 7}, {"instruction": "ü\u2028", "input": None, "output": "x", "id": 8}]
    write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    places = {"a.jsonl": "a.jsonl:2", "b.jsonl.gz": "b.jsonl.gz:2", "c.json": "c.json: row 1"}
    places |= {"d.parquet": "d.parquet: row 1"}
    for name, place in places.items():
        pool = read_pool(tmp_path / name)
        assert ([row.raw for row in pool.rows], [row.id for row in pool.rows]) == (rows, ["7", "8"])
        assert pool.rows[1].place == str(tmp_path / place)
    assert [row.raw for row in read_pool(f"hf:{tmp_path / 'saved'}").rows] == rows


def test_a_directory_is_one_pool(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", {"text": "two"}, {"text": "three"})
    write(tmp_path / "a.jsonl", {"text": "one"})
    (tmp_path / "dataset_info.json").write_text("{}")
    assert [(row.text, row.id) for row in read_pool(tmp_path).rows] == [("one", "0"), ("two", "1"), ("three", "2")]
    write(tmp_path / "c.jsonl", ALPACA)
    with pytest.raises(InputError, match=r"c\.jsonl:1 does not fit the format 'text': there is no 'text'; found: inst"):
        read_pool(tmp_path, strict=True)
    pool = read_pool(tmp_path)
    assert [row.text for row in pool.rows] == ["one", "two", "three"] and pool.skipped.count == 1
    assert pool.skipped.examples[0].endswith("; its keys are those of 'alpaca'")


def test_a_format_can_be_named() -> None:
    row = {**ALPACA, "text": "whole"}
    assert read_pool([row], format="text").rows[0].text == "whole"
    with pytest.raises(InputError, match=r"unknown pool format 'alpacca' \(did you mean 'alpaca'\?\)"):
        read_pool([row], format="alpacca")
    with pytest.raises(InputError, match=r"row 0 does not fit the format 'messages': there is no 'messages'"):
        read_pool([row], format="messages")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "a", "ouput": "b"}, r"there is no 'output' \(did you mean 'ouput'\?\); found: instruction, o"),
        ({**ALPACA, "output": 3}, "'output' is int, expected a string"),
        ({**ALPACA, "output": None}, "'output' is NoneType, expected a string"),
        ({**ALPACA, "input": ["x"]}, "'input' is list, expected a string"),
        ({**ALPACA, "history": [["a"]]}, r"'history'\[0\] is \['a'\], expected \[question, answer\]"),
    ],
)
def test_the_first_bad_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "x.jsonl", ALPACA, row, ALPACA, {})
    with pytest.raises(InputError, match=rf"x\.jsonl:2 does not fit the format 'alpaca': {message}"):
        read_pool(path, strict=True)
    pool = read_pool(path)
    assert (len(pool.rows), pool.skipped.count) == (2, 2)
    assert re.search(rf"x\.jsonl:2 does not fit the format 'alpaca': {message}", pool.skipped.examples[0])


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ("hi", "'messages' is str, expected a list"),
        (["hi"], r"'messages'\[0\] is str, expected {'role': …, 'content': …}"),
        ([{"role": "user"}], r"in 'messages'\[0\] there is no 'content'"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            r"in 'messages'\[0\] a part of the content is 'text' without",
        ),
        ([{"role": "user", "content": None}], r"in 'messages'\[0\] 'content' is NoneType, expected a string"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"in 'messages'\[0\] a part of the content is 'image'"),
        ([{"role": "tool", "content": "rain"}], r"in 'messages'\[0\] there is a tool's turn \('role' is 'tool'\)"),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], r"in 'messages'\[0\] there is a tool's turn"),
        ([], r"'messages' is empty, expected at least one turn"),
        (
            [{"role": "asistant", "content": ""}],
            r"in 'messages'\[0\] 'role' is 'asistant' \(did you mean 'assistant'\?\), expected system,",
        ),
    ],
)
def test_bad_conversations_are_named(turns: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"row 0 does not fit the format 'messages': {message}"):
        read_pool([{"messages": turns}], strict=True)
    with pytest.raises(InputError, match=r"1 of 1 rows cannot be used: 1 × does not fit .*; known: messages"):
        read_pool([{"messages": turns}])


def test_keys_that_tell_no_format_are_named() -> None:
    with pytest.raises(InputError) as error:
        read_pool([{"instructions": "a", "output": "b"}])
    said = str(error.value)
    assert "row 0 has keys that tell no format (found: instructions, output); 'instructions' (did you mean" in said
    assert "'instruction'?" in said and all(format.schema in said for format in FORMATS.values())


def test_repeated_ids_are_told_apart_by_their_position(tmp_path: Path) -> None:
    rows = [{"text": str(i)} | ({} if id is None else {"id": id}) for i, id in enumerate([3, "3", None, 2, "3#1", 3])]
    ids = [row.id for row in read_pool(rows).rows]
    assert ids == ["3", "3#1", "2", "2#3", "3#1#4", "3#5"] and len(set(ids)) == len(rows)
    write(tmp_path / "a.jsonl", {"text": "a", "id": 7})
    write(tmp_path / "b.jsonl", {"text": "b", "id": 7})
    assert [(row.id, row.text, row.raw["id"]) for row in read_pool(tmp_path).rows] == [("7", "a", 7), ("7#1", "b", 7)]


def test_pools_that_are_none(tmp_path: Path) -> None:
    for pool in ([], write(tmp_path / "empty.jsonl")):
        with pytest.raises(InputError, match="is empty: there is no row in it"):
            read_pool(pool)
    with pytest.raises(InputError, match=r"1 of 1 rows cannot be used: .* row 0 in memory is str, expected a dict"):
        read_pool(["text"])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"none\.jsonl does not exist"):
        read_pool(tmp_path / "none.jsonl")
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(InputError, match=r"x\.csv has an unknown format; expected a name that ends in \.jsonl,"):
        read_pool(tmp_path / "x.csv")
    for content, message in (
        ("{}", "is dict, expected an array"),
        ("[1]", "row 0 is int, expected an object"),
        ("[{]", ":1 is not JSON"),
    ):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_pool(tmp_path / "x.json")


def test_real_pools_are_read(data_dir: Path) -> None:
    pool = read_pool(data_dir / "instruct" / "dolly_hhrlhf_1k.jsonl")
    assert pool.format == "alpaca" and len(pool.rows) > 900
    assert pool.rows[0].prompt == "what is kangen water?"


def test_one_bad_row_never_stops_a_pool(tmp_path: Path) -> None:
    lines = [json.dumps(ALPACA).encode()] * 30
    bad = [
        b'{"instruction": "cut off',
        b'{"instruction": "half \\ud83d", "output": "x"}',
        b'{"instruction": "n", "output": "x", "score": ' + b"9" * 5000 + b"}",
        b'{"instruction": "d", "output": "x", "meta": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        b'{"instruction": "\xff", "output": "x"}',
        b'["a", "list"]',
        b"\xef\xbb\xbf" + lines[0],  # joined with `cat`: fine
    ]
    for i, line in enumerate(bad):
        lines.insert(3 * i, line)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\r\n".join(lines))
    pool = read_pool(path)
    assert (len(pool.rows), pool.skipped.count) == (31, 6)
    assert [example.split(" ")[0] for example in pool.skipped.examples] == [f"{path}:{n}" for n in (1, 4, 7)]
    assert pool.skipped.lines("are skipped")[0].startswith("6 rows are skipped: 1 × is not JSON: ")
    assert "1 × is not UTF-8: byte 0xff at offset N" in pool.skipped.reasons()
    with pytest.raises(InputError, match=rf"{path}:1 is not JSON: Invalid control character"):
        read_pool(path, strict=True)
    path.write_bytes(b"\n".join([lines[1], *([b"{"] * 10)]))
    with pytest.raises(InputError, match=r"10 of 11 rows cannot be used: 10 × is not JSON: Expecting property name"):
        read_pool(path)


def test_the_format_is_that_of_most_rows() -> None:
    pool = read_pool([{"text": "a heading"}, *[ALPACA] * 3])
    assert (pool.format, len(pool.rows), pool.skipped.count) == ("alpaca", 3, 1)


def test_usual_ways_to_write_conversations_are_read() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}, {"role": "model", "content": "c"}]
    other = [{"from": "prompter", "value": "ab"}, {"from": "chatgpt", "value": "c"}]
    for row in ({"messages": parts}, {"messages": other}, {"conversations": parts}, {"conversations": other}):
        (found,) = read_pool([row]).rows
        assert [(turn.role, turn.content) for turn in found.turns] == [("user", "ab"), ("assistant", "c")]
