"""The forms in which instruction pools are written: which keys tell a form, and how its rows are read.

A new form is one `Format` and one line in `FORMATS`; where the keys of a row fit several, the first one is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sentei.errors import nearest
from sentei.registry import Registry

Role = Literal["system", "user", "assistant"]
Turns = list[tuple[Role, str]]

_NAMES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


class Misfit(Exception):  # noqa: N818 - it is told as an InputError, with the place
    """What does not fit in a row."""


@dataclass(frozen=True)
class Format:
    """One form of rows.

    Attributes:
        name: as in `FORMATS`.
        schema: the keys, for people.
        needs: sets of keys; a row that has all keys of one of them is taken for this form.
        read: the turns of a row, or its text; `Misfit` says what is wrong with it.
    """

    name: str
    schema: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Mapping[str, Any]], Turns | str]

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether the keys of a row are those of this form."""
        return any(all(key in row for key in keys) for keys in self.needs)


def _string(row: Mapping[str, Any], key: str, *, optional: bool = False) -> str:
    """The string under a key; an optional one may be absent or null."""
    value = row.get(key)
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    if key not in row:
        raise Misfit(f"there is no {key!r}{nearest(key, row)}")
    raise Misfit(f"{key!r} is {type(value).__name__}, expected a string")


def _list(row: Mapping[str, Any], key: str, *, optional: bool = False) -> list[Any]:
    value = row.get(key)
    if isinstance(value, list):
        return value
    if value is None and optional:
        return []
    if key not in row:
        raise Misfit(f"there is no {key!r}{nearest(key, row)}")
    raise Misfit(f"{key!r} is {type(value).__name__}, expected a list")


def _system(row: Mapping[str, Any]) -> Turns:
    text = _string(row, "system", optional=True)
    return [("system", text)] if text else []


def _alpaca(row: Mapping[str, Any]) -> Turns:
    turns = _system(row)
    for number, pair in enumerate(_list(row, "history", optional=True)):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Misfit(f"'history'[{number}] is {pair!r:.60}, expected [question, answer]")
        turns += [("user", pair[0]), ("assistant", pair[1])]
    more = _string(row, "input", optional=True)
    prompt = _string(row, "instruction") + (f"\n\n{more}" if more else "")
    return [*turns, ("user", prompt), ("assistant", _string(row, "output"))]


def _conversation(row: Mapping[str, Any], key: str, role: str, content: str) -> Turns:
    turns: Turns = []
    for number, message in enumerate(_list(row, key)):
        if not isinstance(message, dict):
            raise Misfit(f"{key!r}[{number}] is {type(message).__name__}, expected {{{role!r}: …, {content!r}: …}}")
        try:
            name, text = _string(message, role), _string(message, content)
        except Misfit as error:
            raise Misfit(f"in {key!r}[{number}] {error}") from None
        if name not in _NAMES:
            raise Misfit(f"in {key!r}[{number}] {role!r} is {name!r}{nearest(name, _NAMES)}, expected {_names()}")
        turns.append((_NAMES[name], text))
    return turns


def _names() -> str:
    return " or ".join([", ".join([*_NAMES][:-1]), [*_NAMES][-1]])


def _sharegpt(row: Mapping[str, Any]) -> Turns:
    return _system(row) + _conversation(row, "conversations", "from", "value")


def _messages(row: Mapping[str, Any]) -> Turns:
    return _conversation(row, "messages", "role", "content")


_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))


def _completion(row: Mapping[str, Any]) -> Turns:
    prompt, response = next((pair for pair in _PAIRS if all(key in row for key in pair)), _PAIRS[0])
    return [("user", _string(row, prompt)), ("assistant", _string(row, response))]


def _text(row: Mapping[str, Any]) -> str:
    return _string(row, "text")


MESSAGES = Format("messages", "{messages: [{role, content}]}", (("messages",),), _messages)
SHAREGPT = Format("sharegpt", "{conversations: [{from, value}], system?}", (("conversations",),), _sharegpt)
ALPACA = Format("alpaca", "{instruction, input?, output, system?, history?}", (("instruction", "output"),), _alpaca)
COMPLETION = Format("completion", "{prompt, completion or response} or {question, answer}", _PAIRS, _completion)
TEXT = Format("text", "{text}", (("text",),), _text)

FORMATS: Registry[Format] = Registry(
    "pool format",
    {
        "messages": "sentei.data.formats:MESSAGES",
        "sharegpt": "sentei.data.formats:SHAREGPT",
        "alpaca": "sentei.data.formats:ALPACA",
        "completion": "sentei.data.formats:COMPLETION",
        "text": "sentei.data.formats:TEXT",
    },
)
