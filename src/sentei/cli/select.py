"""`sentei select`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sentei.cli.app import (
    DeviceOption,
    Dtype,
    DtypeOption,
    Format,
    FormatOption,
    Length,
    Memory,
    Out,
    Overwrite,
    Strict,
    Trust,
    hold,
    print_json,
)
from sentei.errors import for_shell


def select_command(
    out: Out,
    budget: Annotated[
        str, typer.Option(help="Share of the pool (0.2, 20%), rows (500), or tokens ('40000 tokens').", metavar="N")
    ],
    selection: Annotated[
        Path | None,
        typer.Argument(metavar="[SELECTION]", help="Select again from the stored scores of this directory, no model."),
    ] = None,
    dense: Annotated[str | None, typer.Option(help="The model before pruning.", metavar="MODEL")] = None,
    pruned: Annotated[str | None, typer.Option(help="The model after it.", metavar="MODEL")] = None,
    pool: Annotated[str | None, typer.Option(help="Candidates: JSONL(.gz), parquet, directory, hf:name, demo.")] = None,
    pool_format: Annotated[
        str | None, typer.Option(help="alpaca, sharegpt, messages, completion, text; default: by the keys.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="auto, or a baseline; `sentei methods` lists them.")] = None,
    filters: Annotated[
        list[str] | None, typer.Option(help="Filters, or none; default: those of the strategy.", metavar="F...")
    ] = None,
    languages: Annotated[
        str | None, typer.Option(help="That rows may be in: en,ja; default: those of 15 % of the pool or more.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Texts of the wanted capability, a pool of any format.")] = None,
    clusters: Annotated[int | None, typer.Option(min=1, help="Number of clusters; default: by rule.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Exponent on the damage of a cluster; default: 1.")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="Factor on a cluster's share: 3=2.0 doubles cluster 3.", metavar="K=W...")
    ] = None,
    minimum: Annotated[int | None, typer.Option(min=0, help="Rows (or tokens) for every cluster; default: 0.")] = None,
    ids: Annotated[Path | None, typer.Option(help="For the strategy ids: JSONL or lines of ids, best first.")] = None,
    length: Length = 512,
    top: Annotated[int, typer.Option(min=0, help="Teacher's tokens kept per position, for distillation.")] = 16,
    embedder: Annotated[
        str | None, typer.Option(help="A sentence-transformers model; default: the embedded one.")
    ] = None,
    strict: Strict = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of clustering and of what is random; default: 0.")] = None,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    memory: Memory = None,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    format: FormatOption = Format.text,
) -> None:
    """Choose recovery data by where pruning did damage; writes the rows, a reason for every row, and a page."""
    from sentei.errors import InputError
    from sentei.recover.select.choices import parse_weights, read_ids
    from sentei.report.selection import write_page

    hold(out, selection, dense, pruned, pool, target, ids, embedder, overwrite=overwrite)
    choice: dict[str, Any] = {
        "temperature": temperature,
        "weights": parse_weights(weight) if weight else None,
        "minimum": minimum,
        "ids": read_ids(ids) if ids else None,
        "seed": seed,
    }
    common: dict[str, Any] = {
        "budget": budget,
        "filters": None if filters is None else [name for name in filters if name != "none"],
        **({} if languages is None else {"languages": _codes(languages)}),
        "overwrite": overwrite,
        **{name: value for name, value in choice.items() if value is not None},  # what is not given stays as it was
    }
    if selection is not None:
        given: dict[str, Any] = {"--dense": dense, "--pruned": pruned, "--pool": pool, "--pool-format": pool_format}
        given |= {"--target": target, "--clusters": clusters, "--embedder": embedder}
        if names := ", ".join(name for name, value in given.items() if value is not None):
            raise InputError(f"{names} cannot be changed without the models; leave {selection} out to score anew")
        from sentei.progress import TerminalProgress
        from sentei.recover.select.select import reselect

        made = reselect(selection, out, strategy=strategy, progress=TerminalProgress(), **common)
    else:
        missing = [name for name, value in (("--dense", dense), ("--pruned", pruned), ("--pool", pool)) if not value]
        if missing:
            raise InputError(
                f"{', '.join(missing)} missing; give --dense, --pruned and --pool, or a selection directory"
            )
        made = _score(
            str(dense), str(pruned), str(pool), pool_format, target, out, dtype.value, device, memory,
            trust_remote_code, strategy=strategy or "auto", clusters=clusters, length=length, top=top,
            embedder=embedder, strict=strict, **common,
        )  # fmt: skip
    write_page(out)
    about = made.about["budget"]
    if format is Format.json:
        print_json({"schema_version": 1, "selection": str(out), **about})
    else:
        size = f"{about['selected']:,} rows, {about['tokens']:,} tokens"
        typer.echo(
            f"{out}: {size}; look at {out / 'selection.html'}; next: sentei tune PRUNED --data {for_shell(out)} --out …"
        )


def _codes(languages: str) -> list[str]:
    """Codes of languages, separated by commas."""
    return [code for part in languages.split(",") if (code := part.strip().lower())]


def _score(
    dense: str,
    pruned: str,
    pool: str,
    pool_format: str | None,
    target: str | None,
    out: Path,
    dtype: str,
    device: str,
    memory: str | None,
    trust_remote_code: bool,
    **options: Any,
) -> Any:
    """Reads the data, which may be wrong, before the models, which take long."""
    from sentei.data.pools import read_pool
    from sentei.memory import parse_bytes
    from sentei.progress import TerminalProgress
    from sentei.recover.select.filters.language import check_languages
    from sentei.recover.select.picking import Amount
    from sentei.recover.select.select import select
    from sentei.recover.select.strategies import find_strategy

    Amount.parse(options["budget"])
    limit = None if memory is None else parse_bytes(memory)
    find_strategy(options["strategy"])
    strict = options["strict"]
    rows = read_pool(pool, format=pool_format, strict=strict)
    wanted = [row.prompt for row in read_pool(target, strict=strict).rows] if target else ()
    check_languages(options.get("languages", ()))
    from sentei.models.load import load

    progress = TerminalProgress()
    models = [
        load(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code, memory=limit)
        for name in (dense, pruned)
    ]
    return select(models[0], models[1], rows, out, target=wanted, progress=progress, **options)
