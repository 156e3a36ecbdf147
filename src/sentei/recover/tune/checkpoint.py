"""The checkpoint of a training: state.json and the safetensors file that it names, whose rename makes it valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from sentei.errors import InputError
from sentei.files import atomic_file, write_json
from sentei.recover.tune.guard import History
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


def write_checkpoint(directory: Path, step: int, history: History, tensors: Mapping[str, Tensor]) -> None:
    """The tensors, then the JSON that names their file; older files go.

    Args:
        directory: made where it is missing.
        step: steps done.
        history: so far.
        tensors: all that the next step is a function of.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = f"step-{step}.safetensors"
    with atomic_file(directory / file) as scratch:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, scratch)
    write_json(directory / "state.json", {"step": step, "file": file, **asdict(history)})
    for old in directory.glob("step-*.safetensors"):
        if old.name != file:
            old.unlink()


def read_checkpoint(directory: Path, expected: Mapping[str, Tensor]) -> tuple[int, History, dict[str, Tensor]] | None:
    """Steps done, history and tensors; None where there is no checkpoint.

    Args:
        directory: where `write_checkpoint` put it.
        expected: what has to be there, with its shape.

    Raises:
        InputError: it is damaged, or of another training.
    """
    if not (directory / "state.json").exists():
        return None
    mend = f"remove {directory}, and the training begins anew"
    state: Any = read(directory / "state.json", State, mend)
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
    history = History(state["curve"], state["losses"], state["stopped"], state["note"])
    return state["step"], history, tensors
