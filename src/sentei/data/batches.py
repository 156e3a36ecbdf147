"""Batches of samples of similar length: padding costs nothing worth saving, and no attention mask is needed.

Rows are padded on the right. In a causal model no real token sees the padding, so attention keeps its fast causal path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from sentei.data.chat import Sample


BATCH_TOKENS = 4096  # positions in one forward pass: keeps the widest activation in the tens of megabytes
_BUSY = 1024  # positions that keep a processor busy; an even batch that has them ends where samples become longer
_UNEVEN = 1.25  # by this factor than its shortest


@dataclass(frozen=True)
class Batch:
    """Samples side by side.

    Attributes:
        rows: which samples, as indices into the sequence they came from.
        ids: token ids, int64 [B, T]; padding is token 0.
        response: which tokens the model is asked to say, bool [B, T].
    """

    rows: tuple[int, ...]
    ids: Tensor
    response: Tensor

    @property
    def sources(self) -> Tensor:
        """Positions whose next token is a target, bool [B, T]."""
        return torch.cat([self.response[:, 1:], torch.zeros_like(self.response[:, :1])], 1)

    @property
    def targets(self) -> Tensor:
        """The tokens asked for, int64 [N], row by row as `sources` has them."""
        return self.ids[:, 1:][self.response[:, 1:]]

    @property
    def owners(self) -> Tensor:
        """Which row of the batch each target belongs to, int64 [N]."""
        return torch.nonzero(self.response[:, 1:])[:, 0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(self.rows, self.ids.to(device), self.response.to(device))


def fill(
    order: Sequence[int],
    lengths: Sequence[int],
    tokens: int = BATCH_TOKENS,
    *,
    most: int | None = None,
    even: bool = False,
) -> list[list[int]]:
    """Cuts an order of samples, in which neighbours are of similar length, into batches.

    Args:
        order: indices of samples.
        lengths: tokens per sample.
        tokens: at most this many in a batch, padding included; a longer sample is a batch of its own.
        most: samples in a batch.
        even: of lengths that rise: less padding rather than fewer batches, where a processor is busy all the same.
    """
    batches: list[list[int]] = []
    widest = 0
    for index in order:
        length = lengths[index]
        batch = batches[-1] if batches else []
        full = (len(batch) + 1) * max(widest, length) > tokens or len(batch) == most
        uneven = even and len(batch) * length >= _BUSY and length > _UNEVEN * lengths[batch[0]]
        if not batch or full or uneven:
            batches.append([])
            widest = 0
        batches[-1].append(index)
        widest = max(widest, length)
    return batches


def by_length(lengths: Sequence[int], tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Indices of samples in batches of similar length, longest first, so that memory runs out at once or never.

    Lengths and tokens are those of `fill`.
    """
    return fill(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)), lengths, tokens)


def shuffled(lengths: Sequence[int], tokens: int, seed: int) -> list[list[int]]:
    """As `by_length`, in random order and from random neighbours: batches for one epoch of training.

    Samples are shuffled, sorted by length within stretches of about 32 batches, and cut; the batches are shuffled.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths)).tolist()
    stretch = max(1, 32 * tokens // max(1, int(np.mean(lengths)))) if len(lengths) else 1
    batches = []
    for start in range(0, len(order), stretch):
        part = sorted(order[start : start + stretch], key=lambda i: -lengths[i])
        batches += fill(part, lengths, tokens)
    return [batches[i] for i in generator.permutation(len(batches))]


def pad(samples: Sequence[Sample], rows: Sequence[int]) -> Batch:
    """The samples at `rows` as one batch."""
    longest = max(len(samples[row].ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    response = torch.zeros(len(rows), longest, dtype=torch.bool)
    for at, row in enumerate(rows):
        sample = samples[row]
        ids[at, : len(sample.ids)] = torch.from_numpy(sample.ids.astype(np.int64))
        response[at, : len(sample.ids)] = torch.from_numpy(sample.response)
    return Batch(tuple(rows), ids, response)
