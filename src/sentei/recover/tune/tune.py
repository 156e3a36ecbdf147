"""`tune`: trains the few parameters that matter, on a selection or any pool, from the text, a teacher, or both."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sentei.data.batches import Batch, by_length, pad, shuffled
from sentei.data.chat import Sample, encode, tokenizer_digest
from sentei.data.pools import PoolRow, read_pool
from sentei.errors import InputError, nearest
from sentei.files import atomic_dir, write_json
from sentei.models.load import Loaded, context_length
from sentei.progress import Progress
from sentei.prove.forward import evaluating
from sentei.recover.attention import short_attention
from sentei.recover.select.damage import score
from sentei.recover.select.selection import SCORES, Selection
from sentei.recover.teacher import Teacher
from sentei.recover.tune.adapters import ADAPTERS, Context
from sentei.recover.tune.adapters.base import count, linears, trainable
from sentei.recover.tune.loss import LOSSES, response_loss
from sentei.recover.tune.train import History, Trainer

LENGTH = 512
BATCH_TOKENS = 2048
HELDOUT = 64  # rows, or a tenth of the data where that is less
IMPACT_BATCHES = 8
GOOD_ENOUGH = 0.95  # share of the whole gain at which the curve recommends to stop


@dataclass
class Tuned:
    """What `tune` made.

    Attributes:
        adapted: the model with its adapter, not yet merged; the model itself after full tuning.
        tokenizer: of the model.
        record: JSON: settings, sizes, the recovery curve, the recommendation, what it cost.
    """

    adapted: Any
    tokenizer: Any
    record: dict[str, Any]

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the merged model, which loads like the one that was tuned; `adapter/` and `tune.json` beside it.

        The adapter is merged into the model: afterwards `adapted` is the plain model.

        Raises:
            InputError: the directory is not empty, or cannot be written.
        """
        from peft import PeftModel

        from sentei.models.save import save
        from sentei.plan import Plan
        from sentei.recover.tune.adapters.files import merge, save_adapter

        with atomic_dir(Path(directory), overwrite=overwrite) as scratch, tempfile.TemporaryDirectory() as aside:
            if isinstance(self.adapted, PeftModel):
                save_adapter(self.adapted, Path(aside) / "adapter")
            self.adapted = merge(self.adapted)
            source = Path(self.adapted.name_or_path or ".")
            plan = Plan.load(source / "plan.json") if (source / "plan.json").is_file() else None
            save(self.adapted, scratch, tokenizer=self.tokenizer, plan=plan)
            if (Path(aside) / "adapter").exists():
                shutil.copytree(Path(aside) / "adapter", scratch / "adapter")
            write_json(scratch / "tune.json", self.record)
        return Path(directory)


@dataclass
class _Data:
    """Samples, how they are divided, and what the teacher says of them."""

    samples: list[Sample]
    train: list[int]
    heldout: list[int]
    teacher: Teacher | None = None
    known: dict[int, int] = field(default_factory=dict)  # sample -> row of the teacher

    def loss(self, kind: str) -> Callable[[Any, Batch], Any]:
        """The loss of a batch of these samples, for any model."""

        def of(model: Any, batch: Batch) -> Any:
            soft = None
            batch = batch.to(next(model.parameters()).device)
            if kind != "sft" and self.teacher is not None:
                soft = self.teacher.soft(batch, [self.known[row] for row in batch.rows])
            return response_loss(model, batch, soft=soft, kind=kind)

        return of


