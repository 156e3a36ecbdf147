"""Training: a plain loop over batches that were fixed beforehand, so that a killed one goes on exactly where it was.

Every step is a function of the parameters, the optimiser's moments and the step's number. A checkpoint is those three,
as safetensors and JSON, so resuming unpickles nothing and ends with the same bits.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from sentei.data.batches import Batch
from sentei.errors import InputError
from sentei.files import atomic_file, write_json
from sentei.progress import Progress
from sentei.recover.tune.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from sentei.recover.tune.regrow import Regrow

WARMUP = 0.1  # share of the steps in which the learning rate rises
CLIP = 1.0  # norm of the gradient
BETAS = (0.9, 0.95)
DIVERGED = 1.0  # nats by which the held-out loss may exceed that before all training
# Training losses are of other rows at every step, and of long or short ones, so they cannot tell: where their mean over
# RECENT steps is ALARM nats above all before the last look, the held-out rows are looked at early.
ALARM, RECENT = 1.0, 8

Reason = Literal["finished", "early stop", "diverged"]


@dataclass
class History:
    """What training saw.

    Attributes:
        curve: one entry per evaluation: step, tokens so far, mean training loss since the last one, held-out loss, and
            what else is watched.
        losses: training loss of each step.
        stopped: why it ended; None while it goes on.
        note: what a person should know about the end.
    """

    curve: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    stopped: Reason | None = None
    note: str = ""

    @property
    def best(self) -> dict[str, float]:
        """The evaluation with the lowest held-out loss: the state that is kept."""
        return min(self.curve, key=lambda point: point["heldout"])


class Trainer:
    """AdamW with warm-up and cosine decay on the trainable parameters of a model; keeps the best state it saw.

    Args:
        model: its parameters with `requires_grad` are trained. Those that are not fp32 get fp32 masters.
        loss: mean loss of a batch.
        batches: what step n reads, in order: `(tokens, make)`; `make` builds the batch.
        evaluate: mean loss on held-out rows.
        watch: further figures for the curve, which decide nothing.
        learning_rate: the highest.
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
        watch: Callable[[], dict[str, float]] = dict,
        evaluations: int = 10,
        patience: int | None = 3,
        directory: Path | None = None,
        regrow: Regrow | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.loss, self.batches, self.evaluate, self.watch = model, loss, batches, evaluate, watch
        self.learning_rate, self.patience = learning_rate, patience
        self.every = max(1, math.ceil(len(batches) / evaluations))
        self.directory, self.regrow, self.progress = directory, regrow, progress or Progress()
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.buffers = {name: value for name, value in model.state_dict().items() if not value.is_floating_point()}
        self.masters = [p if p.dtype == torch.float32 else p.detach().float() for p in self.params]
        self.optimizer = torch.optim.AdamW(self.masters, lr=learning_rate, betas=BETAS, weight_decay=0.0)
        self.history = History()
        self.best: list[Tensor] = []
        self.step = 0

    def run(self) -> History:
        """Trains to the end, an early stop or a divergence; the model ends in the best state seen."""
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
                if self.history.stopped is None and (due or self._alarmed()):
                    self._look(sum(tokens[: self.step]))
        self.history.stopped = self.history.stopped or "finished"
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
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            what = "loss" if not math.isfinite(value) else "gradient"
            self._diverged(f"the {what} is not a number at step {self.step + 1}")
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * self._rate()
        self.optimizer.step()
        if self.regrow:
            self.regrow.move(self.step + 1, self.optimizer)
        self._publish()
        self.history.losses.append(value)

    def _alarmed(self) -> bool:
        """Whether training losses are so much higher than before that the held-out rows must be asked now."""
        losses, looked = self.history.losses, int(self.history.curve[-1]["step"])
        if len(losses) < max(looked, RECENT) + RECENT:
            return False
        ends = range(RECENT, max(looked, RECENT) + 1)
        highest = max(sum(losses[end - RECENT : end]) for end in ends) / RECENT
        return sum(losses[-RECENT:]) / RECENT - highest > ALARM

    def _rate(self) -> float:
        """Share of the highest learning rate at this step: linear warm-up, then a cosine to nothing."""
        steps = len(self.batches)
        warm = max(1, round(WARMUP * steps))
        if self.step < warm:
            return (self.step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (self.step - warm) / max(1, steps - warm)))

    def _diverged(self, what: str) -> None:
        best = self.history.best
        self.history.stopped = "diverged"
        self.history.note = (
            f"training diverged: {what}; kept is the best state before, after {best['tokens']:,.0f} tokens; "
            "lower --learning-rate, or use bfloat16 instead of float16"
        )

    def _look(self, tokens: int) -> None:
        """Evaluates, keeps the state if it is the best, writes the checkpoint, and decides whether to go on."""
        heldout = self.evaluate()
        if not math.isfinite(heldout):
            if not self.history.curve:
                raise InputError(
                    "the held-out loss is not a number before any training: the model is broken, or float16 overflows; "
                    "evaluate the model, or use --dtype bfloat16"
                )
            self._diverged(f"the held-out loss is not a number after step {self.step}")
            return
        recent = self.history.losses[int(self.history.curve[-1]["step"]) if self.history.curve else 0 :]
        point = {"step": self.step, "tokens": tokens, "heldout": heldout, **self.watch()}
        if recent:
            point["train"] = sum(recent) / len(recent)
        self.history.curve.append(point)
        rise = heldout - self.history.curve[0]["heldout"]
        if rise > DIVERGED:
            self._diverged(f"the held-out loss has risen by {rise:.1f} nats after step {self.step}")
            return
        if self.history.best is point:
            self.best = [value.detach().clone() for value in self._kept()]
        since = len(self.history.curve) - 1 - self.history.curve.index(self.history.best)
        if self.patience is not None and since >= self.patience:
            self.history.stopped = "early stop"
            self.history.note = f"the held-out loss has not fallen for {since} evaluations"
        self._checkpoint()

    def _publish(self) -> None:
        """Masters into the parameters that have them."""
        with torch.no_grad():
            for param, master in zip(self.params, self.masters, strict=True):
                if master is not param:
                    param.copy_(master)

    def _kept(self) -> list[Tensor]:
        """What makes a state: parameters, and the integers (where sparse entries are) that they belong to."""
        return [*self.params, *self.buffers.values()]

    def _set(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for target, value in zip(self._kept(), values, strict=True):
                target.copy_(value)

    def _checkpoint(self) -> None:
        """Parameters, moments and best state, then the JSON that names the file: the rename makes it valid."""
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {f"buffer.{name}": value for name, value in self.buffers.items()}
        for name, best in zip([*self.names, *self.buffers], self.best, strict=True):
            tensors[f"best.{name}"] = best.contiguous()
        for key, value in (self.regrow.state() if self.regrow else {}).items():
            tensors[f"regrow.{key}"] = value
        for name, master in zip(self.names, self.masters, strict=True):
            tensors[f"value.{name}"] = master.detach().contiguous()
            for key, moment in self.optimizer.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = moment.contiguous()
        file = f"step-{self.step}.safetensors"
        with atomic_file(self.directory / file) as scratch:
            save_file({name: value.cpu() for name, value in tensors.items()}, scratch)
        history = {key: getattr(self.history, key) for key in ("curve", "losses", "stopped", "note")}
        write_json(self.directory / "state.json", {"step": self.step, "file": file, **history})
        for old in self.directory.glob("step-*.safetensors"):
            if old.name != file:
                old.unlink()

    def _restore(self) -> None:
        """Goes back to the checkpoint, if there is one."""
        if self.directory is None or not (self.directory / "state.json").exists():
            return
        names = [*self.names, *self.buffers]
        expected = {f"best.{name}": value for name, value in zip(names, self._kept(), strict=True)}
        expected |= {f"value.{name}": value for name, value in zip(self.names, self.masters, strict=True)}
        expected |= {f"buffer.{name}": value for name, value in self.buffers.items()}
        state, tensors = read_checkpoint(self.directory, expected)
        self.step = state["step"]
        self.history = History(state["curve"], state["losses"], state["stopped"], state["note"])
        self.best = [tensors[f"best.{name}"].to(t.device) for name, t in zip(names, self._kept(), strict=True)]
        if self.regrow:
            self.regrow.restore({k.removeprefix("regrow."): v for k, v in tensors.items() if k.startswith("regrow.")})
        with torch.no_grad():
            for name, value in self.buffers.items():
                value.copy_(tensors[f"buffer.{name}"])
            for name, master in zip(self.names, self.masters, strict=True):
                master.copy_(tensors[f"value.{name}"])
                moments = {key: tensors.get(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
                if moments["exp_avg"] is not None:
                    self.optimizer.state[master] = {
                        key: value.to(master.device if key != "step" else "cpu")
                        for key, value in moments.items()
                        if value is not None
                    }
        self._publish()
