"""Rows that contradict another answer to the same question.

One answer to a question is the one to keep: that with which most others agree, then the one that its question makes
likeliest. Another is rejected only where it

- ends differently, and the question is closed: "18" and "The answer is 20", "Yes, …" and "No, …" (`answers.py`);
- is the kept answer with a "not" in it;
- is no answer to this question: for the dense model the question makes the kept answer likelier, but not this one.

So an answer in other words stays, and so do two poems about the sea.

Two questions are the same where they differ in case, white space, punctuation and words without meaning only.
Similarity is no test for that: questions of one template with another number, name or input are the most similar ones
of a pool.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from sentei.data.pools import PoolRow
from sentei.recover.select.filters.answers import agree, is_open, negates
from sentei.recover.select.filters.base import Evidence, Filter
from sentei.recover.select.filters.similar import grams, jaccard, normalise

# Signs that change what is asked stay: operators, brackets, currency, points and commas inside numbers.
_PUNCTUATION = re.compile(r"(?<!\d)[.,:]|[.,:](?!\d)|(?<![\d)])!(?!=)|[;?…\"'`´‘’“”„«»_]|(?<!\S)[-–—](?!\S)")
_POLITE = frozenset(("a", "an", "the", "please", "kindly", "s"))
# What a question gives to its answer, by the dense model: log-likelihood after it less that after another question.
# Of 40 alpaca questions each gives 5 to 66 nats to its own answer, 10 to 85 to another right one (by GPT-4), and -20 to
# 14 to the answer of another question, 95 % of them below 8.
NATS = 8.0  # an answer that gets less is suspected,
PART = 0.4  # and is none if that is less than this part of what the kept one gets: short answers get little
_SHOWN = 30  # characters of an answer in a reason
_MANY = 50  # answers to one question that are compared with each other


def _question(row: PoolRow) -> str:
    """What is asked, without what makes no difference."""
    if not row.turns:
        return ""
    words = _PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", row.prompt).lower()).split()
    return " ".join(word for word in words if word not in _POLITE) or normalise(row.prompt)


def _best(group: Sequence[int], rows: Sequence[PoolRow], evidence: Evidence) -> tuple[int, str]:
    """The row to keep, and why."""
    some, others = list(group[:_MANY]), False
    if len(some) > 2:
        asked = rows[some[0]].prompt
        votes = [sum(agree(rows[i].response, rows[j].response, asked) is True for j in some if j != i) for i in some]
        if max(votes) > min(votes):
            some = [i for i, count in zip(some, votes, strict=True) if count == max(votes)]
            if 2 * len(some) > len(group):
                group, others = some, True
    if evidence.nll is not None:
        values = np.nan_to_num(evidence.nll[list(group)], nan=np.inf)
        if np.isfinite(values).any():
            return group[int(values.argmin())], "whose answer the dense model finds likeliest"
    if len(group) == 2 and not others:
        return group[0], "which comes first"
    sets = [grams(normalise(rows[i].response)) for i in some]
    agreement = [sum(jaccard(a, b) for b in sets) for a in sets]
    return some[int(np.argmax(agreement))], "whose answer agrees most with the others"


def _against(best: int, i: int, rows: Sequence[PoolRow], evidence: Evidence) -> str:
    """What speaks for row `i` being wrong where row `best` is right, or an empty string."""
    question, kept, other = rows[i].prompt, rows[best].response, rows[i].response
    if normalise(kept) == normalise(other):
        return ""
    if negates(kept, other):
        return "with the opposite"
    same = None if is_open(question) else agree(kept, other, question)
    if same is False:
        return f"and ends differently ({_end(other)!r}, not {_end(kept)!r})"
    if same:
        return ""
    if evidence.nll is not None:
        counts = np.ones_like(evidence.nll) if evidence.counts is None else evidence.counts
        gain, reference = (-float(evidence.nll[at] * counts[at]) for at in (i, best))
        if gain < min(NATS, PART * reference):
            return f"with what the question makes no likelier ({gain:.1f} nats, the other {reference:.1f})"
    return ""


def _end(answer: str) -> str:
    """The last characters of an answer."""
    text = " ".join(answer.split())
    return text if len(text) <= _SHOWN else "…" + text[-_SHOWN:]


def rivals(rows: Sequence[PoolRow]) -> list[list[int]]:
    """Rows that answer the same question, group by group; those that nobody else answers are left out."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if question := _question(row):
            groups[question].append(i)
    return [group for group in groups.values() if len(group) > 1]


def strangers(groups: Sequence[Sequence[int]], sizes: Mapping[int, int]) -> dict[int, int]:
    """For each row of the groups a row of another question, about as long: its prompt stands in for the row's own.

    Args:
        groups: see `rivals`.
        sizes: row -> tokens of its prompt, of all rows that may stand in.
    """
    group_of = {row: number for number, group in enumerate(groups) for row in group}
    order = sorted(sizes, key=lambda row: (sizes[row], row))
    found = {}
    for at, row in enumerate(order):
        if row not in group_of:
            continue
        for step in range(1, len(order)):
            near = [order[to] for to in (at + step, at - step) if 0 <= to < len(order)]
            other = [one for one in near if group_of.get(one) != group_of[row]]
            if other:
                found[row] = other[0]
                break
    return found


def _find(rows: Sequence[PoolRow], evidence: Evidence) -> dict[int, str]:
    found = {}
    for group in rivals(rows):
        best, why = _best(group, rows, evidence)
        for i in group:
            if i != best and (how := _against(best, i, rows, evidence)):
                found[i] = f"answers the question of row {rows[best].id}, {why}, {how}"
    return found


CONTRADICTION = Filter("contradiction", _find, "contradicts a likelier answer to the same question")
