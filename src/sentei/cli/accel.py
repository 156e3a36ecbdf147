"""`sentei accel`."""

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
    Strict,
    Trust,
)


def accel_command(
    model: Model,
    pool: Annotated[str, typer.Option(help="What is trained on: JSONL(.gz), parquet, hf:name, demo.")],
    out: Out,
    to: Annotated[str, typer.Option(metavar="SHARE", help="Block params that are left at the end: 0.5, 50%.")] = "0.5",
    stages: Annotated[int, typer.Option(min=1, help="Cuts, each followed by training.")] = 10,
    tokens: Annotated[str, typer.Option(metavar="N", help="Trained on in all stages together: 2M, 60000.")] = "2M",
    data: Annotated[str, typer.Option(help="Calibration text, as for `measure`.")] = "demo",
    method: Annotated[str, typer.Option(help="How each cut is planned; auto: structural.")] = "auto",
    targets: Annotated[str, typer.Option(help="Sizes after each stage: linear, cosine, ratio.")] = "linear",
    slices: Annotated[str, typer.Option(help="Data of each stage: linear (growing), constant, cosine.")] = "linear",
    select: Annotated[
        str, typer.Option(help="Rows of each stage: none (random), damage (measured again after every cut).")
    ] = "none",
    train: Annotated[str, typer.Option(help="full, or an adapter: lora+sparse, lora, …")] = "full",
    loss: Annotated[str, typer.Option(metavar="L", help="kl (the dense model reads along), kl-all, sft, …")] = "kl",
    teacher: Annotated[str | None, typer.Option(metavar="MODEL", help="Default: MODEL itself.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Highest; default: by what is trained.")] = None,
    rewarm: Annotated[int, typer.Option(min=0, help="Steps of warm-up after each cut.")] = 0,
    moments: Annotated[str, typer.Option(help="Adam's state through a cut: carry, restart.")] = "carry",
    refitted: Annotated[str, typer.Option(help="First moment of refitted matrices: drop, scale, keep.")] = "drop",
    epochs: Annotated[int, typer.Option(min=1, help="How often the pool may be read.")] = 1,
    batch_tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a step; default: a hundredth of them, 256 to 2,048.")
    ] = None,
    length: Length = 512,
    calibration: Annotated[str, typer.Option(metavar="N", help="Tokens that each cut is measured on.")] = "4096",
    text: Annotated[list[str] | None, typer.Option(help="For the perplexity at the end; default: demo.")] = None,
    tasks: Annotated[list[str] | None, typer.Option(help="For accuracy at the end, as for `eval`.")] = None,
    windows: Annotated[int, typer.Option(min=1, help="At most so many windows of each text.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each task.")] = None,
    strict: Strict = False,
    seed: Annotated[int, typer.Option(min=0, help="Of order, held-out rows and starts.")] = 0,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    trust_remote_code: Trust = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Use a run directory again; what did not change is kept.")
    ] = False,
    format: FormatOption = Format.text,
) -> None:
    """Cut a little, train a little, and again; every stage is a model. `sentei resume` goes on after a kill."""
    from sentei.cli.run import show
    from sentei.progress import TerminalProgress
    from sentei.recipe import Recipe
    from sentei.run import run
    from sentei.schema import parse

    section: dict[str, Any] = {
        "pool": pool,
        "stages": stages,
        "tokens": tokens,
        "targets": targets,
        "slices": slices,
        "select": select,
        "train": train,
        "loss": loss,
        "teacher": teacher,
        "learning_rate": learning_rate,
        "rewarm": rewarm,
        "moments": moments,
        "refitted": refitted,
        "epochs": epochs,
        "batch_tokens": batch_tokens,
        "length": length,
        "calibration": calibration,
        "strict_rows": strict,
    }
    value = {
        "model": model,
        "data": data,
        "budget": {"sparsity": removed(to)},
        "prune": {"method": method},
        "prove": {"texts": text or ["demo"], "tasks": tasks or [], "windows": windows, "limit": limit, "speed": False},
        "accel": section,
        "dtype": dtype.value,
        "device": device,
        "trust_remote_code": trust_remote_code,
        "seed": seed,
    }
    recipe = parse(Recipe, value, "sentei accel").resolved()
    show(out, lambda: run(recipe, out, overwrite=overwrite, progress=TerminalProgress()), format)


def removed(to: str) -> float:
    """The share that goes, from the one that stays.

    Raises:
        InputError: not between 0 and 1.
    """
    from sentei.budget import as_share
    from sentei.errors import InputError

    try:
        share = as_share(to)
    except ValueError as error:
        raise InputError(f"--to {to}: {error}") from None
    if not isinstance(share, float) or not 0 < share < 1:
        raise InputError(f"--to {to}: expected the share of block params that is left, such as 0.5 or 50%")
    return 1 - share
