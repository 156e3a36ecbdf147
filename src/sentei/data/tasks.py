"""Multiple-choice task sets from JSONL files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentei.data.rows import read_jsonl, stem
from sentei.errors import InputError

CHOICES = {"context": str, "choices": list, "label": int}
_CONTEXTS = {"contexts": list, "continuation": str, "label": int}


@dataclass(frozen=True)
class TaskSet:
    """Rows of one task, all in one of two forms.

    `{"context", "choices", "label"}`: choice i is scored by log P(" " + choices[i] | context).
    `{"contexts", "continuation", "label"}` (winogrande, partial scoring): by log P(" " + continuation | contexts[i]).
    """

    name: str
    rows: list[dict[str, Any]]

    @property
    def partial(self) -> bool:
        """Whether the contexts differ and the continuation is scored."""
        return "contexts" in self.rows[0]


def read_task(path: str | Path) -> TaskSet:
    """Reads a .jsonl or .jsonl.gz file; the set is named after the file, without its format.

    Raises:
        InputError: missing, empty, not UTF-8, a broken line, or a row in none of the two forms (file and line).
    """
    path = Path(path)
    rows: list[dict[str, Any]] = []
    form: dict[str, type] | None = None
    for number, row in read_jsonl(path):
        form = form or (_CONTEXTS if "contexts" in row else CHOICES)
        if wrong := wrong_row(row, form):
            raise InputError(
                f"{path}:{number}: {wrong}; expected {', '.join(CHOICES)} or {', '.join(_CONTEXTS)}, one form per file"
            )
        rows.append({key: row[key] for key in form})
    if not rows:
        raise InputError(f"{path} is empty: there is no row in it; give a file with some")
    return TaskSet(stem(path), rows)


def wrong_row(row: dict[str, Any], form: dict[str, type]) -> str:
    """What is wrong with a row, or an empty string."""
    for key, kind in form.items():
        if key not in row:
            return f"there is no {key!r} (found: {', '.join(row) or 'none'})"
        if not isinstance(row[key], kind) or isinstance(row[key], bool):
            return f"{key!r} is {type(row[key]).__name__}, expected {kind.__name__}"
    options = row["contexts" if form is _CONTEXTS else "choices"]
    if len(options) < 2 or not all(isinstance(option, str) and option for option in options):
        return f"expected at least two non-empty strings to choose from, got {options!r:.80}"
    if form is _CONTEXTS and not row["continuation"]:
        return "'continuation' is empty"
    if not 0 <= row["label"] < len(options):
        return f"label {row['label']} is out of range for {len(options)} options (0 to {len(options) - 1})"
    return ""
