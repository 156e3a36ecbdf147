"""`sentei tune`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sentei.cli.app import (
    DeviceOption,
    Dtype,
    DtypeOption,
    Format,
    FormatOption,
    Length,
    Model,
    Out,
    Overwrite,
    Strict,
    Trust,
    hold,
    print_json,
)
from sentei.errors import for_shell


def tune_command(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            help="A selection directory, a pool (JSONL(.gz), parquet, hf:name, demo), or a task file (.yaml)."
        ),
    ],
    out: Out,
    adapter: Annotated[str, typer.Option(help="What is trained; `sentei methods` lists them.")] = "lora+sparse",
    budget_params: Annotated[
        str, typer.Option(help="Trainable parameters: 1% of the block params, or a number.", metavar="N")
    ] = "1%",
    teacher: Annotated[str | None, typer.Option(help="The dense model, for distillation.", metavar="MODEL")] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="sft, kd, both, kl, …; default: both where there is a teacher or a selection.", metavar="NAME"
        ),
    ] = None,
    criterion: Annotated[
        str, typer.Option(help="By which lora+sparse and shira-gradient choose: gradient, fisher, snip.")
    ] = "gradient",
    mask: Annotated[
        str, typer.Option(help="static, or grow: sparse entries move to where the gradient is while training.")
    ] = "static",
    tokens: Annotated[int, typer.Option(min=1, help="Read this many tokens, prompts included.")] = 200_000,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Highest; default: the adapter's.")] = None,
    length: Length = 512,
    batch_tokens: Annotated[int, typer.Option(min=2, help="Tokens of a step, padding included.")] = 2048,
    evaluations: Annotated[int, typer.Option(min=1, help="How often to look at held-out rows.")] = 10,
    patience: Annotated[int, typer.Option(min=0, help="Looks without gain before an early stop; 0: never.")] = 3,
    other_text: Annotated[
        str | None, typer.Option(help="Text of another kind, whose perplexity is watched: a file, hf:name, demo.")
    ] = None,
    strict: Strict = False,
    seed: Annotated[int, typer.Option(min=0, help="Of order, held-out rows and starts.")] = 0,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    format: FormatOption = Format.text,
) -> None:
    """Train the few parameters that matter on recovery data; the result loads like the model it came from."""
    from sentei.errors import QualityError
    from sentei.outputs import work_dir

    hold(out, model, data, teacher, other_text, overwrite=overwrite)
    settings: dict[str, Any] = {
        "adapter": adapter,
        "budget_params": budget_params,
        "loss": loss,
        "criterion": criterion,
        "mask": mask,
        "tokens": tokens,
        "learning_rate": learning_rate,
        "length": length,
        "batch_tokens": batch_tokens,
        "evaluations": evaluations,
        "patience": patience or None,
        "strict": strict,
        "seed": seed,
    }
    from sentei.files import check_space
    from sentei.fingerprint import fingerprint
    from sentei.models.load import load
    from sentei.progress import TerminalProgress
    from sentei.prove.evaluate import read_texts_named
    from sentei.recover.tune.data import read_source
    from sentei.recover.tune.loss import LOSSES
    from sentei.recover.tune.tune import check_names, tune

    check_names(adapter=adapter, loss=loss, criterion=criterion, mask=mask)
    source = read_source(data, strict=strict)
    others = read_texts_named(other_text)[1] if other_text else []
    small = load(model, dtype=dtype.value, device=device, trust_remote_code=trust_remote_code)
    check_space(out, sum(p.numel() for p in small.model.parameters()) * small.model.dtype.itemsize, "tune")
    large = None
    if teacher is not None and (loss is None or LOSSES[loss].teacher):
        large = load(teacher, dtype=dtype.value, device=device, trust_remote_code=trust_remote_code)
    key = [settings, small.digest, large.digest if large else None, fingerprint(data), others, str(small.model.dtype)]
    with work_dir(out, key) as work:
        tuned = tune(
            small, source, teacher=large, other_text=others, work=work, progress=TerminalProgress(), **settings
        )
        tuned.save(out, overwrite=overwrite)
    if format is Format.json:
        print_json({"model": str(out), **tuned.record})
    else:
        typer.echo(
            f"{out}: {tuned.record['recommendation']}; next: sentei eval {for_shell(model)} {for_shell(out)} --text …"
        )
    if tuned.record["stopped"] == "diverged":
        raise QualityError(f"{out}: {tuned.record['note']}")
