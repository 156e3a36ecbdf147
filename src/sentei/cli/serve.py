"""`sentei serve`."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from sentei.cli.app import Model


def serve_command(
    model: Model,
    engine: Annotated[str, typer.Option(help="llama.cpp or transformers.")] = "llama.cpp",
    host: Annotated[str, typer.Option(help="Address to listen on; the default is reached from this machine only.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    dtype: Annotated[str, typer.Option(help="Of the weights, as for `sentei export`.")] = "auto",
) -> None:
    """Serve a model over an OpenAI-compatible endpoint, by an engine's own server, until Ctrl-C."""
    from sentei.ship.serve import serve

    ended = threading.Event()
    before = {name: signal.signal(name, lambda *_: ended.set()) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        typer.echo(f"starting {engine} …", err=True)
        with serve(model, engine=engine, host=host, port=port, dtype=dtype) as endpoint:
            typer.echo(f"{engine} serves {model} at {endpoint.url}/v1 (Ctrl-C ends it)\n\n{endpoint.curl()}\n")
            while not ended.wait(0.5):  # in pieces, so that signals are seen on every platform
                pass
        typer.echo("stopped", err=True)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
