"""`accel`: cut a little, train a little, and again.

Source: Adapt-Accel (arXiv 2502.03460). What differs: Adam's moments are cut with the weights (`sentei.accel.moments`);
importance is measured again at every stage on one small set; each stage is planned for what is left of the *dense*
model, so that what a unit was too large for is not lost but asked for again, and KV groups go where rounding per stage
would keep them for ever; the dense model is the teacher.

A stage is three directories in the place of work: `cut/`, `checkpoint/` and `done/`. The first and the last appear
whole, and what follows reads them from there, so that a run that was killed at any moment ends with the same bits.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sentei.accel.cutting import Cutting, sizes_of
from sentei.accel.evidence import evidence, judging_windows
from sentei.accel.family import Family, load_state, rebuilt, save_state, stage_dir
from sentei.accel.feed import Feed, Steps, feed, tokens_of
from sentei.accel.schedule import rate
from sentei.accel.settings import Settings
from sentei.accel.trained import Trained, check_suits, rate_of, trained
from sentei.data.calibration import as_windows
from sentei.errors import QualityError
from sentei.families import family_of
from sentei.files import read_json, write_json
from sentei.models.load import Loaded, context_length
from sentei.models.save import save
from sentei.outputs import remove, replaced_dir
from sentei.plan import Budget, Plan
from sentei.progress import Progress, shown
from sentei.recover.attention import short_attention
from sentei.recover.tune.adapters.base import linears
from sentei.recover.tune.data import Source, TrainingData, read_data, teach
from sentei.recover.tune.guard import History
from sentei.recover.tune.impact import Impact, measure_impact
from sentei.recover.tune.loss import LOSSES, Loss
from sentei.recover.tune.train import Trainer
from sentei.recover.tune.tune import IMPACT_BATCHES

ROWS = 32  # held-out rows on which the distance to the dense model is told
LOOKS, LOOK_SHARE = 10, 0.1  # of held-out rows in a stage: at most so many, and of so much of its tokens


def accel(
    dense: Loaded,
    texts: Sequence[str],
    pool: Source,
    budget: Budget,
    settings: Settings,
    work: Path,
    *,
    prune: Mapping[str, Any] | None = None,
    teacher: Loaded | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Family:
    """Makes a model smaller in stages, each followed by training.

    Args:
        dense: the model; it stays as it is.
        texts: calibration text, on which importance is measured and cuts are fitted.
        pool: what is trained on; see `sentei.recover.tune.data.read_source`.
        budget: of the last stage.
        settings: see there.
        work: where everything goes; a run that was killed goes on from it. It has to be a place of these arguments
            alone: those of another call would find its stages.
        prune: how each stage is planned, arguments of `sentei.prune.planning.plan`; default: `method="structural"`.
        teacher: of losses that need one; default: the dense model.
        strict: refuse a pool with a bad row.
        progress: told about each stage.

    Raises:
        InputError: a stage that would remove nothing, a pool smaller than the slices, a teacher of other tokens.
        QualityError: training diverged at the first stage, so that there is no model to keep.
        InfeasibleError: no legal plan meets a stage's size.
    """
    progress, loss = shown(progress), LOSSES[settings.loss]
    check_suits(settings.train, family_of(dense.model.config).shape(dense.model.config))
    sizes = sizes_of(dense.model, budget, settings)
    window = min(settings.window, context_length(dense.model))
    windows = as_windows(list(texts), dense.tokenizer, window=window, tokens=settings.calibration)
    length = min(settings.length, context_length(dense.model))
    data = read_data(pool, dense.tokenizer, length, settings.seed, progress, teacher, loss, strict=strict)
    fed = feed(data, settings, dense.model, dense.tokenizer, work, progress)
    teach(data, loss, fed.reads, teacher or dense, dense, work, progress)
    way = trained(settings, functools.partial(_impact, data, loss, fed.first, progress))
    run = _Run(
        dense,
        settings,
        work,
        progress,
        loss,
        data,
        fed,
        way,
        Cutting(dense, budget, sizes, windows, prune or {"method": "structural"}, settings, way, progress),
        judging_windows(texts, dense, windows.ids.numel()),
        data.heldout_loss(loss, settings.step_tokens),
    )
    return run.go()


def _impact(data: TrainingData, loss: Loss, steps: Sequence[Sequence[int]], progress: Progress, model: Any) -> Impact:
    """The gradients of a model's linears over some batches of the first stage."""
    batches = [data.batch(rows) for rows in steps[:IMPACT_BATCHES]]
    with short_attention(model), progress.stage("impact", len(batches), "batches"):
        return measure_impact(model, batches, data.loss(loss), list(linears(model)))


