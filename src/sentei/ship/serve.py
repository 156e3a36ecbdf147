"""`serve`: an OpenAI-compatible endpoint on this machine, by an engine's own server."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sentei.errors import InputError, one_line, unknown
from sentei.files import read_json
from sentei.ship.engines.arrays import threads
from sentei.ship.export import export

HEALTHY_SECONDS = 600.0  # that a model may take to load
STOP_SECONDS = 10.0  # that a server may take to end


@dataclass(frozen=True)
class Endpoint:
    """A running server. `engine` serves at `url`; `model` is what requests call the model."""

    engine: str
    url: str
    model: str

    def curl(self) -> str:
        """A command that asks it."""
        body = {"model": self.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
        return f"curl {self.url}/v1/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'"

    def healthy(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextlib.contextmanager
def serve(
    model: str | Path, *, engine: str = "llama.cpp", host: str = "127.0.0.1", port: int = 8000, dtype: str = "auto"
) -> Iterator[Endpoint]:
    """Serves a model while the block runs; the server answers when it begins, and is gone when it ends.

    Args:
        model: what `load` takes; a .gguf file is served as it is.
        engine: "llama.cpp" (the model goes to a temporary GGUF file first) or "transformers".
        host: address to listen on; whoever reaches it can use the model.
        port: 0 takes a free one.
        dtype: of the weights, as for `export`.

    Raises:
        InputError: an engine that is missing or has no server, a port that is taken, a model that it cannot hold.
    """
    if engine not in _SERVERS:
        raise unknown("engine for serve", engine, _SERVERS)
    name = Path(model).stem if str(model).endswith(".gguf") else Path(model).resolve().name
    with _SERVERS[engine](model, name, host, _free_port(host, port), dtype) as endpoint:
        yield endpoint


@contextlib.contextmanager
def _llama_cpp(model: str | Path, name: str, host: str, port: int, dtype: str) -> Iterator[Endpoint]:
    _needs("llama.cpp", "xllamacpp")
    with tempfile.TemporaryDirectory(prefix="sentei-serve-") as scratch:
        path = Path(model)
        if path.suffix != ".gguf":
            path = Path(scratch) / "model.gguf"
            export(model, "gguf", path, dtype=dtype, check=False)
        elif not path.is_file():
            raise InputError(f"{path} does not exist")
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.hostnames, params.port, params.model_alias = [host], port, {name}
        params.verbosity = -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads() or os.cpu_count() or 1
        try:
            server = xllamacpp.Server(params)  # returns when it answers
        except (RuntimeError, ValueError) as error:
            raise InputError(f"llama.cpp does not serve {model}: {one_line(error)}") from error
        endpoint = Endpoint("llama.cpp", server.listening_address, name)
        _wait(endpoint, lambda: None)
        try:
            yield endpoint
        finally:
            del server


@contextlib.contextmanager
def _transformers(model: str | Path, name: str, host: str, port: int, dtype: str) -> Iterator[Endpoint]:
    _needs("transformers serve", "fastapi", "uvicorn", "openai")
    with tempfile.TemporaryDirectory(prefix="sentei-serve-") as scratch:
        directory = _stock(model, Path(scratch) / name, dtype)
        command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
        command += [str(directory), "--host", host, "--port", str(port)]
        log = Path(scratch) / "log.txt"
        with open(log, "wb") as file:
            # In a session of its own, so that Ctrl-C reaches us, and we end it.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        endpoint = Endpoint("transformers", f"http://{_bracketed(host)}:{port}", str(directory))
        try:
            _wait(endpoint, lambda: None if process.poll() is None else _last_line(log))
            yield endpoint
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
            f"llama.cpp, or pad it: sentei export {model} --to dense-fold --out DIR, and serve DIR"
        )
    return directory


def _free_port(host: str, port: int) -> int:
    """The port, if it can be had; one that can, for 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
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
    process.terminate()
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


def _openvino(model: str | Path, name: str, host: str, port: int, dtype: str) -> AbstractContextManager[Endpoint]:
    raise InputError(
        "OpenVINO has no server among Python packages: OpenVINO Model Server is a program of its own; "
        f"write its files with: sentei export {model} --to openvino, or serve here with --engine llama.cpp"
    )


_SERVERS: dict[str, Callable[[str | Path, str, str, int, str], AbstractContextManager[Endpoint]]] = {
    "llama.cpp": _llama_cpp,
    "transformers": _transformers,
    "openvino": _openvino,
}
