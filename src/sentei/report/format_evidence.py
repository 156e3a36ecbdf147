"""What `evaluate` found, as types: evidence.json of a run."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import NotRequired

from sentei.report.format_parts import Exact, Maybe
from sentei.schema import Count, Interval, Number


class Cell(Exact):
    """A figure of one model on one text or task."""

    value: NotRequired[Maybe]
    acc: NotRequired[Maybe]
    n: NotRequired[Count]
    tokens: NotRequired[Count]
    interval: NotRequired[Interval | None]


class Against(Exact):
    """A figure of one model against another's."""

    ratio: NotRequired[Maybe]
    difference: NotRequired[Maybe]
    interval: NotRequired[Interval | None]


class Evaluated(Exact):
    """What `evaluate` says of one model."""

    params: Count
    block_params: Count
    perplexity: NotRequired[dict[str, Cell] | None]
    tasks: NotRequired[dict[str, Cell] | None]
    speed: NotRequired[dict[str, Maybe | Interval] | None]
    memory: NotRequired[dict[str, Any] | None]


class Comparison(Exact):
    """What it says of one model against another."""

    perplexity: NotRequired[dict[str, Against] | None]
    tasks: NotRequired[dict[str, Against] | None]
    speed: NotRequired[dict[str, Against | None] | None]


class Evidence(Exact):
    """evidence.json."""

    models: Annotated[list[Evaluated], Field(min_length=1)]
    calibrated_on: NotRequired[dict[str, Number]]
    comparisons: NotRequired[list[Comparison]]
    steps: NotRequired[list[Comparison]]
