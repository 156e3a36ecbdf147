"""The checkpoint of a training, read: state.json and the safetensors file that it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from sentei.errors import InputError
from sentei.schema import EXACT, Count, Number, read


class State(TypedDict):
    """state.json."""

    __pydantic_config__ = EXACT  # type: ignore[misc]

    step: Count
    file: str
    curve: Annotated[list[dict[str, Number]], Field(min_length=1)]
    losses: list[Number]
    stopped: Literal["finished", "early stop", "diverged"] | None
    note: str


def read_checkpoint(directory: Path, expected: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """State and tensors.

    Args:
        directory: where `Trainer` writes it.
        expected: what has to be there, with its shape.

    Raises:
        InputError: it is damaged, or of another training.
    """
    mend = f"remove {directory}, and the training begins anew"
    state = read(directory / "state.json", State, mend)
    if "heldout" not in state["curve"][0]:
        raise InputError(f"{directory / 'state.json'}: curve: there is no 'heldout'; {mend}")
    file = directory / Path(state["file"]).name
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is truncated or corrupt ({error}); {mend}") from error
    for name, wanted in expected.items():
        got = tuple(tensors[name].shape) if name in tensors else "nothing"
        if got != tuple(wanted.shape):
            raise InputError(f"{file}: {name}: expected shape {tuple(wanted.shape)}, got {got}; {mend}")
    return state, tensors
