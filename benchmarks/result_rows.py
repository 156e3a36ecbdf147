"""Reading results, and writing them as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from common import RESULTS


def rows(name: str) -> list[dict[str, Any]]:
    """Results of one script; empty where it has not run."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A Markdown table; nothing where it has no rows."""
    lines = ["| " + " | ".join(row) + " |" for row in (list(head), *(list(row) for row in body))]
    return (
        ""
        if len(lines) == 1
        else "\n".join([lines[0], "|" + "---|" * lines[0].count(" | ") + "---|", *lines[1:]]) + "\n\n"
    )
