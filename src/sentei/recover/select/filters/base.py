"""What a filter is, and what it may know of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sentei.data.pools import PoolRow
from sentei.errors import InputError


@dataclass(frozen=True)
class Evidence:
    """What is known of the rows beside their text; all of it may be missing.

    Attributes:
        embeddings: of the prompts, float32 [N, d], unit rows.
        nll: how unlikely the dense model finds each response after its prompt, nats per token, float32 [N]; best less
            what it finds after another prompt, or a fluent answer to another question beats a short right one.
        counts: tokens of each response, float32 [N].
        languages: the wanted ones (ISO 639-1); none: those of a good part of the rows.
        target: embeddings of texts that ask for the wanted capability, float32 [M, d], unit rows.
    """

    embeddings: NDArray[np.float32] | None = None
    nll: NDArray[np.float32] | None = None
    counts: NDArray[np.float32] | None = None
    languages: tuple[str, ...] = ()
    target: NDArray[np.float32] | None = None

    def check(self, rows: int) -> None:
        """Every array has one entry per row.

        Raises:
            InputError: it has not.
        """
        for name in ("embeddings", "nll", "counts"):
            value = getattr(self, name)
            if value is not None and len(value) != rows:
                raise InputError(f"the evidence {name!r} is of {len(value)} rows, expected {rows}, one per row")

    def take(self, indices: Sequence[int]) -> Evidence:
        """The evidence of some rows."""
        index = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            embeddings=None if self.embeddings is None else self.embeddings[index],
            nll=None if self.nll is None else self.nll[index],
            counts=None if self.counts is None else self.counts[index],
        )


@dataclass(frozen=True)
class Filter:
    """A way to tell bad rows.

    Attributes:
        name: as in `FILTERS`.
        find: index of each rejected row -> why, in one sentence with the evidence.
        about: one line for people.
    """

    name: str
    find: Callable[[Sequence[PoolRow], Evidence], dict[int, str]]
    about: str
