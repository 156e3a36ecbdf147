"""The task that a model is fitted to: a YAML file with data, metric, templates and splits. See docs/tasks.md."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sentei.data.templates import Template, parse_path
from sentei.errors import nearest, unknown
from sentei.schema import Positive, Seed, parse, read_yaml

CHOICE_METRICS = ("acc", "acc_norm")
METRICS = (*CHOICE_METRICS, "exact_match", "f1", "perplexity")
PYTHON = "python:"

# What a preset leaves to say is `data`. Sizes are given where the public file has fewer rows than the default asks for.
PRESETS: dict[str, dict[str, Any]] = {
    "intent": {"input": "{text}\nIntent:", "target": " {intent}", "metric": "acc"},
    "pubmedqa": {"metric": "acc", "splits": {"calibrate": 150, "search": 100, "confirm": 100, "test": 150}},
    "hotpotqa": {
        "input": "{facts[*]}\nQuestion: {question}\nAnswer:",
        "target": " {answer}",
        "metric": "f1",
        "max_new_tokens": 24,
        "splits": {"calibrate": 100, "search": 70, "confirm": 60, "test": 70},
    },
    "rte": {"metric": "acc"},
    "arc": {"metric": "acc", "splits": {"calibrate": 400, "search": 250, "confirm": 200, "test": 250}},
    "openbookqa": {"metric": "acc_norm"},
    "sentiment": {"metric": "acc", "splits": {"calibrate": 60, "search": 50, "confirm": 40, "test": 50}},
}


class SplitSizes(BaseModel):
    """Rows of each split.

    Attributes:
        calibrate: statistics and first fine-tuning.
        search: candidates are compared on these.
        confirm: the winner is measured again on these.
        test: read once, at the end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    calibrate: Positive = 500
    search: Positive = 300
    confirm: Positive = 300
    test: Positive = 300

    def as_dict(self) -> dict[str, int]:
        """Sizes by name, in the order in which the splits are filled."""
        return dict(self)


class TaskFile(BaseModel):
    """A task.

    Attributes:
        name: for reports.
        data: a .jsonl, .jsonl.gz, .parquet or .json file, a directory of them, or `hf:name[:config[:split]]`.
        preset: gives what is not said here; see `PRESETS`.
        metric: acc, acc_norm, exact_match, f1, perplexity, `python:module.function` or `python:file.py:function`.
        input: template of the context; without templates, rows are {context, choices, label}.
        target: template of what is to follow it, the space before it included.
        aliases: path of the accepted answers, such as `answers[*]`, where there are several.
        splits: rows of each.
        seed: of the division into splits.
        max_new_tokens: of a generated answer; by default 8 more than the longest target has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1)
    data: str = Field(min_length=1)
    preset: str | None = None
    metric: str = "acc"
    input: str | None = None
    target: str | None = None
    aliases: str | None = None
    splits: SplitSizes = SplitSizes()
    seed: Seed = 0
    max_new_tokens: Positive | None = None

    @classmethod
    def load(cls, path: str | Path) -> TaskFile:
        """Reads a YAML file; paths in it are made absolute: beside the file, else in the working directory.

        Raises:
            InputError: missing, not YAML (line and column), an unknown key or preset (with the nearest), a template
                that is none, or a value out of range.
        """
        path = Path(path)
        keys = "`name:` and `data:`"
        task: TaskFile = parse(cls, read_yaml(path, f"a task is a YAML file with {keys}", keys), str(path))
        metric, data, folder = task.metric, task.data, path.absolute().parent
        if metric.startswith(PYTHON) and ":" in metric.removeprefix(PYTHON):
            file, _, function = metric.removeprefix(PYTHON).rpartition(":")
            metric = f"{PYTHON}{_beside(folder, file)}:{function}"
        if not data.startswith("hf:"):
            data = str(_beside(folder, data))
        return task.model_copy(update={"data": data, "metric": metric})

    @property
    def templates(self) -> tuple[Template, Template] | None:
        """Those of input and target, or None where the rows have choices."""
        if self.input is None or self.target is None:
            return None
        return Template.parse(self.input), Template.parse(self.target)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        preset = value.get("preset") if isinstance(value, dict) else None
        if preset is None:
            return value
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(str(unknown("preset", str(preset), PRESETS)))
        whole = {"name": preset, **PRESETS[preset], **value}
        if isinstance(value.get("splits"), dict):  # one size can be changed alone
            whole["splits"] = {**PRESETS[preset].get("splits", {}), **value["splits"]}
        return whole

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric.startswith(PYTHON):
            rest = metric.removeprefix(PYTHON)
            place, _, function = rest.rpartition(":" if ":" in rest else ".")
            if not place or not function.isidentifier():
                raise ValueError(
                    f"{metric!r} is no function; expected python:module.function or python:file.py:function"
                )
        elif metric not in METRICS:
            raise ValueError(
                f"unknown metric {metric!r}{nearest(metric, METRICS)}; known: {', '.join(METRICS)}, "
                "python:module.function"
            )
        return metric

    @field_validator("input", "target")
    @classmethod
    def _template(cls, text: str | None) -> str | None:
        if text is not None:
            Template.parse(text)
        return text

    @field_validator("aliases")
    @classmethod
    def _path(cls, text: str | None) -> str | None:
        if text is not None:
            parse_path(text)
        return text

    @model_validator(mode="after")
    def _whole(self) -> TaskFile:
        if (self.input is None) != (self.target is None):
            given, missing = ("target", "input") if self.input is None else ("input", "target")
            raise ValueError(
                f"there is {given!r} but no {missing!r}; give both templates, or none for rows with choices"
            )
        if self.aliases is not None and (self.target is None or self.metric in (*CHOICE_METRICS, "perplexity")):
            raise ValueError(
                "'aliases' needs templates and a metric that judges an answer: exact_match, f1 or python:…"
            )
        return self


def _beside(folder: Path, name: str) -> Path:
    """A path that is looked up beside the file, then in the working directory."""
    return Path(name).absolute() if not os.path.exists(folder / name) and os.path.exists(name) else folder / name
