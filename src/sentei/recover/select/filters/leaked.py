"""Rows with remains of what they were made with: prompts, templates, control tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sentei.data.pools import PoolRow
from sentei.recover.select.filters.base import Evidence, Filter

# What -> pattern. All of them read the question and the answer.
_EVERYWHERE = {
    "a prompt's heading": r"#{2,}\s*(?:Instruction|Input|Response|Output)s?\s*:",
    "a prompt's opening": r"Below is an instruction that describes a task",
    "a control token": (
        r"<\|[a-z][a-z0-9_]*\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<[|｜](?:User|Assistant)[|｜]>"
        r"|<(?:bos|eos|pad|unk)>|(?<!<s>)</s>\s*$"
    ),
    "the rest of a list of examples": r"(?:^|\n)[ \t]*#*\s*\d{1,3}\.\s*Instruction\s*:",
}
# Names in double braces are blanks that nobody filled in; in code and in talk about templates they are meant.
_BLANK = r"\{\{\s*[A-Za-z_][\w .-]{0,40}\}\}"
_MEANT = re.compile(
    r"```|</\w+>|\{%|\\begin|\\frac|\\text|=\s*\{\{|template|placeholder|mustache|handlebars|jinja", re.I
)
# In an answer only, and where the question does not speak of instructions itself.
_HEADED = r"(?:^|\n)[ \t]*Instruction:"

_PATTERNS = {what: re.compile(pattern, re.IGNORECASE) for what, pattern in _EVERYWHERE.items()}
_BLANKS, _HEADINGS = re.compile(_BLANK), re.compile(_HEADED)


def _reason(row: PoolRow) -> str:
    prompt, response = row.prompt, row.response
    for where, text in (("question", prompt), ("answer", response)) if row.turns else (("text", row.text),):
        for what, pattern in _PATTERNS.items():
            if found := pattern.search(text):
                return f"the {where} holds {what}: {found.group().strip()!r}"
    if not _MEANT.search(prompt) and not _MEANT.search(response):
        for where, text in (("question", prompt), ("answer", response)):
            if found := _BLANKS.search(text):
                return f"the {where} holds a blank that was not filled in: {found.group()!r}"
    if row.turns and "instruction" not in prompt.lower() and _HEADINGS.search(response):
        return "the answer holds another instruction: 'Instruction:'"
    return ""


def _find(rows: Sequence[PoolRow], _: Evidence) -> dict[int, str]:
    return {i: reason for i, row in enumerate(rows) if (reason := _reason(row))}


LEAKED = Filter(
    "leaked", _find, "remains of prompts and templates: headings, {{blanks}}, control tokens, next examples"
)
