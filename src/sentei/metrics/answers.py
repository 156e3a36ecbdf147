"""What a row of a task scores, and what the scores of many rows come to."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sentei.data.task_file import CHOICE_METRICS, METRICS, PYTHON
from sentei.data.task_rows import TaskRow
from sentei.errors import InputError, one_line, unknown

Floats = NDArray[np.float64]
Judge = Callable[[str, TaskRow], float]


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: as in the task file.
        higher: whether more is better.
        kind: what it needs: log-probabilities of `choices` or of the `target`, or the `text` that the model writes.
        judge: for `text`, the score of a prediction.
    """

    name: str
    higher: bool
    kind: Literal["choices", "target", "text"]
    judge: Judge | None = None

    def aggregate(self, score: Floats, weight: Floats | None = None) -> float:
        """The value of rows: the mean of their scores, or for perplexity exp of their mean loss per token.

        Args:
            score: of each row, [n].
            weight: what each row counts for, [n]: `Outcome.weight`. By default all rows count alike, which for
                perplexity is only right where all targets have the same number of tokens.
        """
        with np.errstate(over="ignore"):
            mean = np.average(score, weights=weight)
            return float(np.exp(mean) if self.name == "perplexity" else mean)


def metric_of(name: str, rows: Sequence[TaskRow] = ()) -> Metric:
    """The metric of a name, for some rows: an exact match among several accepted answers needs the text.

    Raises:
        InputError: an unknown name, or a Python function that cannot be had.
    """
    if name.startswith(PYTHON):
        return Metric(name, True, "text", partial(_ask, _function(name)))
    if name not in METRICS:
        raise unknown("metric", name, [*METRICS, "python:module.function"])
    if name in CHOICE_METRICS:
        return Metric(name, True, "choices")
    if name == "f1":
        return Metric(name, True, "text", _best(f1))
    if name == "exact_match" and any(row.aliases for row in rows):
        return Metric(name, True, "text", _best(lambda a, b: float(normalise(a) == normalise(b))))
    return Metric(name, name != "perplexity", "target")


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and spare white space.

    Source: the evaluation script of SQuAD, arXiv 1606.05250.
    """
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def f1(prediction: str, target: str) -> float:
    """Harmonic mean of precision and recall over the words of two normalised texts; 1 where both are empty.

    Source: the evaluation script of SQuAD, arXiv 1606.05250.
    """
    said, asked = normalise(prediction).split(), normalise(target).split()
    if not said or not asked:
        return float(said == asked)
    return 2 * sum((Counter(said) & Counter(asked)).values()) / (len(said) + len(asked))


def _best(compare: Callable[[str, str], float]) -> Judge:
    """The best agreement with any of the accepted answers."""
    return lambda prediction, row: max(compare(prediction, answer) for answer in (row.target, *row.aliases))


def _function(name: str) -> Callable[[str, dict[str, Any]], Any]:
    """The function behind `python:module.function` or `python:file.py:function`."""
    rest = name.removeprefix(PYTHON)
    place, _, function = rest.rpartition(":" if ":" in rest else ".")
    try:
        module = _from_file(Path(place)) if ":" in rest else importlib.import_module(place)
    except Exception as error:  # the user's code runs here, and raises what it likes
        raise InputError(
            f"metric {name}: {place} cannot be imported: {type(error).__name__}: {one_line(error)}; "
            "give the name of an installed module, or python:file.py:function"
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"metric {name}: {place} has no function {function!r}; define it there, or mend the name")
    return found


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _ask(function: Callable[[str, dict[str, Any]], Any], prediction: str, row: TaskRow) -> float:
    """What the user's function says of a prediction.

    Raises:
        InputError: it raised, or gave no finite number; with the row.
    """
    name = getattr(function, "__name__", repr(function))
    try:
        value = function(prediction, dict(row.raw))
    except Exception as error:
        raise InputError(
            f"{row.place}: the metric {name} raised {type(error).__name__}: {one_line(error)}, "
            f"for the prediction {prediction!r:.60}; mend the function"
        ) from error
    if not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise InputError(
            f"{row.place}: the metric {name} returned {value!r:.60}, expected a finite number, "
            f"for the prediction {prediction!r:.60}; mend the function"
        )
    return float(value)
