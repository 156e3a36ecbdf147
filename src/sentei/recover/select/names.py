"""A name for each cluster: the words that set its rows apart from those of the others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORDS = 4  # in a name
TYPICAL = 100  # characters of a typical row
_LONGEST = 24  # characters of a word; scripts without spaces make words of whole sentences


def keywords(texts_by_cluster: Sequence[Sequence[str]]) -> list[str]:
    """The most distinctive words per cluster, as `"recipe, food, dish, meal"`; `"–"` where there are none.

    Class-based tf-idf (Grootendorst, arXiv 2203.05794): `tf · log(1 + A / f)` with tf the share of a cluster's rows
    that have the word, f the number of rows with it in all clusters, A the mean number of rows of a cluster. A row
    counts a word once, however often it repeats it. Numbers and English stop words are left out, and so is another form
    of a word that is already in the name (recipe, recipes; city, cities).
    """
    from sklearn.feature_extraction.text import CountVectorizer

    sizes = np.array([len(texts) for texts in texts_by_cluster])
    vectoriser = CountVectorizer(
        binary=True, stop_words="english", token_pattern=rf"(?u)\b[^\W\d_]{{2,{_LONGEST}}}\b", dtype=np.int32
    )
    analyse = vectoriser.build_analyzer()
    if not any(analyse(text) for texts in texts_by_cluster for text in texts):
        return ["–"] * len(sizes)
    vectoriser.fit(text for texts in texts_by_cluster for text in texts)
    words = vectoriser.get_feature_names_out()
    counts = np.zeros((len(sizes), len(words)))
    for k, texts in enumerate(texts_by_cluster):
        if len(texts):
            counts[k] = np.asarray(vectoriser.transform(texts).sum(axis=0)).ravel()
    scores = counts / np.maximum(sizes, 1)[:, None] * np.log1p(sizes.mean() / counts.sum(axis=0))
    return [_name(words, row) for row in scores]


def typical(
    texts: Sequence[str], vectors: NDArray[np.float32], labels: NDArray[np.integer[Any]], clusters: int
) -> list[str]:
    """The most typical row of each cluster: that nearest to the mean of its embeddings; its first line, cut.

    Args:
        texts: of the rows, N.
        vectors: their embeddings, unit rows [N, d].
        labels: their clusters [N].
        clusters: how many there are; none is empty.
    """
    found = []
    for k in range(clusters):
        members = np.flatnonzero(labels == k)
        near = vectors[members] @ vectors[members].mean(axis=0)
        first = next(iter(texts[int(members[int(near.argmax())])].strip().splitlines()), "")
        found.append(first if len(first) <= TYPICAL else f"{first[:TYPICAL].rstrip()} …")
    return found


def _name(words: np.ndarray, scores: np.ndarray) -> str:
    chosen: list[str] = []
    for i in np.argsort(-scores, kind="stable")[: 5 * WORDS]:
        word = str(words[i])
        if scores[i] > 0 and not any(_same(word, other) for other in chosen):
            chosen.append(word)
    return ", ".join(chosen[:WORDS]) or "–"


def _same(word: str, other: str) -> bool:
    """Whether they differ only in their ending."""
    return len(os.path.commonprefix((word, other))) >= max(3, min(len(word), len(other)) - 1)  # noqa: RUF071 - characters are what is compared
