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
    api_key: Annotated[
        str | None,
        typer.Option(envvar="SENTEI_API_KEY", help="That requests must come with; default: a new one, printed."),
    ] = None,
    no_api_key: Annotated[
        bool, typer.Option("--no-api-key", help="Ask for none: every program of this machine may use the model.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Names that it may be called by, besides addresses.", metavar="NAME...")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web pages that may ask: https://chat.example", metavar="ORIGIN...")
    ] = None,
    allow_path: Annotated[
        list[str] | None, typer.Option(help="Let through besides /health and /v1/: /metrics …", metavar="PATH...")
    ] = None,
) -> None:
    """Serve a model over an OpenAI-compatible endpoint, by an engine's own server, until Ctrl-C."""
    from sentei.errors import InputError
    from sentei.ship.serve import serve

    if no_api_key and api_key:
        raise InputError("--no-api-key and a key (--api-key, or SENTEI_API_KEY) exclude each other; leave one out")
    doors = {"hosts": allow_host or (), "origins": allow_origin or (), "paths": allow_path or ()}
    ended = threading.Event()
    before = {name: signal.signal(name, lambda *_: ended.set()) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        typer.echo(f"starting {engine} …", err=True)
        key = "" if no_api_key else api_key or None
        with serve(model, engine=engine, host=host, port=port, dtype=dtype, api_key=key, **doors) as endpoint:
            asks = endpoint.curl("$SENTEI_API_KEY" if key else None)
            typer.echo(f"{engine} serves {model} at {endpoint.url}/v1 (Ctrl-C ends it)\n\n{asks}\n")
            if key is None:
                typer.echo("the key is of this session; give one of your own in SENTEI_API_KEY, or with --api-key\n")
            while not ended.wait(0.5):  # in pieces, so that signals are seen on every platform
                pass
        typer.echo("stopped", err=True)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
