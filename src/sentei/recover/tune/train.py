"""Training: a plain loop over batches that were fixed beforehand, so that a killed one goes on exactly where it was.

Every step is a function of the parameters, the optimiser's moments and the step's number. A checkpoint is those three,
as safetensors and JSON, so resuming unpickles nothing and ends with the same bits.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from sentei.data.batches import Batch
from sentei.progress import Progress
from sentei.recover.tune.checkpoint import read_checkpoint, write_checkpoint
from sentei.recover.tune.guard import Guard, History

if TYPE_CHECKING:
    from sentei.recover.tune.regrow import Regrow

WARMUP = 0.1  # share of the steps in which the learning rate rises
CLIP = 1.0  # norm of the gradient
BETAS = (0.9, 0.95)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # Adam's state of a parameter


def cosine(step: int, steps: int) -> float:
    """Share of the highest learning rate at a step: linear warm-up, then a cosine to nothing."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Trainer:
    """AdamW on the trainable parameters of a model.

    Args:
        model: its parameters with `requires_grad` are trained. Those that are not fp32 get fp32 masters.
        loss: mean loss of a batch.
        batches: what step n reads, in order: `(tokens, make)`; `make` builds the batch.
        evaluate: mean loss on held-out rows.
        watch: further figures for the curve, which decide nothing.
        learning_rate: the highest.
        schedule: share of it at a step, of so many: `schedule(step, steps)`.
        keep: the state that the model ends in: the best of those that were looked at, or the last.
        evaluations: how often the held-out loss is looked at, and a checkpoint written; more often where the training
            loss rises.
        patience: evaluations without a better held-out loss before an early stop; None: never.
        directory: of the checkpoint; one that is there is gone on from.
        regrow: moves sparse entries between steps.
    """

    def __init__(
        self,
        model: Any,
        loss: Callable[[Batch], Tensor],
        batches: Sequence[tuple[int, Callable[[], Batch]]],
        evaluate: Callable[[], float],
        *,
        learning_rate: float,
        schedule: Callable[[int, int], float] = cosine,
        keep: Literal["best", "last"] = "best",
        watch: Callable[[], dict[str, float]] = dict,
        evaluations: int = 10,
        patience: int | None = 3,
        directory: Path | None = None,
        regrow: Regrow | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.loss, self.batches, self.evaluate, self.watch = model, loss, batches, evaluate, watch
        self.learning_rate, self.schedule, self.keep = learning_rate, schedule, keep
        self.every = max(1, math.ceil(len(batches) / evaluations))
        self.directory, self.regrow, self.progress = directory, regrow, progress or Progress()
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.buffers = {name: value for name, value in model.state_dict().items() if not value.is_floating_point()}
        self.masters = [p if p.dtype == torch.float32 else p.detach().float() for p in self.params]
        self.optimizer = torch.optim.AdamW(self.masters, lr=learning_rate, betas=BETAS, weight_decay=0.0)
        self.guard = Guard(patience, keeps_best=keep == "best")
        self.best: list[Tensor] = []
        self.step = 0

    @property
    def history(self) -> History:
        """What was seen so far."""
        return self.guard.history

    def run(self) -> History:
        """Trains to the end, an early stop or a divergence; the model ends in the state that is kept."""
        self._restore()
        tokens = [size for size, _ in self.batches]
        with self.progress.stage("tune", sum(tokens), "tokens") as bar:
            bar.advance(sum(tokens[: self.step]))
            if not self.history.curve:
                self._look(0)
            while self.step < len(self.batches) and self.history.stopped is None:
                self._train(self.batches[self.step][1]())
                bar.advance(tokens[self.step])
                self.step += 1
                due = self.step % self.every == 0 or self.step == len(self.batches)
                if self.history.stopped is None and (due or self.guard.is_alarmed()):
                    self._look(sum(tokens[: self.step]))
        self.history.stopped = self.history.stopped or "finished"
        if self.keep == "best":
            self._set(self.best)
        return self.history

    def _train(self, batch: Batch) -> None:
        """One step; a loss or gradient that is no number is not stepped on."""
        self.model.train()
        for param in self.params:
            param.grad = None
        watching = self.regrow.watching(self.step) if self.regrow else contextlib.nullcontext()
        with torch.random.fork_rng(devices=[]), watching:  # a model with dropout draws the same in a resumed run
            torch.manual_seed(self.step)
            loss = self.loss(batch)
            loss.backward()
        for param, master in zip(self.params, self.masters, strict=True):
            if master is not param:
                master.grad = None if param.grad is None else param.grad.float()
        norm = torch.nn.utils.clip_grad_norm_(self.masters, CLIP)
        value = float(loss.detach())
        if not self.guard.may_step(self.step, value, float(norm)):
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * self.schedule(self.step, len(self.batches))
        self.optimizer.step()
        if self.regrow:
            self.regrow.move(self.step + 1, self.optimizer)
        self._publish()
        self.history.losses.append(value)

    def _look(self, tokens: int) -> None:
        """Evaluates; where all is well, keeps the state if it is the best, and writes the checkpoint."""
        if not self.guard.look(self.step, tokens, self.evaluate(), self.watch):
            return
        if self.keep == "best" and self.history.best is self.history.curve[-1]:
            self.best = [value.detach().clone() for value in self._kept()]
        if self.directory is not None:
            best = dict(zip(self._kept_names(), self.best, strict=True)) if self.best else {}
            tensors = self.state() | {f"best.{name}": value for name, value in best.items()}
            tensors |= {f"regrow.{key}": value for key, value in (self.regrow.state() if self.regrow else {}).items()}
            write_checkpoint(self.directory, self.step, self.history, tensors)

    def state(self) -> dict[str, Tensor]:
        """What the next step is a function of, beside its number; see `load`.

        Returns:
            `value.NAME`, fp32, for each trained parameter, `step.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME` of those that
            have been stepped on, and `buffer.NAME`: the integers of the model. The tensors themselves, no copies.
        """
        tensors: dict[str, Tensor] = {f"buffer.{name}": value for name, value in self.buffers.items()}
        for name, master in zip(self.names, self.masters, strict=True):
            tensors[f"value.{name}"] = master.detach()
            for key, moment in self.optimizer.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = moment
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Starts from what `state` gave; a parameter without moments gets new ones at its first step."""
        with torch.no_grad():
            for name, value in self.buffers.items():
                value.copy_(tensors[f"buffer.{name}"])
            for name, master in zip(self.names, self.masters, strict=True):
                master.copy_(tensors[f"value.{name}"])
                if f"exp_avg.{name}" in tensors:
                    self.optimizer.state[master] = {
                        key: tensors[f"{key}.{name}"].to(master.device if key != "step" else "cpu", copy=True)
                        for key in MOMENTS
                    }
        self._publish()

    def _publish(self) -> None:
        """Masters into the parameters that have them."""
        with torch.no_grad():
            for param, master in zip(self.params, self.masters, strict=True):
                if master is not param:
                    param.copy_(master)

    def _kept(self) -> list[Tensor]:
        """What makes a state: parameters, and the integers (where sparse entries are) that they belong to."""
        return [*self.params, *self.buffers.values()]

    def _kept_names(self) -> list[str]:
        return [*self.names, *self.buffers]

    def _set(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for target, value in zip(self._kept(), values, strict=True):
                target.copy_(value)

    def _restore(self) -> None:
        """Goes back to the checkpoint, if there is one."""
        if self.directory is None:
            return
        kept = dict(zip(self._kept_names(), self._kept(), strict=True)) if self.keep == "best" else {}
        expected = {f"best.{name}": value for name, value in kept.items()}
        expected |= {f"value.{name}": value for name, value in zip(self.names, self.masters, strict=True)}
        expected |= {f"buffer.{name}": value for name, value in self.buffers.items()}
        found = read_checkpoint(self.directory, expected)
        if found is None:
            return
        self.step, self.guard.history, tensors = found
        self.best = [tensors[f"best.{name}"].to(value.device) for name, value in kept.items()]
        if self.regrow:
            self.regrow.restore({k.removeprefix("regrow."): v for k, v in tensors.items() if k.startswith("regrow.")})
        self.load(tensors)
