"""`sentei cut`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sentei.cli.app import (
    DeviceOption,
    Dtype,
    DtypeOption,
    Field,
    Format,
    FormatOption,
    Memory,
    Model,
    Out,
    Overwrite,
    Tokens,
    Trust,
    Window,
    hold,
    print_json,
)
from sentei.errors import for_shell


def cut_command(
    model: Model,
    plan: Annotated[Path, typer.Option(help="What `sentei plan` wrote.")],
    out: Out,
    data: Annotated[str | None, typer.Option(help="Calibration data for the compensation, as for `measure`.")] = None,
    tokens: Tokens = 65536,
    window: Window = 512,
    own_text: Annotated[
        int | None,
        typer.Option(min=0, help="As for `measure`; by default as many tokens as the plan's profile read."),
    ] = None,
    field: Field = None,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    memory: Memory = None,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    format: FormatOption = Format.text,
) -> None:
    """Remove what the plan removes and fit what stays; writes a directory that plain transformers loads."""
    from sentei.data.calibration import read_calibration
    from sentei.files import check_space
    from sentei.memory import parse_bytes
    from sentei.outputs import claimed
    from sentei.plan import Plan
    from sentei.progress import TerminalProgress

    hold(out, model, plan, data, overwrite=overwrite)
    limit = None if memory is None else parse_bytes(memory)
    wanted = Plan.load(plan)
    texts = None if data is None else read_calibration(data, field)
    from sentei.models.load import load
    from sentei.models.save import save
    from sentei.prune.cut import cut

    loaded = load(model, dtype=dtype.value, device=device, trust_remote_code=trust_remote_code, memory=limit)
    blocks = 0 if limit is None else wanted.shape().block_params() * loaded.model.dtype.itemsize  # while they are cut
    check_space(out, wanted.shape().params() * wanted.dense.itemsize + blocks, "cut")
    with claimed(out) as beside:
        work = beside / "blocks"
        small = cut(
            loaded,
            wanted,
            texts,
            tokens=tokens,
            window=window,
            own_text=own_text,
            memory=limit,
            work=work,
            progress=TerminalProgress(),
        )
        save(small, out, tokenizer=loaded.tokenizer, plan=wanted, overwrite=overwrite)
    shape = wanted.shape()
    if format is Format.json:
        print_json(
            {"schema_version": 1, "model": str(out), "params": shape.params(), "block_params": shape.block_params()}
        )
    else:
        removed = 1 - shape.block_params() / wanted.dense.block_params()
        size = f"{shape.block_params():,} block params ({removed:.2%} removed)"
        typer.echo(f"{out}: {size}; next: sentei eval {for_shell(model)} {for_shell(out)} --text …")
