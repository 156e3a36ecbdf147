"""`serve`: an OpenAI-compatible endpoint on this machine, by an engine's own server."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sentei.errors import InputError, for_shell, one_line, unknown
from sentei.files import read_json
from sentei.scratch import temporary_dir
from sentei.ship import watched
from sentei.ship.engines.arrays import threads
from sentei.ship.export import export
from sentei.ship.gate import Rules, gate, loopback

_LOCAL = "127.0.0.1"  # where engines' own servers listen
HEALTHY_SECONDS = 600.0  # that a model may take to load
STOP_SECONDS = 10.0  # that a server may take to end


@dataclass(frozen=True)
class Endpoint:
    """A running server. `engine` serves at `url`; `model` is what requests call the model; `key` is asked for."""

    engine: str
    url: str
    model: str
    key: str | None = None

    def curl(self, key: str | None = None) -> str:
        """A command for a shell that asks it. `key`: how the key is written there; by default as it is."""
        body = {"model": self.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
        parts = ["curl", f"{self.url}/v1/chat/completions", "-H", "Content-Type: application/json"]
        text = shlex.join([*parts, "-d", json.dumps(body)])
        if self.key is None:
            return text
        bearer = shlex.quote(f"Authorization: Bearer {self.key}") if key is None else f'"Authorization: Bearer {key}"'
        return f"{text} -H {bearer}"

    def healthy(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextlib.contextmanager
def serve(
    model: str | Path,
    *,
    engine: str = "llama.cpp",
    host: str = "127.0.0.1",
    port: int = 8000,
    dtype: str = "auto",
    api_key: str | None = None,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    paths: Sequence[str] = (),
) -> Iterator[Endpoint]:
    """Serves a model while the block runs; the server answers when it begins, and is gone when it ends.

    Args:
        model: what `load` takes; a .gguf file is served as it is.
        engine: "llama.cpp" (the model goes to a temporary GGUF file first) or "transformers".
        host: address to listen on.
        port: 0 takes a free one.
        dtype: of the weights, as for `export`.
        api_key: that requests must come with; None: made here, and told by the endpoint; "": none is asked for, on
            loopback addresses only.
        hosts: names that it may be called by, besides addresses and this machine's own name.
        origins: of web pages that may ask it, besides its own.
        paths: that are let through besides `/health` and `/v1/…`, such as `/metrics`, `/slots` or `/props`.

    Raises:
        InputError: an engine that is missing or has no server, a port that is taken, a model that it cannot hold, or
            no key where others reach it.
    """
    if engine not in _SERVERS:
        raise unknown("engine for serve", engine, _SERVERS)
    key = secrets.token_urlsafe(24) if api_key is None else _usable(api_key, host)
    name = Path(model).stem if str(model).endswith(".gguf") else Path(model).resolve().name
    rules = Rules(key, host, tuple(hosts), tuple(origin.rstrip("/") for origin in origins), tuple(paths))
    with (
        _listener(host, port) as listener,
        _SERVERS[engine](model, name, dtype, rules.paths) as behind,
        gate(listener, rules, behind.address, behind.secret) as taken,
    ):
        yield Endpoint(engine, f"http://{_bracketed(host)}:{taken}", behind.model, key)


@dataclass(frozen=True)
class Behind:
    """An engine's own server: where it is, how it calls the model, and the key that it asks the gate for."""

    address: tuple[str, int]
    model: str
    secret: str | None = None


def _usable(key: str, host: str) -> str | None:
    """A key that was given; None for an empty one, which means that none is asked for."""
    if not key and not loopback(host):
        raise InputError(f"--no-api-key: whoever reaches {host} could use the model; give a key, or --host 127.0.0.1")
    if key != key.strip() or not key.isascii() or not key.isprintable():
        raise InputError("the key must be of printable ASCII characters, without white space around it")
    return key or None


