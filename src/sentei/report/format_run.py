"""The report of a run as types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from typing_extensions import NotRequired

from sentei.errors import unknown
from sentei.report.figures import UNITS
from sentei.report.format_accel import AccelRecord
from sentei.report.format_parts import BlockRow, Exact, Maybe
from sentei.report.format_recovery import Recovery
from sentei.schema import Count, Interval, Number


def _unit(name: str) -> str:
    if name not in UNITS:
        raise ValueError(str(unknown("unit", name, UNITS)))
    return name


Unit = Annotated[str, AfterValidator(_unit)]


class ChangeRow(Exact):
    """`figures.Change`."""

    value: Number
    interval: Interval | None
    kind: Literal["ratio", "points"]


class FigureRow(Exact):
    """`figures.Figure`."""

    group: Literal["size", "perplexity", "tasks", "speed", "memory"]
    name: str
    unit: Unit
    better: Literal["higher", "lower"]
    values: list[Maybe]
    intervals: list[Interval | None]
    samples: str
    changes: list[ChangeRow | None]
    steps: NotRequired[list[ChangeRow | None]]
    note: NotRequired[str]


class Proof(Exact):
    """A parity check."""

    passed: bool
    version: str
    prefill: dict[str, Any]
    decode: dict[str, Any]


class Timed(Exact):
    """The speed of an export."""

    dense_bytes: Count


class Exported(Exact):
    """One file of exports.json."""

    file: str
    route: str
    dtype: str
    bytes: Annotated[int, Field(gt=0)]
    padding_bytes: Count
    engines: list[str]
    serve: dict[str, str]
    parity: dict[str, Proof]
    not_run: dict[str, str]
    speed: Timed | None


class Prediction(Exact):
    """A figure of the plan beside what was measured."""

    name: str
    unit: Unit
    predicted: Number
    measured: Number
    note: str


class Method(Exact):
    """How it was pruned."""

    name: str
    score: str
    allocation: str
    compensation: str
    protect: NotRequired[str]
    weigh: NotRequired[str]
    line: str
    paper: str


class Calibration(Exact):
    """The calibration data."""

    data: str
    tokens: Count
    window: Count
    gradient_tokens: Count


class Proven(Exact):
    """What was measured, and how much of it."""

    texts: list[str]
    window: Count
    windows: Count | None
    limit: Count | None
    speed: bool


class Machine(Exact):
    """Where it was measured."""

    name: str
    device: str
    bf16: str
    threads: Count
    python: str
    torch: str
    transformers: str


class Protocol(Exact):
    """How it was measured."""

    calibration: Calibration
    prove: Proven
    dtype: str
    seed: Count
    machine: Machine
    hashes: dict[str, str]


class Words(Exact):
    """The budget."""

    words: str


class Recovering(Exact):
    """What the recipe says of recovery."""

    strict: NotRequired[bool]


class Asked(Exact):
    """The recipe."""

    recover: NotRequired[Recovering]


class RunReport(Exact):
    """Of `sentei run`."""

    sentei: str
    model: str
    budget: Words
    failed: NotRequired[dict[str, str]]
    method: Method
    models: Annotated[dict[str, Any], Field(min_length=2, max_length=3)]
    figures: list[FigureRow]
    average_accuracy: dict[str, Number]
    blocks: list[BlockRow]
    predictions: list[Prediction]
    protocol: Protocol
    seconds: dict[str, Number]
    recipe: Asked
    recovery: NotRequired[Recovery]
    accel: NotRequired[AccelRecord]
    calibrated_on: NotRequired[dict[str, Number]]
    exports: NotRequired[list[Exported]]


def unfit(report: Mapping[str, Any]) -> str:
    """What does not fit together, or nothing."""
    models, means = len(report["models"]), len(report["average_accuracy"])
    for row in report["figures"]:
        lengths = [len(row[key]) for key in ("values", "intervals")] + [len(row["changes"] or [0] * (models - 1)) + 1]
        if set(lengths) != {models} or len(row.get("steps") or [0] * (models - 2)) != models - 2:
            return f"figure {row['name']!r} is not of {models} models"
    tasks = [row for row in report["figures"] if row["group"] == "tasks"]
    if len({(len(row["changes"]), len(row.get("steps", []))) for row in tasks}) > 1:
        return "figures: tasks are set against different models"
    if ("protect" in report["method"]) != ("weigh" in report["method"]):
        return "method: expected protect and weigh, or neither"
    size = [row["values"] for row in report["figures"] if (row["group"], row["name"]) == ("size", "block params")]
    if len(size) != 1 or not all(size[0]):
        return "figures: the block params of every model are missing"
    return "" if means in (0, models) else f"average_accuracy is of {means} models, expected {models}"
