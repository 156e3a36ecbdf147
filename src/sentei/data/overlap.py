"""How much of one text is in another: what was calibrated on proves little."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

SHORTEST = 32  # characters of a line that tells texts apart; headings and the like stand in many


def overlap(texts: Iterable[str], others: Iterable[str]) -> float:
    """The share of the characters of `texts` in lines that `others` have too; 0 where no line is long enough."""
    known = set(_lines(others))
    sizes = [(len(line), line in known) for line in _lines(texts)]
    total = sum(size for size, _ in sizes)
    return sum(size for size, there in sizes if there) / total if total else 0.0


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            if len(stripped := line.strip()) >= SHORTEST:
                yield stripped
