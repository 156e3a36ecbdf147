"""`sentei serve`: a real server, a real answer, a clean end; and what is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from sentei.errors import InputError
from sentei.models.save import save
from sentei.ship.serve import Endpoint, serve
from ship.byte_level import cut_model, whole_model


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of blocks that differ, as `sentei cut` writes it."""
    loaded = cut_model("llama", 3)
    path = tmp_path_factory.mktemp("serve") / "tiny-cut"
    save(loaded.model, path, tokenizer=loaded.tokenizer)
    return path


def ask(endpoint: Endpoint) -> Any:
    body = {"model": endpoint.model, "messages": [{"role": "user", "content": "abab"}], "max_tokens": 4}
    request = urllib.request.Request(
        f"{endpoint.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.engine
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_end(cut: Path, sent: signal.Signals) -> None:
    pytest.importorskip("xllamacpp", reason="needs the package xllamacpp")
    command = [sys.executable, "-m", "sentei", "serve", str(cut), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()  # comes when the server answers
            assert first.startswith("llama.cpp serves") and "http://127.0.0.1:" in first, (first, process.poll())
            assert process.stdout.readline() == "\n"
            curl = process.stdout.readline()
            url = first.split(" at ")[1].split("/v1")[0]
            assert curl.startswith(f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{{")
            endpoint = Endpoint("llama.cpp", url, "tiny-cut")
            answer = ask(endpoint)
            assert answer["usage"]["completion_tokens"] == 4 and answer["model"] == "tiny-cut"
            assert answer["choices"][0]["message"]["role"] == "assistant"
            process.send_signal(sent)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0 and err.endswith("stopped\n") and "Traceback" not in err
    assert not endpoint.healthy()


@pytest.mark.engine
@pytest.mark.slow
def test_transformers_serves_a_stock_class(tmp_path: Path) -> None:
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason=f"needs the package {name}")
    loaded = whole_model()
    save(loaded.model, tmp_path / "tiny", tokenizer=loaded.tokenizer)
    with serve(tmp_path / "tiny", engine="transformers", port=0) as endpoint:
        assert ask(endpoint)["usage"]["completion_tokens"] == 4
    assert not endpoint.healthy()


def test_transformers_is_refused_where_blocks_differ(cut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentei.ship.serve._needs", lambda *names: None)
    with (
        pytest.raises(InputError, match=r"stock classes only.*--to dense-fold"),
        serve(cut, engine="transformers", port=0),
    ):
        pass


def test_what_is_refused(cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"did you mean 'llama\.cpp'"), serve(cut, engine="llama.cp"):
        pass
    with pytest.raises(InputError, match="no server among Python packages"), serve(cut, engine="openvino", port=0):
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen on 127\.0\.0\.1:{port}"), serve(cut, port=port):
            pass
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install xllamacpp"), serve(cut, port=0):
        pass


def test_a_server_that_ends_early_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentei.ship.serve._needs", lambda *names: None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_architecture"}))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(_failing(tmp_path)), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(InputError, match=r"ended before it served: .*no such thing"):  # noqa: SIM117
        with serve(tmp_path, engine="transformers", port=0):
            pass


def _failing(tmp_path: Path) -> Path:
    """A stand-in for the package, so that the failure comes at once."""
    package = tmp_path / "path" / "transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('no such thing')")
    return package.parent
