"""`sentei measure`."""

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
    Model,
    Out,
    Overwrite,
    Tokens,
    Trust,
    Window,
    hold,
    print_json,
)


def measure_command(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            help="Calibration text: .txt, .jsonl, .jsonl.gz, .parquet, directory, hf:name, demo, or a task (.yaml)."
        ),
    ],
    out: Out,
    tokens: Tokens = 131072,
    window: Window = 1024,
    gradient_tokens: Annotated[int, typer.Option(min=0, help="Tokens of the gradient pass; 0 leaves it out.")] = 8192,
    field: Field = None,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    format: FormatOption = Format.text,
) -> None:
    """Measure what each part of MODEL does for your data: one pass, kept in a PROFILE/ directory."""
    from sentei.data.calibration import read_calibration
    from sentei.progress import TerminalProgress

    hold(out, model, data, overwrite=overwrite)
    texts = read_calibration(data, field)
    from sentei.measure.collect import measure
    from sentei.models.load import load

    loaded = load(model, dtype=dtype.value, device=device, trust_remote_code=trust_remote_code)
    profile = measure(
        loaded, texts, tokens=tokens, window=window, gradient_tokens=gradient_tokens, progress=TerminalProgress()
    )
    profile.info["data"] = Path(data).name
    profile.save(out, overwrite=overwrite)
    if format is Format.json:
        print_json({"schema_version": 1, "profile": str(out), "tokens": profile.tokens, "blocks": len(profile.blocks)})
    else:
        read = f"{len(profile.blocks)} blocks of {loaded.name} on {profile.tokens:,} tokens"
        typer.echo(f"{out}: {read}; next: sentei plan {out} --sparsity 0.2 --out plan.json")
