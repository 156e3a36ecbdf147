"""What an answer says in the end, where that can be told, so that two answers to one question can be compared."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from sentei.recover.select.filters.similar import grams, normalise

SHORT = 5  # words; so short an answer is its own end
CONTAINED = 0.8  # of the shorter answer's 6-grams, from which two answers are one text with an addition

_MARKED = re.compile(
    r"####\s*(.+)|\\boxed\{([^{}]+)\}|\b(?:final|correct)?\s*answer(?:\s+is|\s*:|\s+would be)\s*:?\s*(.+)",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    r"\W*(yes|no|true|false|correct|incorrect|right|wrong)"
    r"(?=\s*(?:[,.;:!)–—]|$)|\s+(?:it|they|he|she|this|that|these|those|there|you|i|we|the|because)\b)",
    re.IGNORECASE,
)
_VERDICTS = {"yes": 1, "true": 1, "correct": 1, "right": 1, "no": 0, "false": 0, "incorrect": 0, "wrong": 0}
_NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?")
_WORD = re.compile(r"[^\W_]+")
_NEGATION = re.compile(
    r"\b(?:not?|never|none|neither|nor|cannot|false|untrue|incorrect|wrong|without)\b|n['’]t\b", re.I
)
# Questions of which many answers are right.
_OPEN = re.compile(
    r"\b(?:write|compose|create|generate|design|invent|imagine|suggest|propose|brainstorm|describe|discuss|explain|outline"
    r"|draft|summari[sz]e|paraphrase|rewrite|rephrase|recommend|give|name|list|provide|tell|think of|come up with|pick"
    r"|choose|make|construct|develop|an? (?:example|story|poem|joke)|examples|some|any|tips|ideas|ways"
    r"|how (?:do|can|to|would|should)|why|opinion|you|your)\b",
    re.IGNORECASE,
)
_ASKS_NUMBER = re.compile(
    r"\bhow (?:many|much|long|old|far|tall|fast)\b|calculate|compute|evaluate|solve|what is the (?:\w+ )?(?:sum|product"
    r"|difference|total|number|area|value|price|cost|average|percentage|perimeter|volume|probability|remainder)"
    r"|^\W*what(?:'s| is) [-\d(]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Final:
    """The end of an answer.

    Attributes:
        number: its number, or None.
        words: else its words, or (`yes`/`no`) a verdict.
    """

    number: Decimal | None
    words: str


def is_open(question: str) -> bool:
    """Whether a question may have many right answers."""
    return _OPEN.search(question) is not None and not _ASKS_NUMBER.search(question)


def final(answer: str, question: str) -> Final | None:
    """The end of an answer; None where it has none that could be told.

    That is what follows a mark ("#### 18", "the answer is 18", a box), a yes or no at the start, a short answer as a
    whole, or, where a number is asked for, the last one.
    """
    if marked := list(_MARKED.finditer(answer)):
        said = next(group for group in marked[-1].groups() if group).strip()
        return _of(said)
    if verdict := _VERDICT.match(answer):
        return Final(None, ("no", "yes")[_VERDICTS[verdict[1].lower()]])
    if len(answer.split()) <= SHORT:
        return _of(answer)
    if _ASKS_NUMBER.search(question) and (found := _NUMBER.findall(answer)):
        return _of(found[-1])
    return None


def agree(a: str, b: str, question: str) -> bool | None:
    """Whether two answers to a closed question say the same in the end; None where that cannot be told.

    A number agrees with an answer whose last sentence holds it, words with an answer that holds them: "18" with "She
    makes 18 dollars by selling 9 eggs."
    """
    one, other = final(a, question), final(b, question)
    if one is None and other is None:
        return None
    for end, text in ((one, b), (other, a)):
        if end is not None and _holds(text, end):
            return True
    if one is None or other is None:
        known = one or other
        assert known is not None
        return False if known.number is not None and _NUMBER.search(_last(b if one else a)) else None
    if (one.number is None) != (other.number is None):
        return None  # "two" and "2"
    return one == other


def negates(a: str, b: str) -> bool:
    """Whether one answer is the other with a "not" in it."""
    if len(_NEGATION.findall(a)) % 2 == len(_NEGATION.findall(b)) % 2:
        return False
    one, other = set(grams(normalise(a)).tolist()), set(grams(normalise(b)).tolist())
    return len(one & other) >= CONTAINED * min(len(one), len(other))


def _of(text: str) -> Final:
    found = _NUMBER.findall(text)
    if len(found) == 1 and (number := _decimal(found[0])) is not None:
        return Final(number, "")
    words = " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).lower()))
    return Final(None, words or text.strip())  # an answer may be a mark


def _holds(text: str, end: Final) -> bool:
    if end.number is not None:
        return any(_decimal(number) == end.number for number in _NUMBER.findall(_last(text)))
    if end.words in ("yes", "no"):
        return False  # one word says nothing of the other's verdict
    said = f" {' '.join(_WORD.findall(unicodedata.normalize('NFKC', text).lower()))} "
    return f" {end.words} " in said and not _NEGATION.search(text)


def _last(text: str) -> str:
    """The last sentence, and what follows a mark."""
    return re.split(r"(?<=[.!?])\s+|\n+", text.strip())[-1]


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", "").replace("−", "-")).normalize()
    except InvalidOperation:
        return None