@dataclass
class _Run:
    """One model on its way through the stages."""

    dense: Loaded
    settings: Settings
    work: Path
    progress: Progress
    loss: Loss
    data: TrainingData
    feed: Feed
    trained: Trained
    cutting: Cutting
    judging: Any
    heldout: Callable[[Any], float]

    def go(self) -> Family:
        """All stages that are not done."""
        record = asdict(self.settings) | {
            "learning_rate": rate_of(self.settings),
            "batch_tokens": self.settings.step_tokens,
            "rows": len(self.data.train),
            "heldout_rows": len(self.data.heldout),
        }
        family = Family(self.work, record=record)
        for stage in range(1, self.settings.stages + 1):
            done = stage_dir(self.work, stage) / "done"
            if not done.is_dir():
                with self.progress.stage(f"stage {stage} of {self.settings.stages}"):
                    history = self._stage(stage)
                if history.stopped == "diverged":
                    return self._stopped(family, stage, history)
            family.stages.append(read_json(done / "model" / "stage.json"))
        return family

    def _stopped(self, family: Family, stage: int, history: History) -> Family:
        """Training diverged at a stage: those before it are the result.

        Raises:
            QualityError: there are none.
        """
        where = f"stage {stage} of {self.settings.stages}: {history.note}"
        if stage == 1:
            raise QualityError(f"{where}; there is no stage before it, so that nothing is kept")
        family.stopped, family.note = "diverged", f"{where}; kept is the model of stage {stage - 1}"
        return family

    def _stage(self, stage: int) -> History:
        """One cut, one training, and what is said of the model; what is there of it already is gone on from."""
        place, before = stage_dir(self.work, stage), None
        if not (place / "cut").is_dir():
            before = stage_dir(self.work, stage - 1) / "done" if stage > 1 else None
            with replaced_dir(place / "cut") as scratch:
                self.cutting.cut(stage, before, scratch, self.work / "profile")
        plan, tensors = Plan.load(place / "cut" / "plan.json"), load_state(place / "cut" / "state.safetensors")
        model = rebuilt(self.dense.model, plan, tensors, self.trained.base)
        adapted = self.trained.wrap(model, tensors)
        steps = self.feed.steps(stage, functools.partial(self._plain, plan, tensors))
        trainer = self._trainer(stage, steps, adapted, model, place / "checkpoint")
        trainer.load(tensors)
        del tensors
        started = time.monotonic()
        with short_attention(model, self.dense.model):
            history = trainer.run()
        if history.stopped == "diverged":
            return history
        seconds = read_json(place / "cut" / "cut.json") | {"train": round(time.monotonic() - started, 3)}
        with replaced_dir(place / "done") as scratch:
            save_state(scratch / "state.safetensors", self.trained.state(adapted, trainer.state()))
            plain = self.trained.plain(adapted)
            rows = [self.data.samples[row] for row in self.data.heldout[:ROWS]]
            started = time.monotonic()
            found = evidence(self.dense.model, plain, rows, self.judging, place / "scores", self.progress)
            save(plain, scratch / "model", tokenizer=self.dense.tokenizer, plan=plan)
            seconds["evidence"] = round(time.monotonic() - started, 3)
            record = self._record(stage, plan, history, seconds) | {"evidence": found, **self.feed.told(stage)}
            write_json(scratch / "model" / "stage.json", record)
        for left in (place / "cut", place / "checkpoint", place / "scores", place / "damage"):
            remove(left)
        if stage > 1:
            remove(stage_dir(self.work, stage - 1) / "done" / "state.safetensors")
        self._tell(read_json(place / "done" / "model" / "stage.json"))
        return history

    def _plain(self, plan: Plan, tensors: Mapping[str, Tensor]) -> Any:
        """The model of a state."""
        return self.trained.effective(rebuilt(self.dense.model, plan, tensors, self.trained.base), tensors)

    def _trainer(self, stage: int, steps: Steps, adapted: Any, model: Any, directory: Path) -> Trainer:
        each, look = self.data.loss(self.loss), self.data.size(self.data.heldout)
        return Trainer(
            adapted,
            lambda batch: each(model, batch),
            [(self.data.size(rows), functools.partial(self.data.batch, rows)) for rows in steps],
            lambda: self.heldout(model),
            learning_rate=rate_of(self.settings),
            schedule=self._schedule(stage, steps),
            keep="last",
            evaluations=max(1, min(LOOKS, int(LOOK_SHARE * tokens_of(self.data, steps) / look))),
            patience=None,
            directory=directory,
            progress=self.progress,
        )

    def _read(self, stage: int) -> int:
        """Tokens that were trained on before a stage."""
        if stage == 1:
            return 0
        before: int = read_json(stage_dir(self.work, stage - 1) / "done" / "model" / "stage.json")["tokens_so_far"]
        return before

    def _schedule(self, stage: int, steps: Steps) -> Callable[[int, int], float]:
        """The share of the highest learning rate at a step of a stage."""
        read, middles = self._read(stage), []
        for rows in steps:
            middles.append((read + self.data.size(rows) / 2) / self.feed.total)
            read += self.data.size(rows)
        again = self.settings.rewarm if stage > 1 else 0

        def at(step: int, _steps: int) -> float:
            return rate(middles[step]) * min(1.0, (step + 1) / (again + 1))

        return at

    def _record(self, stage: int, plan: Plan, history: History, seconds: dict[str, float]) -> dict[str, Any]:
        """stage.json, but for the evidence."""
        shape, dense, tokens = plan.shape(), plan.dense, int(history.curve[-1]["tokens"])
        return {
            "schema_version": 1,
            "stage": stage,
            "target": self.cutting.sizes[stage - 1],
            "params": shape.params(),
            "block_params": shape.block_params(),
            "share": shape.block_params() / dense.block_params(),
            "kv_groups": [sum(b.kv_groups for b in s.blocks) for s in (shape, dense)],
            "ffn": [sum(b.ffn for b in s.blocks) for s in (shape, dense)],
            "tokens": tokens,
            "tokens_so_far": self._read(stage) + tokens,
            "steps": len(history.losses),
            "curve": history.curve,
            "seconds": seconds,
        }

    def _tell(self, record: Mapping[str, Any]) -> None:
        """One line, and one event: loss and size as they are now."""
        first, last = record["curve"][0]["heldout"], record["curve"][-1]["heldout"]
        jsd = record["evidence"]["rows"]["jsd"]
        self.progress.event(
            "accel", **{key: record[key] for key in ("stage", "block_params", "share", "tokens_so_far")}
        )
        self.progress.say(
            f"  stage {record['stage']}: {record['share']:.1%} of the block params, held-out loss {first:.3f} after "
            f"the cut, {last:.3f} after {record['tokens']:,} tokens"
            + ("" if jsd is None else f"; {jsd:.4f} nats from the dense model")
        )
