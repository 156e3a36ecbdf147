"""What `tune` learns from: samples, their division into steps and held-out rows, and what a teacher says of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sentei.data.batches import Batch, by_length, pad, shuffled
from sentei.data.chat import Sample, encode, remarks, tokenizer_digest
from sentei.data.pairs import encode_rows
from sentei.data.pools import Pool, PoolRow, read_pool
from sentei.data.splits import split
from sentei.data.task_file import TaskFile
from sentei.data.task_rows import read_rows
from sentei.data.tokens import check_ids
from sentei.errors import InputError
from sentei.inference.forward import evaluating
from sentei.models.identity import difference, hash_tokenizer
from sentei.models.load import Loaded
from sentei.progress import Progress
from sentei.recover.select.damage import score
from sentei.recover.select.pair import same_tokens, shared_tokens
from sentei.recover.select.selection import SCORES, Selection
from sentei.recover.teacher import Kept, Present, Says, Teacher
from sentei.recover.tune.loss import Loss, Taught

Source = Selection | Pool | TaskFile
HELDOUT = 64  # rows, or a tenth of the data where that is less
LEAST = 8  # of them, where that is at most a quarter


@dataclass
class TrainingData:
    """Samples, how they are divided, and what the teacher says of them."""

    samples: list[Sample]
    train: list[int]
    heldout: list[int]
    teacher: Says | None = None

    def loss(self, kind: Loss) -> Callable[[Any, Batch], Any]:
        """The loss of a batch of these samples, for any model."""

        def of(model: Any, batch: Batch) -> Any:
            batch = batch.to(next(model.parameters()).device)
            return kind(model, batch, self._taught(kind, batch))

        return of

    def heldout_loss(self, kind: Loss, tokens: int) -> Callable[[Any], float]:
        """The mean loss of the held-out samples, for any model; the teacher is asked once.

        Args:
            kind: of loss.
            tokens: of a batch.
        """
        known: list[tuple[Batch, Taught | None]] = []

        def of(model: Any) -> float:
            device = next(model.parameters()).device
            with evaluating(model):
                if not known:
                    batches = [batch.to(device) for batch in self.heldout_batches(tokens)]
                    known.extend((batch, self._taught(kind, batch)) for batch in batches)
                sums = [(float(kind(model, batch, taught)), len(batch.targets)) for batch, taught in known]
            return sum(value * size for value, size in sums) / sum(size for _, size in sums)

        return of

    def _taught(self, kind: Loss, batch: Batch) -> Taught | None:
        return self.teacher.says(batch) if kind.teacher and self.teacher is not None else None

    def batch(self, rows: Sequence[int]) -> Batch:
        """Samples side by side."""
        return pad(self.samples, rows)

    def heldout_batches(self, tokens: int) -> list[Batch]:
        """The held-out samples in batches of like length."""
        lengths = [len(self.samples[row].ids) for row in self.heldout]
        return [self.batch([self.heldout[i] for i in rows]) for rows in by_length(lengths, tokens)]

    def size(self, rows: Sequence[int]) -> int:
        """Tokens of samples, without padding."""
        return sum(len(self.samples[row].ids) for row in rows)


def read_source(
    data: str | Path | Selection | Pool | TaskFile | Sequence[dict[str, Any]], *, strict: bool = False
) -> Source:
    """A selection directory, a task file (.yaml), or a pool of any kind; what is read already is given back.

    `strict` refuses a pool with a bad row.

    Raises:
        InputError: none of these, or unreadable.
    """
    if isinstance(data, Selection | Pool | TaskFile):
        return data
    if isinstance(data, str | Path) and Path(data).suffix in (".yaml", ".yml"):
        return TaskFile.load(data)
    if isinstance(data, str | Path) and (Path(data) / "selection.json").is_file():
        return Selection.load(data)
    return read_pool(data, strict=strict)


def read_data(
    data: Source,
    tokenizer: Any,
    length: int,
    seed: int,
    progress: Progress,
    teacher: Loaded | None,
    loss: Loss | None,
    *,
    strict: bool = False,
) -> TrainingData:
    """The samples that can be learnt from; held-out rows are drawn from them.

    `loss`: None: not known yet. Where it needs what a scoring keeps of a teacher, that of a selection is taken, unless
    `teacher` is another model.
    `strict`: whether a row that the chat template refuses is refused.
    """
    rows: Sequence[PoolRow] = ()
    if isinstance(data, Selection):
        scored, length = data.scored(), data.about["scoring"]["length"]
        rows = [scored.pool.rows[row] for row in data.chosen]
        samples = encode(rows, tokenizer, length=length, strict=strict)
        source = f"selection of {len(rows):,} rows"
    elif isinstance(data, TaskFile):
        samples = encode_rows(split(data, read_rows(data)).calibrate, tokenizer, length)
        source = f"{len(samples):,} rows of task {data.name!r}, those that `fit` calibrates on"
    else:
        rows = data.rows
        samples = encode(rows, tokenizer, length=length, strict=strict)
        source = f"{len(rows):,} rows of {data.source}, read as {data.format}"
    progress.say(f"data: {source}")
    said = data.skipped.lines("are skipped") if isinstance(data, Pool) else []
    said += remarks(samples, rows, length)
    for line in said:
        progress.say(f"  {line}")
    if loss is not None and loss.positions == "all":
        samples = [replace(sample, response=np.arange(len(sample.ids)) > 0) for sample in samples]
    groups: dict[int, list[int]] = {}  # the answers of one row stay together, or held-out rows would be known
    for i, sample in enumerate(samples):
        if sample.response[1:].any():
            groups.setdefault(sample.row, []).append(i)
    if len(groups) < 2:
        why = f" ({'; '.join(said)})" if said else ""
        raise InputError(f"{len(groups)} rows of {source} have a response to learn from, at least 2 are needed{why}")
    order = np.random.default_rng(seed).permutation(list(groups)).tolist()
    aside = max(1, min(HELDOUT, max(len(groups) // 10, min(LEAST, len(groups) // 4))))
    train, heldout = (sorted(i for row in some for i in groups[row]) for some in (order[aside:], order[:aside]))
    found = TrainingData(samples, train, heldout)
    asked = loss is None or loss.teacher == "likeliest"
    if asked and isinstance(data, Selection) and data.about["scoring"]["top"]:
        scoring = data.about["scoring"]
        if teacher is not None and difference(teacher, scoring["dense"]):
            progress.say(f"  {teacher.name} is not the dense model of the selection: its own predictions are made")
            return found
        if scoring["tokenizer"] not in (hash_tokenizer(tokenizer), tokenizer_digest(tokenizer)):
            raise InputError(
                f"{data.directory} was scored with another tokenizer or chat template than that of the model, so its "
                "teacher says nothing here; use --loss sft, or select again with this model"
            )
        read = [piece for row in data.chosen for piece in np.flatnonzero(scored.owners == row).tolist()]
        found.teacher = Kept(Teacher(data.directory / SCORES), dict(enumerate(read)))
    return found


def plan_steps(data: TrainingData, tokens: int, batch_tokens: int, seed: int) -> list[list[int]]:
    """Rows of each step, epoch after epoch: at most so many tokens, and less than one row short of them.

    The last step takes what still fits; there is always one, at the least of the shortest row alone.
    """
    if tokens < 1:
        raise InputError(f"tokens is {tokens}, expected at least 1")
    steps: list[list[int]] = []
    lengths = [len(data.samples[row].ids) for row in data.train]
    left = tokens
    for epoch in itertools.count():
        for batch in shuffled(lengths, batch_tokens, seed + epoch):
            fitting = []
            for i in batch:
                if lengths[i] <= left:
                    fitting.append(data.train[i])
                    left -= lengths[i]
            if fitting:
                steps.append(fitting)
            if len(fitting) < len(batch):
                return steps or [[data.train[lengths.index(min(lengths))]]]
    raise AssertionError("epochs do not end")


def teach(
    data: TrainingData,
    loss: Loss,
    steps: Sequence[Sequence[int]],
    teacher: Loaded | None,
    model: Loaded,
    directory: Path,
    progress: Progress,
) -> None:
    """Gives the data the teacher that a loss needs; of one that only its likeliest tokens are wanted of reads now.

    Raises:
        InputError: there is none, or it does not predict the same tokens.
    """
    if loss.teacher is None or data.teacher is not None:
        return
    if teacher is None:
        raise InputError("distillation needs a teacher: give the dense model with --teacher, or use --loss sft")
    same_tokens(model, teacher)
    read = sorted({row for rows in steps for row in rows} | set(data.heldout))
    vocab = shared_tokens(teacher.model, model.model)
    check_ids(model.tokenizer, (data.samples[row].ids.tolist() for row in read), vocab)
    if loss.teacher == "model":
        data.teacher = Present.of(teacher, model)
        return
    progress.say(f"  the teacher reads {len(read):,} rows")
    samples = [data.samples[row] for row in read]
    score(teacher.model, None, samples, directory / "teacher", vocab=vocab, progress=progress)
    data.teacher = Kept(Teacher(directory / "teacher"), {row: at for at, row in enumerate(read)})
