"""Rows with remains of what they were made with: prompts, templates, control tokens.

What stands in code is meant: fenced, in backticks, or in an answer whose lines are code. So is what a question about
templates, prompts or tokens speaks of.
"""

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
        r"|<(?:bos|eos|pad|unk)>|</s>\s*$"
    ),
    "the rest of a list of examples": r"(?:^|\n)[ \t]*#*\s*\d{1,3}\.\s*Instruction\s*:",
}
# Names in double braces are blanks that nobody filled in; with a dot, a pipe or a $ before them they are code.
_BLANK = r"(?<![$\\{])\{\{\s*[A-Za-z_][\w -]{0,40}\}\}"
_MEANT = re.compile(
    r"</\w+>|\{%|\\begin|\\frac|\\text|=\s*[\"']?\{\{|template|placeholder|mustache|handlebars|jinja", re.IGNORECASE
)
# In an answer only, and where the question does not speak of instructions itself.
_HEADED = r"(?:^|\n)[ \t]*Instruction:"

# A question about prompts and tokens: all of them are meant.
_ABOUT_PROMPTS = re.compile(
    r"template|placeholder|tokeni[sz]er|\btokens?\b|\bprompts?\b|chatml|fine-?tun|chat format|模板", re.IGNORECASE
)
# A question that asks for code: blanks are meant.
_ABOUT_CODE = re.compile(
    r"\bcode\b|\bscript\b|snippet|function|program|workflow|\bya?ml\b|\bjson\b|\bhtml\b|\bxml\b|markdown|\blatex\b"
    r"|\bregex|\btags?\b|github actions|ansible"
    r"|\bhelm\b|\bvue\b|angular|\breact\b|svelte|liquid|\btwig\b|django|flask|python|javascript|typescript|\bjava\b"
    r"|\bphp\b|\bruby\b|\brust\b|\bbash\b|\bshell\b|\bsql\b|\bc\+\+|\bgolang\b|代码",
    re.IGNORECASE,
)
_QUOTED_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`", re.DOTALL)
_CODE_LINE = re.compile(
    r"[;{}]\s*$|^\s*(?:def|class|import|from|return|for|while|if|elif|else|try|with|const|let|var|function|public|#include"
    r"|package|fn|func|SELECT|FROM|echo|export)\b.*[:;({)\"'\w]$|^\s*</?\w[^>]*>|\w\(.*\)\s*[:;{]?\s*$|\w\s*(?:\+=|=>|:=|=)\s*\S"
    r"|^\s*(?:-\s+)?[a-z_][\w.-]*:(?:\s+\S+)?\s*$"
)
_CODE_SHARE = 0.4  # of the lines

_PATTERNS = {what: re.compile(pattern, re.IGNORECASE) for what, pattern in _EVERYWHERE.items()}
_BLANKS, _HEADINGS = re.compile(_BLANK), re.compile(_HEADED)
_STRUCK = re.compile(r"(?<!^)<s\b[^>]*>(?=.)", re.DOTALL)  # HTML's own <s>, not the token at the start of a text


def _prose(text: str) -> str:
    """A text without its code."""
    text = _QUOTED_CODE.sub(" ", text)
    lines = [line for line in _BLANKS.sub("blank", text).splitlines() if line.strip()]  # braces of blanks are no code
    code = sum(_CODE_LINE.search(line) is not None for line in lines)
    return "" if lines and code >= _CODE_SHARE * len(lines) else text


def _reason(row: PoolRow) -> str:
    prompt, response = row.prompt, row.response
    if row.turns and _ABOUT_PROMPTS.search(prompt):
        return ""
    parts = (("question", prompt), ("answer", response)) if row.turns else (("text", row.text),)
    texts = [(where, _prose(text)) for where, text in parts]
    for where, text in texts:
        for what, pattern in _PATTERNS.items():
            if (found := pattern.search(text)) and not (found[0].startswith("</s>") and _STRUCK.search(text)):
                return f"the {where} holds {what}: {found.group().strip()!r}"
    if not any(_MEANT.search(text) for _, text in texts) and not (row.turns and _ABOUT_CODE.search(prompt)):
        for where, text in texts:
            if found := _BLANKS.search(text):
                return f"the {where} holds a blank that was not filled in: {found.group()!r}"
    if row.turns and "instruction" not in prompt.lower() and _HEADINGS.search(texts[-1][1]):
        return "the answer holds another instruction: 'Instruction:'"
    return ""


def _find(rows: Sequence[PoolRow], _: Evidence) -> dict[int, str]:
    return {i: reason for i, row in enumerate(rows) if (reason := _reason(row))}


LEAKED = Filter(
    "leaked",
    _find,
    "remains of prompts and templates outside code: headings, {{blanks}}, control tokens, next examples",
)
