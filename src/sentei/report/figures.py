"""One list of figures, whoever shows them: what was measured, of each model, how sure it is, and the change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from sentei.metrics.intervals import mean_of

Group = Literal["size", "perplexity", "tasks", "speed", "memory"]
Kind = Literal["ratio", "points"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Change:
    """From the first model to another one: a ratio, or a difference in points of per cent, with its paired interval."""

    value: float
    interval: tuple[float, float] | None
    kind: Kind

    def __str__(self) -> str:
        return self.show(self.value)

    def show(self, value: float) -> str:
        """A value of this kind in words."""
        return show(value, "ratio") if self.kind == "ratio" else f"{100 * value:+.1f}".replace("-", "−")

    @property
    def between(self) -> str:
        """The interval in words, or nothing."""
        return f"{self.show(self.interval[0])} … {self.show(self.interval[1])}" if self.interval else ""


@dataclass(frozen=True)
class Figure:
    """One measured quantity.

    Attributes:
        group: what kind of figure it is.
        name: of the text, the task or the quantity.
        unit: of the values.
        better: which direction is good.
        values: one per model, in the order of the models; None where it was not measured.
        intervals: 95 % intervals of the values.
        samples: how many rows, tokens or rounds it rests on.
        changes: against the first model, one per other model.
        steps: against the model before, one per model from the third on; empty where there are two.
        note: what a reader must know to read the values right; empty where there is nothing.
    """

    group: Group
    name: str
    unit: str
    better: Better
    values: list[float | None]
    intervals: list[tuple[float, float] | None]
    samples: str
    changes: list[Change | None]
    steps: list[Change | None] = field(default_factory=list)
    note: str = ""

    @property
    def change(self) -> Change | None:
        """From the first model to the second."""
        return self.changes[0] if self.changes else None

    @property
    def outcome(self) -> Change | None:
        """From the first model to the last."""
        return self.changes[-1] if self.changes else None

    def show(self, value: float | None) -> str:
        """A value in words, for tables."""
        return show(value, self.unit)

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {key: value for key, value in asdict(self).items() if value or key not in ("steps", "note")}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Figure:
        """From report.json."""
        pairs = {
            key: [Change(**_known(Change, change)) if change else None for change in row.get(key, [])]
            for key in ("changes", "steps")
        }
        return cls(**{**_known(cls, row), **pairs})


def _known(kind: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row is a field; a report of a later version may hold more."""
    return {key.name: row[key.name] for key in fields(kind) if key.name in row}


def scaled(value: float, steps: Sequence[str] = ("", "k", "M", "G", "T")) -> str:
    """`106.2 M` for 106,202,880."""
    for step in steps[:-1]:
        if abs(value) < 999.5:
            return f"{value:.4g} {step}".strip()
        value /= 1000
    return f"{value:,.4g} {steps[-1]}"


def show(value: float | None, unit: str) -> str:
    """A value with its unit in words."""
    return "–" if value is None else UNITS[unit](value)


UNITS: dict[str, Callable[[float], str]] = {
    "parameters": scaled,
    "ratio": lambda v: f"×{v:.2f}" if v < 10 else f"×{v:,.1f}",
    "nats": lambda v: f"{v:.4f} nats",
    "perplexity": lambda v: f"{v:,.2f}",
    "accuracy": lambda v: f"{100 * v:.1f} %",
    "tokens/s": lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.1f}",
    "bytes": lambda v: scaled(v, ("B", "kB", "MB", "GB", "TB")),
}

_SIZES = {"block_params": "block params", "params": "all params"}
_MEMORY = {
    "weights_bytes": "weights",
    "kv_cache_bytes": "KV cache",
    "peak_rss_bytes": "peak of the process",
    "peak_device_bytes": "peak of the device",
    "disk_bytes": "on disk, as stored",
}


