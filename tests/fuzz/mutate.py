"""Valid files, changed: values of other types, missing and extra keys, and texts that are nearly JSON or YAML."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

import yaml

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 10**6, 2**63, 10**30, -(10**30), 0.0, -0.5, 0.5, 1e308, float("nan"), float("inf"),
    "", " ", "0", "1e999", "NaN", "\x00", "\u2028", "é" * 20, "x" * 300, "x/" * 600, "../..", "/", ".", "~",
    "hf:", "demo", "{a}", "{a[*]}", "{", "%s", "python:os.system", "python:x.py:f", "=", "a" * 5000, "2024-01-01",
    "-", "20%", [], {}, [None], [[]], [[[]]], [1, 2], ["a", 1], {"": 0}, {"a": {"b": []}}, {"role": "user"}, [0.1] * 3,
)  # fmt: skip
NUMBER = "9" * 5000
TEXTS = (
    NUMBER, f"-{NUMBER}", f"0.{NUMBER}", f"1e{NUMBER[:9]}", "NaN", "-Infinity", '"\\ud83d"', '"\\udc00\\ud800"',
    '"\\u0000"', "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "[" * 200, "2024-13-45",
    "2024-02-30 25:61:61", "2024-01-01", "!!bool maybe", "!!int x", "!!timestamp x",
    "!!binary x", "!!set {a}", "!!python/name:os.system", "!x y",
    "0x", "1:2:3", "? [a, b]\n: c", "&a [*a]", "*b", "<<: 3", "null", "~", "''", '"', "'", "{", "}", "- ", ":", "\t",
    "\ufeff", "# ",
    "[&a " + ", &a ".join(["[x, *a, *a, *a, *a, *a, *a, *a, *a]"] * 12).replace("x, *a", "x", 1) + "]",
)  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a value, with each of its keys."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict | list):
            keys = list(item) if isinstance(item, dict) else list(range(len(item)))
            found += [(item, key) for key in keys]
            left += [item[key] for key in keys]
    return found


def mutated(value: Any, random: Random) -> Any:
    """A copy with one to three changes."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        found = places(value)
        if not found or random.random() < 0.02:
            return random.choice(ODD)
        holder, key = random.choice(found)
        kind = random.randrange(7)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[random.choice(("zzz", "", "schema_version", "name", str(key) * 2))] = random.choice(ODD)
        elif kind == 2:
            other, at = random.choice(found)
            holder[key] = copy.deepcopy(other[at])
        elif kind == 3 and isinstance(holder[key], int | float):
            holder[key] = random.choice((-1, 10, 10**6, 1e-9)) * holder[key]
        elif kind == 4:
            holder[key] = [holder[key]] if random.random() < 0.5 else {"a": holder[key]}
        else:
            holder[key] = copy.deepcopy(random.choice(ODD))
    return value


def text_of(value: Any, ending: str) -> str:
    """As a file of that format has it."""
    if ending == ".yaml":
        return str(yaml.safe_dump(value, allow_unicode=True))
    if ending == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in (value if isinstance(value, list) else [value]))
    return json.dumps(value)


def broken(text: str, random: Random) -> bytes:
    """A text with a piece replaced, removed or doubled; now and then not UTF-8."""
    at = random.randrange(len(text) + 1)
    end = min(len(text), at + random.choice((0, 1, 1, 5, 40)))
    piece = random.choice((random.choice(TEXTS), text[at:end] * 2, ""))
    if random.random() < 0.6 and ":" in text:  # as a value
        at = random.choice([n for n, letter in enumerate(text) if letter == ":"]) + 1
        stop = [n for n in (text.find(end, at) for end in ",}]\n") if n >= 0]
        end = min(stop, default=len(text))
        piece = f" {piece}"
    made = (text[:at] + piece + text[end:]).encode("utf-8", "surrogatepass")
    return made + b"\xff\xfe" if random.random() < 0.03 else made
