"""export.json: what an export is, and what was proven of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from sentei.errors import InputError, for_shell
from sentei.schema import EXACT, Count, read
from sentei.ship import ROUTES


class ExportFacts(TypedDict):
    """export.json: what is read of it."""

    __pydantic_config__ = EXACT  # type: ignore[misc]

    route: str
    model: str
    digest: str
    loaded: str
    dtype: str
    bytes: Count
    engines: list[str]
    unreachable: dict[str, str]
    serve: dict[str, str]
    parity: dict[str, dict[str, Any]]
    not_run: dict[str, str]


def facts_path(export: Path) -> Path:
    """Where the facts of an export are: in the directory, or beside the file."""
    return export / "export.json" if export.is_dir() else export.with_name(f"{export.name}.json")


def read_facts(export: Path) -> dict[str, Any]:
    """The facts of an export.

    Raises:
        InputError: nothing there, or not made by `sentei export`.
    """
    if not export.exists():
        raise InputError(f"{export} does not exist; make it with sentei export MODEL --to … --out {for_shell(export)}")
    if not facts_path(export).exists():
        raise InputError(f"{facts_path(export)} is missing, so {export} is no export of sentei; export the model again")
    facts: dict[str, Any] = dict(read(facts_path(export), ExportFacts, "export the model again"))
    if facts["route"] not in ROUTES:
        raise InputError(f"{facts_path(export)} names no known route; export the model again")
    return facts