def collect(evidence: Mapping[str, Any]) -> list[Figure]:
    """All figures of what `evaluate` returned, for one model or several."""
    models, pairs = evidence.get("models", [evidence]), evidence.get("comparisons", [])
    steps = evidence.get("steps", [])

    def cells(section: str, name: str) -> list[Any]:
        return [(model.get(section) or {}).get(name) for model in models]

    def names(section: str) -> list[str]:
        return list(dict.fromkeys(name for model in models for name in model.get(section) or {}))

    def measured(group: Group, name: str, value: str, unit: str, better: Better, change: str, kind: Kind) -> Figure:
        found = [cell or {} for cell in cells(group, name)]

        def changes(pairs: Sequence[Mapping[str, Any]]) -> list[Change | None]:
            paired = [(pair.get(group) or {}).get(name) or {} for pair in pairs]
            return [None if cell.get(change) is None else Change(cell[change], _ends(cell), kind) for cell in paired]

        return Figure(
            group,
            name,
            unit,
            better,
            [cell.get(value) for cell in found],
            [_ends(cell) for cell in found],
            _samples(found),
            changes(pairs),
            changes(steps),
            answers_note(found),
        )

    def speed(name: str) -> Figure:
        paired = [(pair.get("speed") or {}).get(name) for pair in pairs]
        values = cells("speed", f"{name}_tokens_per_s")
        spreads = [tuple(spread) if spread else None for spread in cells("speed", f"{name}_spread")]
        changes = [Change(cell["ratio"], _ends(cell), "ratio") if cell else None for cell in paired]
        return Figure("speed", name, "tokens/s", "higher", values, spreads, "", changes)

    def counted(group: Group, name: str, values: list[float | None], unit: str) -> Figure:
        first = values[0]
        comparable = name != _MEMORY["disk_bytes"]  # a dense model is often stored in another dtype than the pruned one
        changes = [Change(v / first, None, "ratio") if v and first and comparable else None for v in values[1:]]
        return Figure(group, name, unit, "lower", values, [None] * len(values), "", changes)

    return [
        *(counted("size", name, [model.get(key) for model in models], "parameters") for key, name in _SIZES.items()),
        *(measured("perplexity", n, "value", "perplexity", "lower", "ratio", "ratio") for n in names("perplexity")),
        *(measured("tasks", n, "acc", "accuracy", "higher", "difference", "points") for n in names("tasks")),
        *(speed(name) for name in ("prefill", "decode") if f"{name}_tokens_per_s" in names("speed")),
        *(counted("memory", n, cells("memory", key), "bytes") for key, n in _MEMORY.items() if key in names("memory")),
    ]


def mean_accuracy(figures: Iterable[Figure]) -> Figure | None:
    """Mean accuracy over the tasks, each of which counts alike; its intervals are joined from theirs. None without."""
    tasks = [f for f in figures if f.group == "tasks" and None not in f.values]
    if not tasks:
        return None
    columns = list(zip(*(f.values for f in tasks), strict=True))
    values = [sum(v for v in column if v is not None) / len(tasks) for column in columns]
    between = zip(*(f.intervals for f in tasks), strict=True)
    intervals = [mean_of([v or 0.0 for v in column], some) for column, some in zip(columns, between, strict=True)]

    def joined(rows: Sequence[list[Change | None]]) -> list[Change | None]:
        return [_joined(column) for column in zip(*rows, strict=True)]

    return Figure(
        "tasks",
        "mean accuracy",
        "accuracy",
        "higher",
        list(values),
        intervals,
        f"{len(tasks)} task{'s' if len(tasks) > 1 else ''}",
        joined([f.changes for f in tasks]),
        joined([f.steps for f in tasks]),
    )


def _joined(changes: Sequence[Change | None]) -> Change | None:
    """The mean of changes in points."""
    known = [change for change in changes if change is not None]
    if len(known) < len(changes):
        return None
    values = [change.value for change in known]
    return Change(sum(values) / len(values), mean_of(values, [change.interval for change in known]), "points")


def answers_note(cells: Sequence[Mapping[str, Any]]) -> str:
    """Where the answers are the same in all rows: the accuracy of always giving one, and how often each model does."""
    majority = cells[0].get("majority")
    if not majority:
        return ""
    answer = majority["answer"]
    said = " → ".join(f"{100 * cell['said'].get(answer, 0.0):.0f} %" for cell in cells if cell.get("said"))
    return f"always {answer!r} scores {show(majority['share'], 'accuracy')}; said in {said}"


def _ends(cell: Mapping[str, Any]) -> tuple[float, float] | None:
    return tuple(cell["interval"]) if cell.get("interval") else None


def _samples(cells: Sequence[Mapping[str, Any]]) -> str:
    first, diverged = cells[0], any(cell.get("diverged") for cell in cells)
    count = f"{first['n']:,} rows" if "n" in first else f"{first['tokens']:,} tokens" if "tokens" in first else ""
    words = [cell["worse_than_guessing"] for cell in cells if "worse_than_guessing" in cell]
    worse = f", worse than guessing among {max(words):,} tokens" if words else ""
    return count + (", diverged" if diverged else "") + worse
