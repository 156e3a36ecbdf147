"""`tune`: trains the few parameters that matter, on a selection or any pool, from the text, a teacher, or both."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sentei.data.batches import Batch
from sentei.data.pools import Pool
from sentei.data.task_file import TaskFile
from sentei.data.text import token_windows
from sentei.errors import InputError, unknown
from sentei.metrics.perplexity import perplexity
from sentei.models.identity import made_with
from sentei.models.load import Loaded, context_length
from sentei.progress import Progress, shown
from sentei.recover.attention import short_attention
from sentei.recover.select.selection import Selection
from sentei.recover.tune.adapters import ADAPTERS, Context
from sentei.recover.tune.adapters.base import count, linears, trainable
from sentei.recover.tune.allocate import CRITERIA
from sentei.recover.tune.data import plan_steps, read_data, read_source, teach
from sentei.recover.tune.loss import LOSSES
from sentei.recover.tune.regrow import Regrow, check_mask
from sentei.recover.tune.result import Tuned, recommend
from sentei.recover.tune.train import Trainer
from sentei.scratch import temporary_dir

LENGTH = 512
BATCH_TOKENS = 2048
OTHER_TOKENS = 8192  # of the text of another kind
IMPACT_BATCHES = 8
LOOKS = 3
IMPACT_SHARE = 0.25  # of the training tokens, at most, but one batch: gradients cost three quarters of a step
CRITERION = "gradient"


def tune(
    model: Loaded,
    data: str | Path | Selection | Pool | TaskFile | Sequence[dict[str, Any]],
    *,
    adapter: str = "lora+sparse",
    budget_params: str | float = "1%",
    tokens: int = 200_000,
    teacher: Loaded | None = None,
    loss: str | None = None,
    criterion: str = CRITERION,
    mask: str = "static",
    learning_rate: float | None = None,
    length: int = LENGTH,
    batch_tokens: int = BATCH_TOKENS,
    evaluations: int = 10,
    patience: int | None = 3,
    other_text: Sequence[str] = (),
    strict: bool = False,
    seed: int = 0,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Trains an adapter on the response tokens of the data. The model is changed.

    Args:
        model: what to heal.
        data: a selection directory, a task file (its calibration rows), or a pool; see `read_pool`.
        adapter: a name in `ADAPTERS`.
        budget_params: trainable parameters: "1%" of the block params, a share (0.01), or a number (500000).
        tokens: read so many, prompts included, in as many epochs as that takes.
        teacher: the dense model. A selection has its dense model's tokens already and needs none.
        loss: a name in `LOSSES`; default: "both" where there is a teacher or a selection, else "sft".
        criterion: by which "lora+sparse" and "shira-gradient" choose what is trained: a name in `CRITERIA`.
        mask: "static", or "grow": the sparse entries move while training; see `sentei.recover.tune.regrow`.
        learning_rate: the highest; default: that of the adapter.
        length: tokens at which a row is cut; a selection sets it.
        batch_tokens: tokens of a step, padding included.
        evaluations: how often the held-out loss is looked at; less often, but `LOOKS` times, where that would read more
            tokens than the training.
        patience: evaluations without improvement before an early stop; None: never.
        other_text: documents of another kind than the data. Their perplexity is written beside the held-out loss, which
            cannot show what a narrow data set makes a model forget.
        strict: refuse a pool with a row that cannot be read, does not fit, or that the chat template refuses; else such
            rows are skipped and counted.
        seed: of order, held-out rows and starts.
        work: directory for checkpoints and the teacher's tokens; a killed tuning goes on from it.
        progress: told about each step.

    Raises:
        InputError: unknown names, unreadable or too little data, distillation without a teacher.
    """
    check_names(adapter=adapter, loss=loss, criterion=criterion, mask=mask)
    if model.tokenizer is None:
        raise InputError(
            f"{model.name} has no tokenizer, which is needed to read the data; put tokenizer.json beside it"
        )
    from peft import PeftModel

    chosen, progress = ADAPTERS[adapter], shown(progress)
    rate = chosen.learning_rate if learning_rate is None else learning_rate
    if not 0 < rate < math.inf:
        raise InputError(f"--learning-rate {rate}: expected a finite number above 0")
    budget = parameter_budget(budget_params, sum(m.weight.numel() for m in linears(model.model).values()))
    started = time.monotonic()
    with _kept(work) as directory:
        found = read_data(
            read_source(data, strict=strict),
            model.tokenizer,
            min(length, context_length(model.model)),
            seed,
            progress,
            teacher,
            None if loss is None else LOSSES[loss],
            strict=strict,
        )
        kind = LOSSES[loss or ("both" if teacher is not None or found.teacher is not None else "sft")]
        steps = plan_steps(found, tokens, batch_tokens, seed)
        teach(found, kind, steps, teacher, model, directory, progress)
        each, heldout = found.loss(kind), found.heldout_loss(kind, batch_tokens)

        def impact() -> Any:
            from sentei.recover.tune.impact import measure_impact

            most = IMPACT_SHARE * sum(found.size(rows) for rows in steps)
            read = itertools.accumulate(found.size(rows) for rows in steps)
            count = max(1, sum(size <= most for size in itertools.islice(read, IMPACT_BATCHES)))
            batches = [found.batch(rows) for rows in steps[:count]]
            with progress.stage("impact", len(batches), "batches") as bar:

                def counted(net: Any, batch: Batch) -> Any:
                    bar.advance()
                    return each(net, batch)

                with short_attention(model.model):
                    names, fisher = list(linears(model.model)), criterion == "fisher"
                    return measure_impact(model.model, batches, counted, names, fisher=fisher)

        adapted = chosen.wrap(model.model, budget, Context(impact, seed, criterion))
        plain: Any = adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted
        windows = _windows(other_text, model, length) if other_text else None
        look = found.size(found.heldout) + (0 if windows is None else windows.numel())
        looks = min(evaluations, max(LOOKS, sum(found.size(rows) for rows in steps) // look))

        def watch() -> dict[str, float]:
            return {} if windows is None else {"other_perplexity": perplexity(plain, windows).value}

        regrow = Regrow(adapted, len(steps)) if mask == "grow" else None
        if regrow:
            when = ", ".join(map(str, regrow.due())) or "none, they are too few; give more --tokens"
            progress.say(f"  sparse entries move after these of {len(steps)} steps: {when}")
        trainer = Trainer(
            adapted,
            lambda batch: each(plain, batch),
            [(found.size(rows), functools.partial(found.batch, rows)) for rows in steps],
            lambda: heldout(plain),
            learning_rate=rate,
            watch=watch,
            evaluations=looks,
            patience=patience,
            directory=directory / "checkpoint",
            regrow=regrow,
            progress=progress,
        )
        with short_attention(plain):
            history = trainer.run()
    adapted.eval()
    advice = recommend(history, len(found.heldout))
    record = {
        "schema_version": 1,
        "model": model.name,
        **made_with(model),
        "adapter": adapter,
        "budget_params": budget,
        "trainable_params": count(trainable(adapted)),
        "criterion": criterion,
        "mask": mask,
        "moved_entries": regrow.moved() if regrow else 0,
        "loss": kind.name,
        "learning_rate": rate,
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
        "recommendation": advice,
        "seconds": round(time.monotonic() - started, 1),
    }
    return Tuned(adapted, model.tokenizer, record)


def check_names(*, adapter: str, loss: str | None, criterion: str = CRITERION, mask: str = "static") -> None:
    """What can be seen to be wrong before data and model are read.

    Raises:
        InputError: an unknown name, or a mask that the adapter cannot have.
    """
    ADAPTERS[adapter]
    if criterion not in CRITERIA:
        raise unknown("criterion", criterion, CRITERIA)
    if loss is not None and loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    check_mask(mask, adapter)


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


def _windows(texts: Sequence[str], model: Loaded, length: int) -> Any:
    """Windows of OTHER_TOKENS tokens, int64 [n, w]; of less where the texts have less."""
    window = min(length, context_length(model.model))
    return token_windows(list(texts), model.tokenizer, window=window, tokens=OTHER_TOKENS)


@contextlib.contextmanager
def _kept(work: Path | None) -> Iterator[Path]:
    """The directory to work in; one that nobody asked for goes away."""
    if work is not None:
        yield work
        return
    with temporary_dir("tune") as directory:
        yield directory
