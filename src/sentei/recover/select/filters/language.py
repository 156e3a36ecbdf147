"""Rows that are asked in another language than the wanted ones.

The wanted languages are those that are named, else every language that a good part of the pool is in (`SHARE`): the
halves of a bilingual pool stay, and a tenth of another language among English rows goes.

A row is rejected on certain evidence only. Either its instruction is in a script that none of the wanted languages is
written in, or an identifier of languages (py3langid, Lui and Baldwin 2012) takes neither question nor answer for a
wanted one and is sure of a text that is long enough. So translations, short rows and code stay.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from sentei.data.pools import PoolRow
from sentei.errors import InputError, nearest
from sentei.recover.select.filters.base import Evidence, Filter

SHARE = 0.15  # of the rows, from which a language is one of the pool's own
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


def _foreign_script(text: str, wanted: frozenset[str]) -> str:
    """The script of at least half of a text, if no wanted language is written in it; else an empty string.

    What stands in quotation marks is talked about; it counts only where there is nothing else. Scripts without spaces
    say about a word with two letters.
    """
    if text.isascii():
        return ""
    for part in (_QUOTED.sub(" ", text), text):
        scripts = Counter(script for letter in part if (script := _script(letter)))
        weights = {script: count * (2 if script in _DENSE else 1) for script, count in scripts.items()}
        for script in weights:
            if script in _WRITTEN and not wanted & _WRITTEN[script] and 2 * weights[script] >= sum(weights.values()):
                return script if script == "CJK" else script.capitalize()
        if weights:
            break
    return ""


def _foreign_words(texts: Sequence[str], wanted: frozenset[str]) -> str:
    """The surest reason to take the texts for another language, an empty string if any may be in a wanted one."""
    reasons: dict[str, float] = {}
    for text in texts:
        language, probability = _identifier().classify(text)
        if language in wanted:
            return ""
        letters = sum(map(str.isalpha, text))
        code = letters < 0.6 * len("".join(text.split()))
        if probability >= SURE and letters >= LETTERS and not code and language not in ("und", "zxx"):
            reasons[f"written in {language!r} (probability {probability:.2f}), not in {named(wanted)}"] = probability
    return max(reasons, key=lambda reason: reasons[reason], default="")


def _reason(row: PoolRow, wanted: frozenset[str]) -> str:
    user = next((turn.content for turn in row.turns if turn.role == "user"), row.prompt)
    instruction = user.partition("\n\n")[0][:_START]
    parts = (instruction, user[:_START], user.rstrip().rpartition("\n")[2][:_START], row.response[:_START])
    texts = [text for text in dict.fromkeys(parts) if text.strip()]
    for text in texts:
        if any(map(str.isalpha, text)):  # the first text with letters: what is asked
            if script := _foreign_script(text, wanted):
                return f"written in {script} letters, not in {named(wanted)}"
            break
    return _foreign_words(texts, wanted)


def named(languages: Iterable[str]) -> str:
    """Languages as they are written in a reason: `'en' or 'ja'`."""
    return " or ".join(repr(language) for language in sorted(languages))


def own_languages(rows: Sequence[PoolRow]) -> frozenset[str]:
    """The languages of a good part of an evenly spaced sample of the rows; at least the most frequent one."""
    step = max(1, len(rows) // _SAMPLE)
    found = Counter(
        str(_identifier().classify(f"{row.prompt[:_START]}\n{row.response[:_START]}")[0]) for row in rows[::step]
    )
    most = max(found.values(), default=0)
    return frozenset(name for name, count in found.items() if count == most or count >= SHARE * found.total())


def check_languages(languages: Iterable[str]) -> None:
    """Refuses what is no code of a language.

    Raises:
        InputError: a language that the identifier does not know.
    """
    for language in languages:
        if language not in (known := _identifier().labels):
            raise InputError(
                f"unknown language {language!r}{nearest(language, known)}; "
                "expected codes of two or three letters, such as en, de, zh"
            )


def _find(rows: Sequence[PoolRow], evidence: Evidence) -> dict[int, str]:
    if not rows:
        return {}
    check_languages(evidence.languages)
    wanted = frozenset(evidence.languages) or own_languages(rows)
    return {i: reason for i, row in enumerate(rows) if (reason := _reason(row, wanted))}


LANGUAGE = Filter("language", _find, "asked in another language than the wanted ones, or than a good part of the rows")
