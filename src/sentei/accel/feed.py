"""Which rows each stage trains on: slices of a pool in random order, or what the cut has damaged most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sentei.accel.family import stage_dir
from sentei.accel.schedule import divide, shares
from sentei.accel.settings import Settings
from sentei.data.batches import shuffled
from sentei.errors import InputError
from sentei.files import read_json, write_json
from sentei.progress import Progress
from sentei.recover.select.budget import split, take_tokens
from sentei.recover.select.cluster import cluster
from sentei.recover.select.damage import score
from sentei.recover.select.embed import embed
from sentei.recover.select.names import keywords
from sentei.recover.tune.data import TrainingData, plan_steps

PROBES = 8  # rows of each capability whose damage is measured at a stage
Steps = list[list[int]]  # samples of each batch


class Feed(Protocol):
    """What is trained on."""

    @property
    def total(self) -> int:
        """Tokens of all stages."""
        ...

    @property
    def first(self) -> Steps:
        """Some batches, for what has to be known before the first stage."""
        ...

    @property
    def reads(self) -> Steps:
        """Batches of all samples that may be trained on."""
        ...

    def steps(self, stage: int, model: Callable[[], Any]) -> Steps:
        """Those of a stage (the first is 1); the same when asked again after a kill. `model`: makes the cut one."""
        ...

    def told(self, stage: int) -> dict[str, Any]:
        """What is to be said of a stage's choice."""
        ...


def feed(data: TrainingData, settings: Settings, dense: Any, tokenizer: Any, work: Path, progress: Progress) -> Feed:
    """By the settings.

    Raises:
        InputError: a pool smaller than the slices, or a slice smaller than a step.
    """
    there = data.size(data.train)
    if there * settings.epochs < settings.tokens:
        often = -(-settings.tokens // there)
        raise InputError(
            f"the pool has {there:,} tokens to train on, {settings.stages} stages want {settings.tokens:,}: give more "
            f"rows, lower tokens, or let it be read {often} times with epochs: {often}"
        )
    sliced = Sliced(data, settings)
    return sliced if settings.select == "none" else ByDamage(sliced, dense, tokenizer, work, progress)


class Sliced:
    """A pool in random order, in consecutive slices."""

    def __init__(self, data: TrainingData, settings: Settings) -> None:
        self.data, self.settings = data, settings
        steps = plan_steps(data, settings.tokens, settings.step_tokens, settings.seed)
        parts = divide([data.size(rows) for rows in steps], shares(settings.stages, settings.slices))
        self.slices = [[steps[at] for at in part] for part in parts]

    @property
    def total(self) -> int:
        """See `Feed`."""
        return sum(self.data.size(rows) for steps in self.slices for rows in steps)

    @property
    def first(self) -> Steps:
        """See `Feed`."""
        return self.slices[0]

    @property
    def reads(self) -> Steps:
        """See `Feed`."""
        return [rows for steps in self.slices for rows in steps]

    def steps(self, stage: int, model: Callable[[], Any]) -> Steps:
        """See `Feed`."""
        return self.slices[stage - 1]

    def told(self, stage: int) -> dict[str, Any]:
        """Nothing: nothing was chosen."""
        return {}


@dataclass
class ByDamage:
    """Rows that were not read yet, from each capability as much as the cut has damaged it.

    At every stage some rows of each capability (a cluster of questions, as of `select`) are read by the dense and the
    cut model. The stage's tokens are shared out in proportion to the mean divergence, and taken at random within each.
    """

    sliced: Sliced
    dense: Any
    tokenizer: Any
    work: Path
    progress: Progress

    @property
    def total(self) -> int:
        """See `Feed`."""
        return self.sliced.settings.tokens

    @property
    def first(self) -> Steps:
        """See `Feed`."""
        return self.sliced.first

    @property
    def reads(self) -> Steps:
        """See `Feed`."""
        return [self.sliced.data.train]

    @cached_property
    def _labels(self) -> np.ndarray:
        """The capability of each sample of the training rows, int64."""
        file = self.work / "clusters.json"
        if not file.is_file():
            texts = [self._question(row) for row in self.sliced.data.train]
            vectors = embed(texts, device=self.dense.device, progress=self.progress)
            found = cluster(vectors, seed=self.sliced.settings.seed)
            grouped: list[list[str]] = [[] for _ in range(found.clusters)]
            for text, label in zip(texts, found.labels, strict=True):
                grouped[label].append(text)
            write_json(file, {"labels": found.labels.tolist(), "names": keywords(grouped)})
        return np.array(read_json(file)["labels"], dtype=np.int64)

    def _question(self, row: int) -> str:
        sample = self.sliced.data.samples[row]
        asked = sample.ids[: int(sample.response.argmax())] if not sample.response[1] else sample.ids
        return str(self.tokenizer.decode(asked.tolist(), skip_special_tokens=True))

    def steps(self, stage: int, model: Callable[[], Any]) -> Steps:
        """See `Feed`."""
        file = stage_dir(self.work, stage) / "steps.json"
        if not file.is_file():
            write_json(file, self._chosen(stage, model()))
        return self._past(stage)

    def _past(self, stage: int) -> Steps:
        found: Steps = read_json(stage_dir(self.work, stage) / "steps.json")["steps"]
        return found

    def told(self, stage: int) -> dict[str, Any]:
        """Damage and tokens of each capability."""
        return {"selection": read_json(stage_dir(self.work, stage) / "steps.json")["selection"]}

    def _chosen(self, stage: int, model: Any) -> dict[str, Any]:
        data, settings, labels = self.sliced.data, self.sliced.settings, self._labels
        read = Counter(row for before in range(1, stage) for rows in self._past(before) for row in rows)
        generator = np.random.default_rng([settings.seed, stage])
        order: list[np.ndarray] = []
        for label in range(int(labels.max()) + 1):
            rows = [data.train[at] for at in np.flatnonzero(labels == label)]
            order.append(generator.permutation([row for row in rows if read[row] < settings.epochs]).astype(np.int64))
        probes = [row for rows in order for row in rows[:PROBES].tolist()]
        place = stage_dir(self.work, stage) / "damage"
        jsd = score(self.dense, model, [data.samples[row] for row in probes], place, top=0, progress=self.progress).jsd
        known = dict(zip(probes, jsd.tolist(), strict=True))
        damage = [
            float(np.mean([known[row] for row in rows[:PROBES].tolist()])) if len(rows) else 0.0 for rows in order
        ]
        sizes = np.array([len(sample.ids) for sample in data.samples], dtype=np.int64)
        wanted = round(settings.tokens * shares(settings.stages, settings.slices)[stage - 1])
        parts = split(wanted, damage, [int(sizes[rows].sum()) for rows in order])
        taken = take_tokens(order, sizes, parts)
        rows = np.concatenate(taken).tolist()
        if not rows:
            raise InputError(f"stage {stage}: no row fits into its {wanted:,} tokens; raise tokens or lower stages")
        batches = shuffled([int(sizes[row]) for row in rows], settings.step_tokens, settings.seed + stage)
        names = read_json(self.work / "clusters.json")["names"]
        return {
            "steps": [[rows[at] for at in batch] for batch in batches],
            "selection": [
                {"name": name, "damage": value, "rows": len(some), "tokens": int(sizes[some].sum())}
                for name, value, some in zip(names, damage, taken, strict=True)
            ],
        }


def tokens_of(data: TrainingData, steps: Sequence[Sequence[int]]) -> int:
    """Tokens of steps."""
    return sum(data.size(rows) for rows in steps)
