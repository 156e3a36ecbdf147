"""report.json and frontier.json, read: what the pages and tables read of them is checked; they may hold more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sentei.errors import InputError
from sentei.files import read_json
from sentei.report.format_run import RunReport, unfit
from sentei.report.format_task import FitReport, FrontierReport, unfit_fit, unfit_frontier
from sentei.schema import parse

# Of each kind its type, and what says where its parts do not fit together.
KINDS: dict[str, tuple[Any, Callable[[Mapping[str, Any]], str]]] = {
    "run": (RunReport, unfit),
    "fit": (FitReport, unfit_fit),
    "frontier": (FrontierReport, unfit_frontier),
}


def read_report(path: Path, kinds: tuple[str, ...] = tuple(KINDS)) -> tuple[str, dict[str, Any]]:
    """The kind of a report, and the report.

    Raises:
        InputError: not one of these kinds, or a key that is missing or of another type.
    """
    report, mend = read_json(path), f"{path} was changed or is of another version; make it again"
    kind = report.get("kind", "run") if isinstance(report, dict) else None
    if kind not in kinds:
        raise InputError(f"{path} is no report of {' or '.join(kinds)}: kind is {kind!r:.80}")
    format, unfit = KINDS[kind]
    report = parse(format, report, str(path), mend)
    if wrong := unfit(report):
        raise InputError(f"{path}: {wrong}; {mend}")
    return kind, report
