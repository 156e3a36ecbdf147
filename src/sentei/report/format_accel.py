"""Cutting and training in turns, in the report of a run, as types: accel.json."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sentei.report.format_parts import Exact, Maybe
from sentei.report.format_recovery import CurvePoint
from sentei.schema import Count, Interval, Number


class Distance(Exact):
    """The mean divergence from the dense model."""

    count: Count
    jsd: Maybe
    interval: Interval | None


class OnText(Exact):
    """Perplexity."""

    value: Maybe
    interval: Interval | None


class StageEvidence(Exact):
    """What was measured of a stage's model."""

    rows: Distance
    text: Distance
    perplexity: OnText


class StageRecord(Exact):
    """stage.json."""

    stage: Count
    params: Count
    block_params: Count
    share: Number
    kv_groups: list[Count]
    ffn: list[Count]
    tokens: Count
    tokens_so_far: Count
    curve: Annotated[list[CurvePoint], Field(min_length=1)]
    seconds: dict[str, Number]
    evidence: StageEvidence


class AccelRecord(Exact):
    """accel.json."""

    stages: Count
    train: str
    loss: str
    moments: str
    refitted: str
    learning_rate: Number
    stopped: str
    note: str
    family: Annotated[list[StageRecord], Field(min_length=1)]
