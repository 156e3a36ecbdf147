"""Which rows each stage trains on: a pool is read once (or as often as is said), in slices."""

from __future__ import annotations

from collections.abc import Sequence

from sentei.accel.schedule import divide, shares
from sentei.accel.settings import Settings
from sentei.errors import InputError
from sentei.recover.tune.data import TrainingData, plan_steps


def check_pool(data: TrainingData, settings: Settings) -> None:
    """Refuses a pool that is smaller than the slices.

    Raises:
        InputError: with its tokens, and how often it would have to be read.
    """
    there = data.size(data.train)
    if there * settings.epochs < settings.tokens:
        often = -(-settings.tokens // there)
        raise InputError(
            f"the pool has {there:,} tokens to train on, {settings.stages} stages want {settings.tokens:,}: give more "
            f"rows, lower tokens, or let it be read {often} times with epochs: {often}"
        )


def feed(data: TrainingData, settings: Settings) -> list[list[list[int]]]:
    """The steps of each stage, each the samples of a batch.

    Raises:
        InputError: a pool smaller than the slices, or a slice smaller than a step.
    """
    check_pool(data, settings)
    steps = plan_steps(data, settings.tokens, settings.step_tokens, settings.seed)
    parts = divide([data.size(rows) for rows in steps], shares(settings.stages, settings.slices))
    return [[steps[at] for at in part] for part in parts]


def tokens_of(data: TrainingData, steps: Sequence[Sequence[int]]) -> int:
    """Tokens of steps."""
    return sum(data.size(rows) for rows in steps)
