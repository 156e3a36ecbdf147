"""Similar texts in linear time: sets of character n-grams, one-permutation MinHash, locality-sensitive hashing.

Broder 1997 (resemblance); Li, Owen and Zhang 2012 (one permutation); Shrivastava and Li 2014 (empty bins).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GRAM = 6  # characters
BANDS, ROWS = (
    16,
    4,
)  # a pair of similarity s becomes a candidate with probability 1 - (1 - s^4)^16: 1.00 at 0.85, 0.64 at 0.5
_BINS = BANDS * ROWS
_CHUNK = 1 << 22  # characters that are hashed at once
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

_SPACE = re.compile(r"\s+")
_NUMBER = re.compile(r"\d+")


def normalise(text: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return _SPACE.sub(" ", text).strip(" .!?").lower()


def numbers(text: str) -> list[str]:
    """The numbers in a text, in order: texts that differ in one of them are not the same."""
    return _NUMBER.findall(text)


def _hashes(codes: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Hash of each n-gram of character codes [n] -> [n - GRAM + 1], well mixed in all bits."""
    count = len(codes) - GRAM + 1
    found = np.zeros(count, dtype=np.uint64)
    for i in range(GRAM):
        found = (found ^ codes[i : i + count]) * _FACTOR
        found ^= found >> np.uint64(29)
    found *= np.uint64(0xBF58476D1CE4E5B9)
    return np.asarray(found ^ (found >> np.uint64(32)))


def _codes(text: str) -> NDArray[np.uint32]:
    # Spaces around it: a text shorter than an n-gram has one too, and beginnings and ends count.
    return np.frombuffer(f" {text} ".ljust(GRAM).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def grams(text: str) -> NDArray[np.uint64]:
    """The set of n-grams of a normalised text, as sorted hashes."""
    return np.unique(_hashes(_codes(text)))


def jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    """|a ∩ b| / |a ∪ b| of two sorted sets."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def candidates(texts: Sequence[str]) -> NDArray[np.int64]:
    """Pairs [m, 2] of normalised texts, first < second, that are likely to be similar; every text costs a constant.

    In a bucket of many texts each is paired with the one before it and with the first one: the others follow.
    """
    pairs: list[NDArray[np.int64]] = [np.empty((0, 2), dtype=np.int64)]
    if len(texts) < 2:
        return pairs[0]
    signatures = _signatures(texts)
    for band in range(BANDS):
        part = signatures[:, band * ROWS : (band + 1) * ROWS]
        key = np.zeros(len(part), dtype=np.uint64)
        for column in part.T:
            key = (key ^ column) * _FACTOR
            key ^= key >> np.uint64(31)
        order = np.argsort(key, kind="stable")
        new = np.concatenate([[True], key[order][1:] != key[order][:-1]])
        first = order[np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))]
        before = np.concatenate([order[:1], order[:-1]])
        for other in (first, before):
            pairs.append(np.stack([other[~new], order[~new]], axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def _signatures(texts: Sequence[str]) -> NDArray[np.uint64]:
    """MinHash signatures [N, bins]: the smallest hash in each bin; an empty bin takes that of the next full one."""
    signatures = np.full((len(texts), _BINS), np.iinfo(np.uint64).max, dtype=np.uint64)
    start = 0
    while start < len(texts):
        codes: list[NDArray[np.uint32]] = []
        size, end = 0, start
        while end < len(texts) and (size < _CHUNK or end == start):
            codes.append(_codes(texts[end]))
            size += len(codes[-1])
            end += 1
        lengths = np.array([len(code) for code in codes])
        hashes = _hashes(np.concatenate(codes))
        owner = np.repeat(np.arange(start, end), lengths)[: len(hashes)]
        ends = np.repeat(np.cumsum(lengths), lengths)[: len(hashes)]
        inside = np.arange(len(hashes)) + GRAM <= ends  # an n-gram that reaches into the next text is none
        hashes, owner = hashes[inside], owner[inside]
        bins = (hashes % np.uint64(_BINS)).astype(np.int64)
        np.minimum.at(signatures.reshape(-1), owner * _BINS + bins, hashes)
        start = end
    return _densify(signatures)


def _densify(signatures: NDArray[np.uint64]) -> NDArray[np.uint64]:
    empty = signatures == np.iinfo(np.uint64).max
    # The column of the next full bin, looking around the corner: a running minimum from the right, over two rounds.
    columns = np.where(empty, 2 * _BINS, np.arange(_BINS))
    twice = np.concatenate([columns, columns + _BINS], axis=1)
    following = np.minimum.accumulate(twice[:, ::-1], axis=1)[:, ::-1][:, :_BINS]
    return np.take_along_axis(signatures, following % _BINS, axis=1)
