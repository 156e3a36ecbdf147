"""`sentei serve`: a real server, a real answer, a clean end; and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
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
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {endpoint.key}"}
    request = urllib.request.Request(f"{endpoint.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def status_of(url: str, key: str | None, **headers: str) -> int:
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


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
            key = shlex.split(curl)[-1].removeprefix("Authorization: Bearer ")
            assert len(key) >= 32 and shlex.split(curl)[-2] == "-H"
            endpoint = Endpoint("llama.cpp", url, "tiny-cut", key)
            for path, mine, status in (("/v1/models", False, 401), ("/slots", True, 404), ("/v1/models", True, 200)):
                assert status_of(f"{url}{path}", key if mine else None) == status, path
            assert status_of(f"{url}/v1/models", key, Origin="https://evil.example") == 403
            assert status_of(f"{url}/v1/models", key, Host="evil.example") == 403
            answer = ask(endpoint)
            assert answer["usage"]["completion_tokens"] == 4 and answer["model"] == "tiny-cut"
            assert answer["choices"][0]["message"]["role"] == "assistant"
            process.send_signal(sent)
            rest, err = process.communicate(timeout=60)
            assert key not in rest and key not in err, "printed once"
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


def test_without_a_key_only_on_this_machine(cut: Path) -> None:
    with pytest.raises(InputError, match=r"whoever reaches 0\.0\.0\.0 could use the model"):  # noqa: SIM117
        with serve(cut, host="0.0.0.0", port=0, api_key=""):
            pass
    with pytest.raises(InputError, match="printable ASCII"), serve(cut, port=0, api_key="two words\n"):
        pass


def test_the_hint_survives_a_shell() -> None:
    name = 'it\'s $(touch x) `y` "z"'
    parts = shlex.split(Endpoint("llama.cpp", "http://127.0.0.1:1", name, "a'b").curl())
    assert json.loads(parts[5])["model"] == name and parts[-1] == "Authorization: Bearer a'b"
    hint = Endpoint("llama.cpp", "http://127.0.0.1:1", name, "secret").curl("$KEY")
    assert hint.endswith(' -H "Authorization: Bearer $KEY"') and "secret" not in hint
    assert "Authorization" not in Endpoint("llama.cpp", "http://127.0.0.1:1", name).curl()


STARTS = """
import subprocess, sys, time
command = [sys.executable, "-m", "sentei.ship.watched", "child:serve", "one", "two"]
process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
print(process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_ends_with_who_started_it(tmp_path: Path, sent: signal.Signals) -> None:
    said = tmp_path / "said"
    (tmp_path / "child.py").write_text(
        f"import sys, time\ndef serve():\n    open({str(said)!r}, 'w').write(' '.join(sys.argv))\n    time.sleep(600)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    with subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True, env=env) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        _until(lambda: said.exists() and said.read_text() != "")
        assert said.read_text() == "child one two" and _alive(child)
        parent.send_signal(sent)
        parent.wait(30)
    _until(lambda: not _alive(child))


def _until(true: Any) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc/self").exists()
