"""stage.json: what a run keeps of a stage that is done."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from typing_extensions import NotRequired, TypedDict

from sentei.schema import EXACT, Number, read


class MachineRecord(TypedDict):
    """What is read of what `sentei.machine.describe` said where a stage was made."""

    __pydantic_config__ = EXACT  # type: ignore[misc]

    device: str
    name: str
    bf16: str
    dtype: Literal["bfloat16", "float16", "float32", "stored"]


class StageRecord(TypedDict):
    """What is read of it; the summary is for people."""

    __pydantic_config__ = EXACT  # type: ignore[misc]

    key: str
    seconds: Number
    machine: NotRequired[MachineRecord]


def read_record(directory: Path) -> StageRecord:
    """The record of a stage.

    Raises:
        InputError: it cannot be read, or a key is missing or of another type.
    """
    return read(directory / "stage.json", StageRecord, f"remove {directory}, and the stage is done again")
