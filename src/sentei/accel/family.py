"""The models of a run of accel: one per stage, each with its plan from the dense model and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sentei.families import family_of
from sentei.families.surgery import skeleton
from sentei.plan import BlockPlan, Plan


@dataclass
class Family:
    """What accel made.

    Attributes:
        directory: `stage-NN/done/` of each stage that ended well: `model/`, which loads like any other, with what was
            measured of it in `stage.json`; and `profile/`, of the dense model.
        stages: the contents of these files, in order.
        stopped: "finished", or "diverged" at a stage, whose model is not among them.
        note: what a person should know about the end.
        record: what was asked for, and what is the same for all stages.
    """

    directory: Path
    stages: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = "finished"
    note: str = ""
    record: dict[str, Any] = field(default_factory=dict)

    def model(self, stage: int) -> Path:
        """The directory of a stage's model; the first is 1."""
        return stage_dir(self.directory, stage) / "done" / "model"


def stage_dir(directory: Path, stage: int) -> Path:
    """Where a stage is."""
    return directory / f"stage-{stage:02d}"


def composed(first: Plan | None, second: Plan) -> Plan:
    """Two cuts in a row as one: `second` was made for what `first` leaves; None: for the dense model itself."""
    if first is None:
        return second
    blocks = []
    for a, b in zip(first.blocks, second.blocks, strict=True):
        pairs = zip(b.kv_groups, b.query_heads, strict=True)
        blocks.append(
            BlockPlan(
                kv_groups=[a.kv_groups[group] for group in b.kv_groups],
                query_heads=[[a.query_heads[group][head] for head in heads] for group, heads in pairs],
                ffn=[a.ffn[channel] for channel in b.ffn],
                reason=b.reason,
            )
        )
    kept = {"model": first.model, "profile": first.profile, "dense": first.dense}
    return second.model_copy(update={"blocks": blocks, **kept})


def save_state(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes the state of a training; `path` is in a directory that appears whole."""
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def load_state(path: Path) -> dict[str, Tensor]:
    """Reads what `save_state` wrote."""
    found: dict[str, Tensor] = load_file(path)
    return found


@torch.no_grad()
def rebuilt(dense: Any, plan: Plan, tensors: Mapping[str, Tensor], kind: str) -> Any:
    """The model that `plan` leaves of the dense one, with the values of its blocks from a state.

    Args:
        dense: says everything outside of the blocks, dtype and device.
        plan: from the dense model.
        tensors: a state.
        kind: of its tensors, such as "value".
    """
    model = skeleton(dense, plan.shape())
    start = f"{family_of(model.config).blocks_at}."
    for name, param in model.named_parameters():
        if name.startswith(start):
            param.copy_(tensors[f"{kind}.{name}"])
    return model
