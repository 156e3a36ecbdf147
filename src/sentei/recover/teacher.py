"""What a teacher says: its likeliest tokens, kept by a scoring pass and read back, or all of it, asked in the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from sentei.data.batches import Batch
from sentei.errors import InputError
from sentei.inference.forward import evaluating, final_hidden
from sentei.models.load import Loaded
from sentei.recover.select.pair import same_tokens
from sentei.recover.select.scores import open_shards
from sentei.recover.tune.loss import Soft, Taught, Whole


class Says(Protocol):
    """A teacher of a loss."""

    def says(self, batch: Batch) -> Taught:
        """What it says at the targets of a batch."""
        ...


@dataclass(frozen=True)
class Present:
    """The dense model itself, which reads every batch."""

    model: Any

    @classmethod
    def of(cls, teacher: Loaded, student: Loaded) -> Present:
        """The teacher of a student.

        Raises:
            InputError: they do not predict the same tokens.
        """
        same_tokens(student, teacher)
        sizes = [len(loaded.model.get_output_embeddings().weight) for loaded in (teacher, student)]
        if len({*sizes}) > 1:
            raise InputError(
                f"{teacher.name} predicts {sizes[0]:,} tokens and {student.name} {sizes[1]:,}, so that their whole "
                "distributions cannot be compared; the teacher must be the dense model"
            )
        return cls(teacher.model)

    def says(self, batch: Batch) -> Whole:
        """Its hidden states at the targets."""
        with evaluating(self.model):
            hidden, _ = final_hidden(self.model, batch.ids.to(self.model.device))
            found = hidden[batch.sources.to(hidden.device)]
        return Whole(self.model, found.clone())  # outside of inference mode, so that it may meet gradients


@dataclass(frozen=True)
class Kept:
    """What a scoring pass kept of a teacher; `rows` says which of the scored rows a sample is."""

    teacher: Teacher
    rows: Mapping[int, int]

    def says(self, batch: Batch) -> Soft:
        """Its likeliest tokens at the targets."""
        return self.teacher.soft(batch, [self.rows[row] for row in batch.rows])


class Teacher:
    """Top tokens and log-probabilities of every scored row; read from disk as they are asked for.

    Args:
        directory: the shards that `damage.score` wrote.

    Raises:
        InputError: the shards hold no teacher's tokens.
    """

    def __init__(self, directory: Path) -> None:
        self._place: dict[int, tuple[int, int, int]] = {}
        self._files: list[Any] = []
        for path, file in open_shards(directory):
            if "top_ids" not in file.keys():  # noqa: SIM118 - not a dict
                raise InputError(f"{path} holds no teacher's tokens: the scoring kept none; select again with --top 16")
            counts = file.get_tensor("counts") if "counts" in file.keys() else np.zeros(0, np.int64)  # noqa: SIM118
            ends = np.cumsum(counts)
            starts = ends - counts
            kept = {file.get_slice(name).get_shape()[0] for name in ("top_ids", "top_logp")}
            if len(counts) != len(file.get_tensor("rows")) or kept != {int(counts.sum())}:
                raise InputError(f"{path}: rows, counts and tokens do not belong together; select again with --top 16")
            for row, start, end in zip(file.get_tensor("rows"), starts, ends, strict=True):
                self._place[int(row)] = (len(self._files), int(start), int(end))
            self._files.append(file)

    def __contains__(self, row: int) -> bool:
        return row in self._place

    def count(self, row: int) -> int:
        """How many positions of a row are kept."""
        _, start, end = self._place[row]
        return end - start

    def soft(self, batch: Batch, rows: list[int]) -> Soft:
        """What the teacher says at the targets of a batch, whose samples are these rows of the scored pool."""
        ids, logp = [], []
        for row in rows:
            if row not in self:
                raise InputError(f"the teacher has not read row {row}: its file scores-….safetensors is missing")
            file, start, end = self._place[row]
            ids.append(self._files[file].get_slice("top_ids")[start:end])
            logp.append(self._files[file].get_slice("top_logp")[start:end])
        device = batch.ids.device
        found = Soft(
            torch.from_numpy(np.concatenate(ids)).long().to(device),
            torch.from_numpy(np.concatenate(logp)).float().to(device),
        )
        if len(found.ids) != len(batch.targets):
            raise InputError(
                f"the teacher was asked at {len(found.ids)} positions of these rows, the batch has "
                f"{len(batch.targets)}; score them again with this tokenizer and --length"
            )
        return found