def tune(
    model: Loaded,
    data: str | Path | Selection | Sequence[dict[str, Any]],
    *,
    adapter: str = "lora+sparse",
    budget_params: str | float = "1%",
    tokens: int = 200_000,
    teacher: Loaded | None = None,
    loss: str | None = None,
    learning_rate: float | None = None,
    length: int = LENGTH,
    batch_tokens: int = BATCH_TOKENS,
    evaluations: int = 10,
    patience: int | None = 3,
    seed: int = 0,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Trains an adapter on the response tokens of the data. The model is changed.

    Args:
        model: what to heal.
        data: a selection directory, or a pool; see `read_pool`.
        adapter: a name in `ADAPTERS`.
        budget_params: trainable parameters: "1%" of the block params, a share (0.01), or a number (500000).
        tokens: read so many, prompts included, in as many epochs as that takes.
        teacher: the dense model. A selection has its dense model's tokens already and needs none.
        loss: "sft", "kd" or "both"; default: "both" where there is a teacher or a selection, else "sft".
        learning_rate: the highest; default: that of the adapter.
        length: tokens at which a row is cut; a selection sets it.
        batch_tokens: tokens of a step, padding included.
        evaluations: how often the held-out loss is looked at.
        patience: evaluations without improvement before an early stop; None: never.
        seed: of order, held-out rows and starts.
        work: directory for checkpoints and the teacher's tokens; a killed tuning goes on from it.
        progress: told about each step.

    Raises:
        InputError: unknown names, unreadable or too little data, distillation without a teacher.
    """
    if isinstance(data, str | Path):
        check(data, adapter=adapter, loss=loss)
    if model.tokenizer is None:
        raise InputError(
            f"{model.name} has no tokenizer, which is needed to read the data; put tokenizer.json beside it"
        )
    from peft import PeftModel

    chosen, progress = ADAPTERS[adapter], progress or Progress()
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise InputError(f"--learning-rate {learning_rate}: expected a finite number above 0")
    budget = parameter_budget(budget_params, sum(m.weight.numel() for m in linears(model.model).values()))
    started = time.monotonic()
    with _kept(work) as directory:
        found = _read(
            data,
            model.tokenizer,
            min(length, context_length(model.model)),
            seed,
            progress,
            None if loss == "sft" else teacher,
            loss != "sft",
        )
        kind = loss or ("both" if teacher is not None or found.teacher is not None else "sft")
        steps = _steps(found, tokens, batch_tokens, seed)
        if kind != "sft":
            _teach(found, steps, teacher, model, directory, progress)
        heldout = [pad(found.samples, rows) for rows in _batched(found, found.heldout, batch_tokens)]
        each = found.loss(kind)

        def impact() -> Any:
            from sentei.recover.tune.impact import measure_impact

            batches = [pad(found.samples, rows) for rows in steps[:IMPACT_BATCHES]]
            with progress.stage("impact", len(batches), "batches") as bar:

                def counted(net: Any, batch: Batch) -> Any:
                    bar.advance()
                    return each(net, batch)

                with short_attention(model.model):
                    return measure_impact(model.model, batches, counted, list(linears(model.model)))

        adapted = chosen.wrap(model.model, budget, Context(impact, seed))
        plain: Any = adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted

        def evaluate() -> float:
            with evaluating(plain):
                sums = [(float(each(plain, batch)), len(batch.targets)) for batch in heldout]
            return sum(value * size for value, size in sums) / sum(size for _, size in sums)

        trainer = Trainer(
            adapted,
            lambda batch: each(plain, batch),
            [(_size(found, rows), functools.partial(pad, found.samples, rows)) for rows in steps],
            evaluate,
            learning_rate=learning_rate or chosen.learning_rate,
            evaluations=evaluations,
            patience=patience,
            directory=directory / "checkpoint",
            progress=progress,
        )
        with short_attention(plain):
            history = trainer.run()
    adapted.eval()
    parameters = count(trainable(adapted))
    progress.say(f"  {history.stopped}: {_recommend(history)}")
    record = {
        "schema_version": 1,
        "model": model.name,
        "adapter": adapter,
        "budget_params": budget,
        "trainable_params": parameters,
        "loss": kind,
        "learning_rate": learning_rate or chosen.learning_rate,
        "seed": seed,
        "rows": len(found.train),
        "heldout_rows": len(found.heldout),
        "steps": len(history.losses),
        "batch_tokens": batch_tokens,
        "tokens": int(history.curve[-1]["tokens"]),
        "kept_tokens": int(history.best["tokens"]),
        "stopped": history.stopped,
        "note": history.note,
        "curve": history.curve,
        "recommendation": _recommend(history),
        "seconds": round(time.monotonic() - started, 1),
    }
    return Tuned(adapted, model.tokenizer, record)


def check(data: str | Path, *, adapter: str, loss: str | None) -> None:
    """What can be seen to be wrong before a model is loaded.

    Raises:
        InputError: an unknown adapter or loss, or data that cannot be read.
    """
    ADAPTERS[adapter]
    if loss is not None and loss not in LOSSES:
        raise InputError(f"unknown loss {loss!r}{nearest(loss, LOSSES)}; known: {', '.join(LOSSES)}")
    if not (Path(data) / "selection.json").is_file():
        read_pool(data)


def parameter_budget(text: str | float, params: int) -> int:
    """A budget of trainable parameters: "1%", 0.01 (a share of `params`) or 500000.

    Raises:
        InputError: not understood, or not between 1 and `params`.
    """
    said = str(text).strip().replace(",", "").replace("_", "")
    if re.fullmatch(r"\d+(\.\d+)?%", said):
        value = float(said[:-1]) / 100 * params
    elif re.fullmatch(r"0?\.\d+", said):
        value = float(said) * params
    elif re.fullmatch(r"\d+(\.0)?", said):
        value = float(said)
    else:
        value = 0.0
    if not 1 <= value <= params:
        raise InputError(
            f"--budget-params {text!r}: expected a share (1% or 0.01) or a number of parameters from 1 to {params:,}"
        )
    return round(value)


def _read(
    data: Any, tokenizer: Any, length: int, seed: int, progress: Progress, teacher: Loaded | None, taught: bool
) -> _Data:
    """The samples that can be learnt from; held-out rows are drawn from them.

    `taught`: whether a teacher may be needed. That of a selection is taken, unless `teacher` is another model.
    """
    path = Path(data) if isinstance(data, str | Path) else None
    if path is not None and (path / "selection.json").is_file():
        data = Selection.load(path)
    rows: Sequence[PoolRow]
    if isinstance(data, Selection):
        scored = data.scored()
        rows, length = [scored.pool.rows[row] for row in data.chosen], data.about["scoring"]["length"]
        source = f"selection of {len(rows):,} rows"
    else:
        pool = read_pool(data)
        rows, source = pool.rows, f"{len(pool.rows):,} rows of {pool.source}, read as {pool.format}"
    progress.say(f"data: {source}")
    samples = encode(rows, tokenizer, length=length)
    if cut := sum(sample.truncated for sample in samples):
        progress.say(f"  {cut:,} rows are longer than {length} tokens and are cut there")
    usable = [i for i, sample in enumerate(samples) if sample.response[1:].any()]
    if len(usable) < len(samples):
        progress.say(f"  {len(samples) - len(usable)} rows have no response within {length} tokens and are left out")
    if len(usable) < 2:
        raise InputError(f"{len(usable)} rows of {source} have a response to learn from, at least 2 are needed")
    order = np.random.default_rng(seed).permutation(usable).tolist()
    aside = max(1, min(HELDOUT, len(usable) // 10))
    found = _Data(samples, sorted(order[aside:]), sorted(order[:aside]))
    if taught and isinstance(data, Selection) and data.about["scoring"]["top"]:
        scoring = data.about["scoring"]
        if teacher is not None and teacher.digest != scoring["dense"]:
            progress.say(f"  {teacher.name} is not the dense model of the selection: its own predictions are made")
            return found
        if scoring["tokenizer"] != tokenizer_digest(tokenizer):
            raise InputError(
                f"{data.directory} was scored with another tokenizer or chat template than that of the model, so its "
                "teacher says nothing here; use --loss sft, or select again with this model"
            )
        found.teacher = Teacher(data.directory / SCORES)
        found.known = dict(enumerate(data.chosen))
    return found


def _steps(data: _Data, tokens: int, batch_tokens: int, seed: int) -> list[list[int]]:
    """Rows of each step, epoch after epoch, until the tokens are read."""
    if tokens < 1:
        raise InputError(f"tokens is {tokens}, expected at least 1")
    steps: list[list[int]] = []
    left, epoch = tokens, 0
    lengths = [len(data.samples[row].ids) for row in data.train]
    while left > 0:
        for batch in shuffled(lengths, batch_tokens, seed + epoch):
            steps.append([data.train[i] for i in batch])
            left -= sum(lengths[i] for i in batch)
            if left <= 0:
                break
        epoch += 1
    return steps


def _teach(
    data: _Data,
    steps: Sequence[Sequence[int]],
    teacher: Loaded | None,
    model: Loaded,
    directory: Path,
    progress: Progress,
) -> None:
    """Lets the teacher read what will be trained on, unless a selection holds what it said."""
    if data.teacher is not None:
        return
    if teacher is None:
        raise InputError("distillation needs a teacher: give the dense model with --teacher, or use --loss sft")
    if teacher.tokenizer is not None and teacher.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise InputError(
            f"{teacher.name} and {model.name} have different tokenizers; the teacher must be the dense model"
        )
    read = sorted({row for rows in steps for row in rows} | set(data.heldout))
    progress.say(f"  the teacher reads {len(read):,} rows")
    score(teacher.model, None, [data.samples[row] for row in read], directory / "teacher", progress=progress)
    data.teacher = Teacher(directory / "teacher")
    data.known = {row: at for at, row in enumerate(read)}


def _batched(data: _Data, rows: Sequence[int], tokens: int) -> list[list[int]]:
    lengths = [len(data.samples[row].ids) for row in rows]
    return [[rows[i] for i in batch] for batch in by_length(lengths, tokens)]


def _size(data: _Data, rows: Sequence[int]) -> int:
    return sum(len(data.samples[row].ids) for row in rows)


def _recommend(history: History) -> str:
    """When to stop, from the recovery curve: where nearly all of the gain was reached, and what the end still gave."""
    curve = history.curve
    first, best = curve[0]["heldout"], history.best["heldout"]
    gain = first - best
    if gain <= 0:
        return f"training did not lower the held-out loss of {first:.3f}; the model is as it was"
    enough = next(point for point in curve if first - point["heldout"] >= GOOD_ENOUGH * gain)
    text = (
        f"the held-out loss fell from {first:.3f} to {best:.3f}; {GOOD_ENOUGH:.0%} of that was reached after "
        f"{enough['tokens']:,.0f} tokens"
    )
    if history.stopped == "finished" and enough is curve[-1] and len(curve) > 2:
        return text + ", the last ones: more tokens would still help"
    return text


@contextlib.contextmanager
def _kept(work: Path | None) -> Iterator[Path]:
    """The directory to work in; one that nobody asked for goes away."""
    if work is not None:
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="sentei-tune-") as directory:
        yield Path(directory)
