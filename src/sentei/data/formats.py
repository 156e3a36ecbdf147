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
_ALIASES: dict[str, Role] = {  # seen in published data, not advertised
    "developer": "system",
    "prompter": "user",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_TOOLS = frozenset(("tool", "tool_call", "tool_response", "function", "function_call", "observation", "ipython"))
_MESSAGE = (("role", "content"), ("from", "value"))


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
            turns.append(_turn(message, *_keys(message, role, content)))
        except Misfit as error:
            raise Misfit(f"in {key!r}[{number}] {error}") from None
    if not turns:
        raise Misfit(f"{key!r} is empty, expected at least one turn")
    return turns


def _keys(message: Mapping[str, Any], role: str, content: str) -> tuple[str, str]:
    """The keys of a message: those of its form, or of the other one where it has them."""
    if role not in message:
        return next((keys for keys in _MESSAGE if all(key in message for key in keys)), (role, content))
    return role, content


def _turn(message: Mapping[str, Any], role: str, content: str) -> tuple[Role, str]:
    name = _string(message, role)
    if name in _TOOLS or message.get("tool_calls") or message.get("function_call"):
        raise Misfit(f"there is a tool's turn ({role!r} is {name!r}), which no answer can be learnt from here")
    if name not in _NAMES and name not in _ALIASES:
        raise Misfit(f"{role!r} is {name!r}{nearest(name, _NAMES)}, expected {_names()}")
    parts = message.get(content)
    text = "".join(map(_part, parts)) if isinstance(parts, list | tuple) else _string(message, content)
    return (_NAMES | _ALIASES)[name], text


def _part(part: Any) -> str:
    """The text of one of the parts that a content may be made of."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise Misfit(f"a part of the content is {kind!r} without text, expected {{'type': 'text', 'text': …}}")
    return str(part["text"])


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