@contextlib.contextmanager
def _llama_cpp(model: str | Path, name: str, dtype: str, paths: Sequence[str]) -> Iterator[Behind]:
    _needs("llama.cpp", "xllamacpp")
    with temporary_dir("serve") as scratch:
        path = Path(model)
        if path.suffix != ".gguf":
            path = scratch / "model.gguf"
            export(model, "gguf", path, dtype=dtype, check=False)
        elif not path.is_file():
            raise InputError(f"{path} does not exist")
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.hostnames, params.port, params.model_alias = [_LOCAL], _free_port(), {name}
        secret = secrets.token_urlsafe(24)
        params.api_keys, params.ui = [secret], False
        params.endpoint_slots, params.endpoint_props = "/slots" in paths, "/props" in paths
        params.endpoint_metrics = "/metrics" in paths
        params.verbosity = -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads() or os.cpu_count() or 1
        try:
            server = xllamacpp.Server(params)  # returns when it answers
        except (RuntimeError, ValueError) as error:
            raise InputError(f"llama.cpp does not serve {model}: {one_line(error)}") from error
        try:
            _wait(Endpoint("llama.cpp", server.listening_address, name), lambda: None)
            yield Behind((_LOCAL, params.port), name, secret)
        finally:
            del server


@contextlib.contextmanager
def _transformers(model: str | Path, name: str, dtype: str, paths: Sequence[str]) -> Iterator[Behind]:
    _needs("transformers serve", "fastapi", "uvicorn", "openai")
    with temporary_dir("serve") as scratch:
        directory = _stock(model, scratch / name, dtype)
        port = _free_port()
        command = [sys.executable, "-m", watched.__name__, "transformers.cli.transformers:main", "serve"]
        command += [str(directory), "--host", _LOCAL, "--port", str(port)]
        log = scratch / "log.txt"
        with open(log, "wb") as file:
            # In a session of its own, so that Ctrl-C reaches us, and we end it.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file, start_new_session=True)
        endpoint = Endpoint("transformers", f"http://{_LOCAL}:{port}", str(directory))
        try:
            _wait(endpoint, lambda: None if process.poll() is None else _last_line(log))
            yield Behind((_LOCAL, port), str(directory))  # it knows no key
        finally:
            _stop(process)


def _stock(model: str | Path, scratch: Path, dtype: str) -> Path:
    """A directory of a stock class: `transformers serve` looks classes up by name and runs no code of a directory."""
    source = Path(model)
    whole = dtype == "auto" and (source / "config.json").is_file()
    directory = source.resolve() if whole else scratch
    if not whole:
        export(model, "hf", scratch, dtype=dtype, check=False)
    kind = str(read_json(directory / "config.json").get("model_type", ""))
    if kind.startswith("sentei_"):
        raise InputError(
            f"`transformers serve` knows stock classes only, and the blocks of {model} differ ({kind}); use --engine "
            f"llama.cpp, or pad it: sentei export {for_shell(model)} --to dense-fold --out DIR, and serve DIR"
        )
    return directory


def _free_port() -> int:
    """One that an engine can have."""
    with _listener(_LOCAL, 0) as probe:
        return int(probe.getsockname()[1])


def _listener(host: str, port: int) -> socket.socket:
    """A socket that is bound to the port, if it can be had; to one that can, for 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host.strip("[]"), port))
        return made
    except (OSError, OverflowError) as error:
        made.close()
        raise InputError(
            f"cannot listen on {host}:{port}: {one_line(error)}; choose another --port or --host"
        ) from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _wait(endpoint: Endpoint, ended: Callable[[], str | None]) -> None:
    """Until it answers; `ended` says why the server is gone, if it is."""
    begun = time.monotonic()
    while not endpoint.healthy():
        why = ended()
        if why is not None:
            raise InputError(f"{endpoint.engine} ended before it served: {why}")
        if time.monotonic() - begun > HEALTHY_SECONDS:
            raise InputError(f"{endpoint.engine} does not answer at {endpoint.url} after {HEALTHY_SECONDS:.0f} s")
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.terminate()
    process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _needs(what: str, *modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{what} is not installed: pip install {' '.join(missing)}")


def _openvino(model: str | Path, name: str, dtype: str, paths: Sequence[str]) -> AbstractContextManager[Behind]:
    raise InputError(
        "OpenVINO has no server among Python packages: OpenVINO Model Server is a program of its own; "
        f"write its files with: sentei export {for_shell(model)} --to openvino, or serve here with --engine llama.cpp"
    )


_SERVERS: dict[str, Callable[[str | Path, str, str, Sequence[str]], AbstractContextManager[Behind]]] = {
    "llama.cpp": _llama_cpp,
    "transformers": _transformers,
    "openvino": _openvino,
}
