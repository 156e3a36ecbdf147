"""Recovery in the report of a run, as types: tune.json and capabilities.json too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import NotRequired

from sentei.report.format_parts import Exact, Maybe
from sentei.schema import Count, Interval, Number


class Mean(Exact):
    """A damage with its interval."""

    value: Maybe
    interval: Interval | None


class Damages(Exact):
    """Damage before and after recovery."""

    rows: Count
    before: Mean
    after: Mean
    came_back: Maybe
    interval: Interval | None


class Capability(Damages):
    """Of one capability."""

    name: str
    typical: NotRequired[str]
    pool_rows: Count
    selected: Count
    share: Number


class CurvePoint(Exact):
    """Of the recovery curve."""

    tokens: Number
    heldout: Number


class Tune(Exact):
    """tune.json."""

    adapter: str
    trainable_params: Count
    loss: str
    tokens: Count
    stopped: str
    note: str
    recommendation: str
    curve: Annotated[list[CurvePoint], Field(min_length=1)]


class Pool(Exact):
    """What rows were selected from."""

    source: str
    rows: Count


class Amount(Exact):
    """What was selected."""

    selected: Count
    tokens: Count


class Yardstick(Exact):
    """Which model is kept."""

    kept: Literal["recovered", "pruned"]
    reason: str
    enough: Count
    rows: Damages
    text: Damages


class Capabilities(Exact):
    """capabilities.json."""

    capabilities: list[Capability]
    overall: Damages
    yardstick: Yardstick
    notes: list[str]


class Cost(Exact):
    """What recovery cost."""

    seconds: dict[str, Number]
    trained_tokens: Count
    scored_tokens: Count
    watt_hours: NotRequired[Number]
    money: NotRequired[Number]
    currency: NotRequired[str]


class Recovery(Capabilities):
    """What recovery did."""

    pool: Pool
    strategy: str
    budget: Amount
    tune: Tune
    cost: Cost
