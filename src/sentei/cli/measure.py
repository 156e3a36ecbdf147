"""`sentei measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    own_text: Annotated[
        int,
        typer.Option(min=0, help="Tokens that the model writes itself, read beside texts, at most as many; 0: none."),
    ] = 32768,
    scores: Annotated[
        list[str] | None,
        typer.Option(help="What will be planned by, such as flap: spares the curves of others; default: all."),
    ] = None,
    keep_grams: Annotated[
        bool, typer.Option("--keep-grams", help="Keep the Gram matrices too, for scores of your own: 100 times larger.")
    ] = False,
    field: Field = None,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    memory: Memory = None,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    format: FormatOption = Format.text,
) -> None:
    """Measure what each part of MODEL does for your data: one pass, kept in a PROFILE/ directory."""
    from sentei.data.calibration import read_calibration
    from sentei.fingerprint import fingerprint
    from sentei.memory import parse_bytes
    from sentei.outputs import work_dir
    from sentei.progress import TerminalProgress

    hold(out, model, data, overwrite=overwrite)
    limit = None if memory is None else parse_bytes(memory)
    texts = read_calibration(data, field)
    from sentei.measure.collect import measure
    from sentei.models.load import load

    loaded = load(model, dtype=dtype.value, device=device, trust_remote_code=trust_remote_code, memory=limit)
    settings: dict[str, Any] = {
        "tokens": tokens,
        "window": window,
        "gradient_tokens": gradient_tokens,
        "own_text": own_text,
        "scores": scores or None,
        "keep_grams": keep_grams,
    }
    key = ["measure", loaded.digest, str(loaded.model.dtype), fingerprint(data), field, settings]
    with work_dir(out, key) as work:
        profile = measure(loaded, texts, memory=limit, work=work, progress=TerminalProgress(), **settings)
        profile.info["data"] = Path(data).name
        profile.save(out, overwrite=overwrite)
    if format is Format.json:
        print_json(
            {
                "schema_version": 1,
                "profile": str(out),
                "tokens": profile.tokens,
                "own_tokens": profile.own_tokens,
                "blocks": len(profile.blocks),
            }
        )
    else:
        read = f"{len(profile.blocks)} blocks of {loaded.name} on {profile.tokens:,} tokens"
        if profile.own_tokens:
            read += f", {profile.own_tokens:,} of them its own"
        typer.echo(f"{out}: {read}; next: sentei plan {for_shell(out)} --sparsity 0.2 --out plan.json")
