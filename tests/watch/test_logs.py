"""Logs: the three schemas, and whatever can be wrong with them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from sentei.data.formats import Misfit
from sentei.errors import InputError
from sentei.watch.logs import Log, read_log
from sentei.watch.payloads import asked

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How are you?"}]


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "log.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(folder: Path, *lines: Any, strict: bool = False) -> Log:
    return read_log(write(folder, *lines), strict=strict)


def plain(id: str = "a", time: Any = "2026-01-01T00:00:00Z", text: str = "hello") -> dict[str, Any]:
    return {"id": id, "time": time, "request": {"prompt": text}}


def span(**more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "parts": [{"type": "text", "content": "How are you?"}]}]
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.input.messages": json.dumps(messages), **more}
    return {"name": "chat m", "traceId": "t", "spanId": "s", "startTimeUnixNano": "1767225600000000000"} | {
        "attributes": {name: value for name, value in attributes.items() if value is not None}
    }


@pytest.mark.parametrize(
    "request_",
    [
        {"request": {"messages": CHAT}},
        {"messages": CHAT},
        {"request": {"messages": [CHAT[0], {"role": "user", "content": [{"type": "text", "text": "How are you?"}]}]}},
    ],
)
def test_plain_messages(tmp_path: Path, request_: dict[str, Any]) -> None:
    log = read(tmp_path, {"id": 7, "time": "2026-01-01T01:00:00+01:00", **request_})
    (found,) = log.requests
    assert (found.id, found.user, found.system) == ("7", "How are you?", "Be kind.")
    assert found.when == "2026-01-01T00:00:00+00:00" and log.schemas == {"plain": 1} and log.notes() == []


@pytest.mark.parametrize(
    "row",
    [{"prompt": "hi", "attributes": {"team": "x"}}, {"text": "hi"}, {"request": "hi"}, {"request": {"text": "hi"}}],
)
def test_plain_text(tmp_path: Path, row: dict[str, Any]) -> None:
    log = read(tmp_path, row)
    assert [request.user for request in log.requests] == ["hi"] and log.requests[0].id.endswith("log.jsonl:1")
    assert log.notes() == ["requests without a time: 1, which keep their place in the log"]


def test_what_the_model_said_and_pictures_are_not_asked(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "tool", "content": "Three"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "Four"}],
        },
    ]
    assert read(tmp_path, {"messages": turns}).requests[0].user == "One\nFour"


def test_litellm(tmp_path: Path) -> None:
    payload = {"id": "p", "call_type": "acompletion", "startTime": 1767225600.5, "status": "success", "messages": CHAT}
    embedding = {**payload, "id": "q", "call_type": "aembedding"}
    redacted = {**payload, "id": "r", "messages": [{"role": "user", "content": "redacted-by-litellm"}]}
    wrapped = {"standard_logging_object": {**payload, "id": "s"}}
    log = read(tmp_path, payload, embedding, redacted, wrapped)
    assert [(r.id, r.user, r.when) for r in log.requests] == [
        (id, "How are you?", "2026-01-01T00:00:00+00:00") for id in "ps"
    ]
    assert log.others == 1 and log.skipped.count == 1 and "is redacted" in log.skipped.examples[0]


def test_spans(tmp_path: Path) -> None:
    (found,) = read(tmp_path, span(), span(**{"gen_ai.operation.name": "execute_tool"})).requests
    assert (found.id, found.user, found.when) == ("t:s", "How are you?", "2026-01-01T00:00:00+00:00")
    with pytest.raises(InputError, match=r"without gen_ai.input.messages: content is opt-in"):
        read(tmp_path, span(**{"gen_ai.input.messages": None}))


def test_an_export_of_spans(tmp_path: Path) -> None:
    inner = span(**{"gen_ai.system_instructions": '[{"type": "text", "content": "Be kind."}]'})
    inner["attributes"] = [{"key": key, "value": {"stringValue": text}} for key, text in inner["attributes"].items()]
    log = read(tmp_path, {"resourceSpans": [{"scopeSpans": [{"spans": [inner, {"name": "GET /", "attributes": []}]}]}]})
    assert [(r.user, r.system) for r in log.requests] == [("How are you?", "Be kind.")] and log.others == 1


def test_broken_lines_are_named_and_counted(tmp_path: Path) -> None:
    log = read(tmp_path, plain("a"), "{broken", plain("b"), "[1]")
    assert [r.id for r in log.requests] == ["a", "b"] and log.skipped.count == 2
    assert "log.jsonl:2 is not JSON" in log.skipped.examples[0]
    assert log.notes()[0].startswith("2 rows of the log are skipped: ")
    with pytest.raises(InputError, match=r"log.jsonl:2 is not JSON"):
        read(tmp_path, plain("a"), "{broken", strict=True)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "x"}, r"none of messages, prompt and text.*found: question"),
        ({"request": {"model": "m"}}, r"its request has none of messages.*found: model"),
        ({"request": 3}, r"request that is int"),
        ({"call_type": "completion"}, r"LiteLLM payload without messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, r"no text of a user in messages"),
        ({"text": "x", "time": "yesterday"}, r"a time that is no time: 'yesterday'"),
        ({"text": "x", "time": True}, r"a time of type bool"),
        ({"text": "x", "time": -1}, r"a time that is no time"),
        ({"prompt": 3}, r"has prompt of type int"),
        ({"attributes": 3}, r"attributes that are int"),
        ({"resourceSpans": [{"scopeSpans": 3}]}, r"scopeSpans that are no list"),
    ],
)
def test_other_schemas(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        read(tmp_path, row)
    assert "\n" not in str(error.value) and "log.jsonl:1" in str(error.value)


def test_clocks_that_run_backwards(tmp_path: Path) -> None:
    log = read(tmp_path, plain("a", 30), plain("b", 10), plain("c", None), plain("d", 20))
    assert [r.id for r in log.requests] == ["b", "c", "d", "a"] and log.backwards == 2
    assert "requests at which the clock runs backwards: 2; all are sorted by time" in log.notes()


def test_times_in_any_unit(tmp_path: Path) -> None:
    times = (1767225600, 1767225600_000, 1767225600_000_000, "1767225600000000000", "2026-01-01T00:00:00")
    log = read(tmp_path, *(plain(str(n), time) for n, time in enumerate(times)))
    assert {request.time for request in log.requests} == {1767225600.0}


def test_duplicate_ids_are_dropped(tmp_path: Path) -> None:
    log = read(tmp_path, plain("a", 1, "first"), plain("a", 2, "second"))
    assert [r.user for r in log.requests] == ["first"] and log.duplicates == 1
    assert "requests with the id of an earlier one: 1, dropped" in log.notes()


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"log.jsonl is empty"):
        read(tmp_path)
    with pytest.raises(InputError, match=r"does not exist"):
        read_log(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match=r"none of 1 entries asks a model"):
        read(tmp_path, span(**{"gen_ai.operation.name": "embeddings"}))


def test_rotated_logs_are_one(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for name, id in (("1.jsonl", "a"), ("2.jsonl", "b")):
        (folder / name).write_text(json.dumps(plain(id)) + "\n")
    assert [r.id for r in read_log(folder).requests] == ["a", "b"]


KEYS = ["request", "messages", "prompt", "text", "id", "time", "attributes", "call_type", "startTime", "resourceSpans"]
KEYS += [
    "scopeSpans",
    "spans",
    "role",
    "content",
    "parts",
    "type",
    "key",
    "value",
    "stringValue",
    "arrayValue",
    "values",
]
KEYS += ["gen_ai.operation.name", "gen_ai.input.messages", "context", "start_time", "standard_logging_object"]
LEAVES = [None, True, 1, -1, 1e300, "x", "", "chat", "user", "text", "acompletion", "[1]", "{", "2026-01-01", "٣"]


def anything(rng: random.Random, depth: int) -> Any:
    kind = rng.random() if depth else 0.0
    if kind < 0.35:
        return rng.choice(LEAVES)
    if kind < 0.6:
        return [anything(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {rng.choice(KEYS): anything(rng, depth - 1) for _ in range(rng.randint(0, 4))}


def test_whatever_a_line_holds_is_read_or_told() -> None:
    rng = random.Random(0)
    good = 0
    for _ in range(5000):
        row = {rng.choice(KEYS): anything(rng, 4) for _ in range(rng.randint(1, 4))}
        try:
            good += any(found is not None and found.user.strip() for found in asked(row))
        except Misfit as error:
            assert str(error) and "\n" not in str(error)
    assert good > 100
