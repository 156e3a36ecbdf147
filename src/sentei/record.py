"""stage.json: what a run keeps of a stage that is done."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import TypedDict

from sentei.schema import EXACT, Number, read


class StageRecord(TypedDict):
    """What is read of it; the summary is for people."""

    __pydantic_config__ = EXACT  # type: ignore[misc]

    key: str
    seconds: Number


def read_record(directory: Path) -> StageRecord:
    """The record of a stage.

    Raises:
        InputError: it cannot be read, or a key is missing or of another type.
    """
    return read(directory / "stage.json", StageRecord, f"remove {directory}, and the stage is done again")
