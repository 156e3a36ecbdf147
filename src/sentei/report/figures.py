"""One list of figures, whoever shows them: what was measured, of each model, how sure it is, and the change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Group = Literal["size", "perplexity", "tasks", "speed", "memory"]
Kind = Literal["ratio", "points"]


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
    """

    group: Group
    name: str
    unit: str
    better: Literal["higher", "lower"]
    values: list[float | None]
    intervals: list[tuple[float, float] | None]
    samples: str
    changes: list[Change | None]

    @property
    def change(self) -> Change | None:
        """From the first model to the second."""
        return self.changes[0] if self.changes else None

    def show(self, value: float | None) -> str:
        """A value in words, for tables."""
        return show(value, self.unit)

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Figure:
        """From report.json."""
        changes = [Change(**change) if change else None for change in row["changes"]]
        return cls(**{**row, "changes": changes})


def scaled(value: float, steps: Sequence[str] = ("", "k", "M", "G", "T")) -> str:
    """`106.2 M` for 106,202,880."""
    for step in steps[:-1]:
        if abs(value) < 999.5:
            return f"{value:.4g} {step}".strip()
        value /= 1000
    return f"{value:,.4g} {steps[-1]}"


def show(value: float | None, unit: str) -> str:
    """A value with its unit in words."""
    return "–" if value is None else _SHOW[unit](value)


_SHOW: dict[str, Callable[[float], str]] = {
    "parameters": scaled,
    "ratio": lambda v: f"×{v:.3g}",
    "nats": lambda v: f"{v:.4f} nats",
    "perplexity": lambda v: f"{v:,.2f}",
    "accuracy": lambda v: f"{100 * v:.1f} %",
    "tokens/s": lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.1f}",
    "bytes": lambda v: scaled(v, ("B", "kB", "MB", "GB", "TB")),
}

_SIZES = {"block_params": "block params", "params": "all params"}
_SPEEDS = {"prefill_tokens_per_s": "prefill", "decode_tokens_per_s": "decode"}
_MEMORY = {
    "weights_bytes": "weights",
    "kv_cache_bytes": "KV cache",
    "peak_rss_bytes": "peak of the process",
    "disk_bytes": "on disk",
}


def collect(evidence: Mapping[str, Any]) -> list[Figure]:
    """All figures of what `evaluate` returned, for one model or several."""
    models = evidence.get("models", [evidence])
    pairs = evidence.get("comparisons", [])
    figures = [_plain(models, (), key, "size", name, "parameters", "lower") for key, name in _SIZES.items()]
    for text in _keys(models, "perplexity"):
        figures.append(_measured(models, pairs, "perplexity", text, "value", "perplexity", "lower", "ratio"))
    for task in _keys(models, "tasks"):
        figures.append(_measured(models, pairs, "tasks", task, "acc", "accuracy", "higher", "points"))
    figures += [
        _plain(models, ("speed",), key, "speed", name, "tokens/s", "higher")
        for key, name in _SPEEDS.items()
        if _has(models, "speed", key)
    ]
    figures += [
        _plain(models, ("memory",), key, "memory", name, "bytes", "lower")
        for key, name in _MEMORY.items()
        if _has(models, "memory", key)
    ]
    return figures


def average(figures: Iterable[Figure], keep: Callable[[str], bool] = lambda name: True) -> list[float]:
    """Mean accuracy over the tasks of each model; empty without tasks."""
    rows = [f.values for f in figures if f.group == "tasks" and keep(f.name) and None not in f.values]
    return [sum(v for v in column if v is not None) / len(rows) for column in zip(*rows, strict=True)]


def _keys(models: Sequence[Mapping[str, Any]], section: str) -> list[str]:
    return list(dict.fromkeys(key for model in models for key in model.get(section) or {}))


def _has(models: Sequence[Mapping[str, Any]], section: str, key: str) -> bool:
    return any((model.get(section) or {}).get(key) is not None for model in models)


def _ratio(value: float | None, first: float | None) -> float | None:
    return value / first if value is not None and first else None


def _plain(
    models: Sequence[Mapping[str, Any]],
    path: tuple[str, ...],
    key: str,
    group: Group,
    name: str,
    unit: str,
    better: Literal["higher", "lower"],
) -> Figure:
    values: list[float | None] = []
    for model in models:
        for part in path:
            model = model.get(part) or {}
        values.append(model.get(key))
    ratios = [_ratio(value, values[0]) for value in values[1:]]
    changes = [Change(ratio, None, "ratio") if ratio is not None else None for ratio in ratios]
    return Figure(group, name, unit, better, values, [None] * len(values), "", changes)


def _measured(
    models: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]],
    group: Literal["perplexity", "tasks"],
    name: str,
    key: str,
    unit: str,
    better: Literal["higher", "lower"],
    kind: Kind,
) -> Figure:
    cells = [(model.get(group) or {}).get(name) or {} for model in models]
    values = [cell.get(key) for cell in cells]
    changes: list[Change | None] = []
    for pair in pairs:
        found = (pair.get(group) or {}).get(name)
        interval = found.get("interval") if found else None
        value = (found.get("ratio") if kind == "ratio" else found.get("difference")) if found else None
        changes.append(Change(value, tuple(interval) if interval else None, kind) if value is not None else None)
    first = cells[0]
    samples = f"{first['n']:,} rows" if "n" in first else f"{first['tokens']:,} tokens" if "tokens" in first else ""
    intervals = [tuple(cell["interval"]) if cell.get("interval") else None for cell in cells]
    return Figure(group, name, unit, better, values, intervals, samples, changes)
