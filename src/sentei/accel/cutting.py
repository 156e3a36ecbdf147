"""The cut of a stage: measure what is there, plan for the stage's size, cut, and take the optimiser's state along."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentei.accel.family import composed, load_state, rebuilt, save_state
from sentei.accel.schedule import check_steps, targets
from sentei.accel.settings import Settings
from sentei.accel.trained import Trained
from sentei.data.windows import Windows
from sentei.families import family_of
from sentei.files import write_json
from sentei.measure.collect import measure
from sentei.models.identity import digest
from sentei.models.load import Loaded
from sentei.plan import Budget, Plan
from sentei.progress import Progress
from sentei.prune.cut import cut
from sentei.prune.methods import method
from sentei.prune.planning import parts_of, plan


@dataclass(frozen=True)
class Cutting:
    """How every stage is cut.

    Attributes:
        dense: the model before all cuts.
        budget: of the last stage; says the unit of sizes, and what is legal.
        sizes: after each stage.
        windows: of calibration text, the same at each stage.
        prune: arguments of `plan`.
        settings: see there.
        trained: what is trained, and so has to be cut too.
        progress: told about each pass.
    """

    dense: Loaded
    budget: Budget
    sizes: list[int]
    windows: Windows
    prune: Mapping[str, Any]
    settings: Settings
    trained: Trained
    progress: Progress

    def cut(self, stage: int, before: Path | None, out: Path, profile: Path) -> None:
        """Writes `plan.json` (from the dense model), `state.safetensors` and `cut.json` (seconds of each part).

        Args:
            stage: its number, from 1.
            before: the directory of the finished stage before it; None: there is none.
            out: where to.
            profile: where the first stage leaves the profile of the dense model.
        """
        seconds, started = {}, time.monotonic()

        def took(part: str) -> None:
            nonlocal started
            seconds[part], started = round(time.monotonic() - started, 3), time.monotonic()

        first = tensors = None
        model = self.dense.model
        if before is not None:
            first, tensors = Plan.load(before / "model" / "plan.json"), load_state(before / "state.safetensors")
            model = self.trained.effective(rebuilt(model, first, tensors, self.trained.base), tensors)
        took("load")
        size = self.sizes[stage - 1]
        if first is not None and tensors is not None and self.budget.cost(first.shape()) <= size:
            self.progress.say(f"  stage {stage}: the one before it went below {size:,} already, nothing is cut")
            made, state = first, tensors
        else:
            loaded = self.dense
            if first is not None:
                name = f"{self.dense.name}, stage {stage - 1}"
                loaded = Loaded(model, self.dense.tokenizer, name, digest(model, self.dense.tokenizer))
            planned = self._planned(loaded, size, profile if first is None else None, took)
            tokens = self.windows.ids.numel()
            small = cut(loaded, planned, self.windows, tokens=tokens, progress=self.progress)
            took("cut")
            made = composed(first, planned)
            state = self.trained.start(small) if tensors is None else self.trained.cut(tensors, model, small, planned)
        made.save(out / "plan.json")
        save_state(out / "state.safetensors", state)
        took("moments")
        write_json(out / "cut.json", seconds)

    @property
    def _score(self) -> str:
        """The score by which the stages are planned."""
        return parts_of(method(self.prune["method"]), self.prune.get("score"))[0]

    def _planned(self, loaded: Loaded, size: int, keep: Path | None, took: Any) -> Plan:
        windows = self.windows
        profile = measure(
            loaded,
            windows,
            tokens=windows.ids.numel(),
            gradient_tokens=self.settings.gradient_tokens,
            scores=[self._score],
            ranks=False,
            progress=self.progress,
        )
        if keep is not None:
            profile.save(keep, overwrite=True)
        took("measure")
        planned = plan(profile, sized(self.budget, size), seed=self.settings.seed, **self.prune)
        took("plan")
        return planned


def sizes_of(dense: Any, budget: Budget, settings: Settings) -> list[int]:
    """Sizes after each stage, in the unit of the budget.

    Raises:
        InputError: a stage that would remove nothing.
        InfeasibleError: the dense model is smaller than the budget.
    """
    shape = family_of(dense.config).shape(dense.config)
    whole = budget.cost(shape)
    found = targets(whole, budget.target(shape), settings.stages, settings.targets)
    check_steps(whole, found, unit_of(dense, budget))
    return found


def sized(budget: Budget, size: int) -> Budget:
    """A budget of so much, in the unit of another and with its limits."""
    return budget.model_copy(update={"sparsity": None, budget.metric: size})


def unit_of(dense: Any, budget: Budget) -> int:
    """Size of the smallest thing that a plan can remove, in the unit of the budget."""
    shape = family_of(dense.config).shape(dense.config)
    whole = budget.cost(shape)
    step = budget.limits.ffn_multiple
    found = []
    for index, block in enumerate(shape.blocks):
        less = [block.model_copy(update={"ffn": block.ffn - step})] if block.ffn > step else []
        if block.kv_groups > 1:
            less.append(block.model_copy(update={"kv_groups": block.kv_groups - 1}))
        for smaller in less:
            blocks = (*shape.blocks[:index], smaller, *shape.blocks[index + 1 :])
            found.append(whole - budget.cost(shape.model_copy(update={"blocks": blocks})))
    return max(1, min(found, default=1))
