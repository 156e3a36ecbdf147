"""Rows in which nothing is asked or nothing is answered."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from sentei.data.pools import PoolRow
from sentei.recover.select.filters.base import Evidence, Filter

_PLACEHOLDERS = frozenset(
    f"{no}{thing}{more}"
    for no in ("no", "no ")
    for thing in ("input", "output")
    for more in ("", " required", " needed", " provided", " necessary")
) | {"n/a", "nan", "todo", "tbd", "placeholder", "not applicable"}
# Written as a tag it is a placeholder wherever it stands.
_TAG = re.compile(r"<\s*no\s?(?:input|output|answer|response)\s*>", re.IGNORECASE)
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
# A question whose answer may be a mark: the percent sign, a full stop, an operator, the rule of Markdown.
_SYMBOL = re.compile(
    r"symbol|\bsigns?\b|\bmarks?\b|character|punctuation|operator|letter|delimiter|separator|wildcard|bracket|"
    r"morse|emoji|emoticon|ascii|unicode|regex|regular expression|markdown|syntax|\btype\b|符号|标点|記号",
    re.IGNORECASE,
)
_STROKES = frozenset(".-–—_…")  # one of them alone is how people leave a field out


def _void(text: str, question: str = "") -> str:
    """What makes a text say nothing, or an empty string; as the answer to `question`, a mark may say something."""
    text = text.strip()
    if not text:
        return "empty"
    if len(text) < 40 and _EDGES.sub("", text).lower() in _PLACEHOLDERS:
        return f"the placeholder {text!r}"
    if len(set(text)) > 1 or unicodedata.category(text[0])[0] not in "PC":  # Morse code and smileys use several marks
        return ""
    asked = question and (_SYMBOL.search(question) or (len(text) == 1 and text not in _STROKES))
    return "" if asked and text.isprintable() else f"only {text[:3]!r}"


def _reason(row: PoolRow) -> str:
    if not row.turns:
        void = _void(row.text)
        return f"the text is {void}" if void else ""
    asked = answered = False
    question = ""
    for turn in row.turns:
        if turn.role == "system":
            continue
        who = "the question" if turn.role == "user" else "the answer"
        question = turn.content if turn.role == "user" else question
        if void := _void(turn.content, "" if turn.role == "user" else question):
            return f"{who} is {void}"
        if tag := _TAG.search(turn.content):
            return f"{who} holds the placeholder {tag.group()!r}"
        if turn.role == "user" and (void := _void(turn.content.rpartition("\n\n")[2])):
            return f"the input is {void}"
        answered = answered or (asked and turn.role == "assistant")
        asked = asked or turn.role == "user"
    return "" if answered else "there is no answer to a question"


def _find(rows: Sequence[PoolRow], _: Evidence) -> dict[int, str]:
    return {i: reason for i, row in enumerate(rows) if (reason := _reason(row))}


EMPTY = Filter("empty", _find, "empty, punctuation only, or a placeholder such as <noinput>, in question or answer")
