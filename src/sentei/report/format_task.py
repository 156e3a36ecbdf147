"""The reports of a fit and of a frontier as types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import NotRequired

from sentei.report.format_parts import BlockRow, Ends, Exact, Maybe
from sentei.schema import Count, Number


class TaskAbout(Exact):
    """The task of a fit or a frontier."""

    name: str
    metric: str
    higher: bool
    data: str
    rows: dict[Literal["calibrate", "search", "confirm", "test"], Count]
    chance: NotRequired[Maybe]
    vocab: NotRequired[Count]


class Healing(Exact):
    """How cut models were trained."""

    tokens: Count
    adapter: str
    loss: str
    learning_rate: Number
    patience: Count | None


class Made(Exact):
    """How models were made."""

    calibration_tokens: Count
    length: Count
    healing: Healing | None


class Test(Exact):
    """The test rows of a fit."""

    dense: Number
    pruned: Maybe
    interval: Ends
    rows: Count
    met: bool


class Fit(Exact):
    """The verdict of a fit."""

    tolerance: Number
    strict: bool
    search: str
    removed_in_place: Number
    dense: Number
    looks: Count
    verdict: Literal["met", "missed"]
    searched: Maybe
    confirmed: Maybe
    interval: Ends | None
    removed: Maybe
    rows_needed: Count | None
    test: Test | None
    evaluations: Number
    cuts: Number
    stopped: str
    cuts_ended: NotRequired[str]
    dense_trained: NotRequired[dict[Literal["confirm", "test"], Maybe] | None]
    minutes: Number


class Sized(Exact):
    """Sizes of a model."""

    block_params: Count
    params: Count
    flops_per_token: Count
    bytes: Count


class BothSizes(Exact):
    """Of the dense model and of the one that was found."""

    dense: Sized
    pruned: NotRequired[Sized]


class Evaluation(Exact):
    """A row of a search's history."""

    by: str
    removed: Number
    rows: Count
    value: Maybe
    met: bool | None
    evaluations: Number


class FitReport(Exact):
    """Of `sentei fit`."""

    sentei: str
    model: str
    task: TaskAbout
    fit: Fit
    made: NotRequired[Made]
    sizes: BothSizes
    history: list[Evaluation]
    blocks: list[BlockRow]
    seconds: dict[str, Number]


class Latency(Exact):
    """Predicted seconds."""

    prefill_seconds: Number
    decode_seconds: Number


class Point(Exact):
    """One model of a frontier; 0 is the dense one."""

    number: Count
    plan: NotRequired[str]
    file: NotRequired[str]
    removed: Number
    value: Maybe
    change: Maybe
    interval: Ends | None
    sizes: Sized
    blocks: NotRequired[list[BlockRow]]
    latency: NotRequired[Latency]


class Given(Exact):
    """The command line of a frontier."""

    model: str
    task: str
    out: str
    options: NotRequired[list[str]]


class Quality(Exact):
    """The dense model, trained alike."""

    value: Maybe
    change: Maybe
    interval: Ends


class FrontierReport(Exact):
    """Of `sentei frontier`."""

    sentei: str
    model: str
    task: TaskAbout
    made: NotRequired[Made]
    dense_trained: NotRequired[Quality]
    points: Annotated[list[Point], Field(min_length=1)]
    given: NotRequired[Given]


def unfit_fit(report: Mapping[str, Any]) -> str:
    fit = report["fit"]
    if len(report["task"]["rows"]) != 4:
        return "task.rows: expected calibrate, search, confirm and test"
    if fit["confirmed"] is not None and (fit["removed"] is None or fit["interval"] is None):
        return "fit.confirmed is there, but fit.removed or fit.interval is not"
    if fit["verdict"] == "met" and (fit["confirmed"] is None or "pruned" not in report["sizes"]):
        return "fit.verdict is met, but fit.confirmed or sizes.pruned is missing"
    if fit.get("dense_trained") and len(fit["dense_trained"]) != 2:
        return "fit.dense_trained: expected confirm and test"
    return "" if all(report["sizes"]["dense"].values()) else "sizes.dense: a model has sizes above 0"


def unfit_frontier(report: Mapping[str, Any]) -> str:
    points = report["points"]
    if [point["number"] for point in points] != sorted({point["number"] for point in points}):
        return "points: numbers must grow"
    if points[0]["number"] or points[0]["value"] is None:
        return "points: the first is the dense model, with number 0 and a value"
    if any(key not in point for point in points[1:] for key in ("plan", "file", "blocks")):
        return "points: a smaller model has plan, file and blocks"
    if any((point["value"] is None) != (point["change"] is None) for point in points):
        return "points: a value has a change"
    return "" if len(report["task"]["rows"]) == 4 else "task.rows: expected calibrate, search, confirm and test"
