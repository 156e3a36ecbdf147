"""Rows that are asked in another language than the wanted one.

A row is rejected on certain evidence only. Either its instruction is in a script that the wanted language is not
written in, or an identifier of languages (py3langid, Lui and Baldwin 2012) takes neither question nor answer for the
wanted one and is sure of a text that is long enough. So translations, short rows and code stay.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from sentei.data.pools import PoolRow
from sentei.errors import InputError, nearest
from sentei.recover.select.filters.base import Evidence, Filter

SURE = 0.8  # probability from which another language is believed
LETTERS = 20  # fewer tell nothing, unless the script does
_START = 400  # characters of a text that are looked at
_SAMPLE = 2000  # rows that tell the language of the pool

# A script -> the languages that are written in it. Latin, and what is missing, tells nothing by itself.
_SCRIPTS = {
    "CJK": "zh ja ko",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CYRILLIC": "ru uk be bg sr mk kk ky mn tg tt ba cv os ce av ab sah udm",
    "ARABIC": "ar fa ur ps ug sd ckb ks arz pnb azb",
    "HEBREW": "he yi",
    "GREEK": "el",
    "DEVANAGARI": "hi mr ne sa bho mai",
    "BENGALI": "bn as",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
}
_DENSE = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI")
_QUOTED = re.compile(r"""["“”„«「『《][^"“”„«»「」『』《》]*["“”»」』》]""")
_WRITTEN = {script: frozenset(languages.split()) for script, languages in _SCRIPTS.items()}


@cache
def _script(letter: str) -> str:
    """The first word of a letter's Unicode name, which is its script."""
    return unicodedata.name(letter, "").partition(" ")[0] if letter.isalpha() else ""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _foreign_script(text: str, wanted: str) -> str:
    """The script of at least half of a text, if the wanted language is not written in it; else an empty string.

    What stands in quotation marks is talked about; it counts only where there is nothing else. Scripts without spaces
    say about a word with two letters.
    """
    if text.isascii():
        return ""
    for part in (_QUOTED.sub(" ", text), text):
        scripts = Counter(script for letter in part if (script := _script(letter)))
        weights = {script: count * (2 if script in _DENSE else 1) for script, count in scripts.items()}
        for script in weights:
            if script in _WRITTEN and wanted not in _WRITTEN[script] and 2 * weights[script] >= sum(weights.values()):
                return script if script == "CJK" else script.capitalize()
        if weights:
            break
    return ""


def _foreign_words(texts: Sequence[str], wanted: str) -> str:
    """The surest reason to take the texts for another language, an empty string if any may be in the wanted one."""
    reasons: dict[str, float] = {}
    for text in texts:
        language, probability = _identifier().classify(text)
        if language == wanted:
            return ""
        letters = sum(map(str.isalpha, text))
        code = letters < 0.6 * len("".join(text.split()))
        if probability >= SURE and letters >= LETTERS and not code and language not in ("und", "zxx"):
            reasons[f"written in {language!r} (probability {probability:.2f}), not in {wanted!r}"] = probability
    return max(reasons, key=lambda reason: reasons[reason], default="")


def _reason(row: PoolRow, wanted: str) -> str:
    user = next((turn.content for turn in row.turns if turn.role == "user"), row.prompt)
    instruction = user.partition("\n\n")[0][:_START]
    parts = (instruction, user[:_START], user.rstrip().rpartition("\n")[2][:_START], row.response[:_START])
    texts = [text for text in dict.fromkeys(parts) if text.strip()]
    for text in texts:
        if any(map(str.isalpha, text)):  # the first text with letters: what is asked
            if script := _foreign_script(text, wanted):
                return f"written in {script} letters, not in {wanted!r}"
            break
    return _foreign_words(texts, wanted)


def _majority(rows: Sequence[PoolRow]) -> str:
    """The language of most of an evenly spaced sample of the rows."""
    step = max(1, len(rows) // _SAMPLE)
    found = Counter(
        _identifier().classify(f"{row.prompt[:_START]}\n{row.response[:_START]}")[0] for row in rows[::step]
    )
    return str(found.most_common(1)[0][0])


def _find(rows: Sequence[PoolRow], evidence: Evidence) -> dict[int, str]:
    if not rows:
        return {}
    known = _identifier().labels
    if evidence.language is not None and evidence.language not in known:
        raise InputError(
            f"unknown language {evidence.language!r}{nearest(evidence.language, known)}; "
            "expected a code of two or three letters, such as en, de, zh"
        )
    wanted = evidence.language or _majority(rows)
    return {i: reason for i, row in enumerate(rows) if (reason := _reason(row, wanted))}


LANGUAGE = Filter("language", _find, "asked in another language than the wanted one, or than most rows")
