"""The door of `sentei serve`, in front of a stand-in for an engine's server."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sentei.ship.gate import Rules, gate, loopback

KEY = "correct-horse"


class Engine(BaseHTTPRequestHandler):
    """Says what it got; streams at /v1/stream."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        if self.path == "/v1/stream":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (b"data: 1\n\n", b"data: 2\n\n"):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        text = json.dumps({"path": self.path, "body": body.decode(), "headers": dict(self.headers)}).encode()
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def engine() -> Iterator[tuple[str, int]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield "127.0.0.1", server.server_port
    server.shutdown()
    server.server_close()


class Asked:
    def __init__(self, port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.putrequest(method, path, skip_host=True)
        given = {"Host": f"127.0.0.1:{port}", "Authorization": f"Bearer {KEY}", **headers}
        given |= {"Content-Length": str(len(body))} if body is not None and "Content-Length" not in given else {}
        for name, value in given.items():
            if value:
                connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        answer = connection.getresponse()
        self.status, self.headers, self.text = answer.status, answer.headers, answer.read()
        connection.close()


@pytest.fixture
def opened(engine: tuple[str, int]) -> Iterator[Any]:
    closing: list[Any] = []

    def start(secret: str | None = "inner", **rules: Any) -> int:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        made = gate(listener, Rules(**{"key": KEY, "host": "127.0.0.1", **rules}), engine, secret)
        closing.append(made)
        return int(made.__enter__())

    yield start
    for made in closing:
        made.__exit__(None, None, None)


def test_what_is_allowed_goes_through_with_the_inner_key(opened: Any) -> None:
    port = opened()
    asked = Asked(port, "POST", "/v1/chat/completions?a=1", b'{"x": 1}', Content_Type="application/json", Cookie="c")
    found = json.loads(asked.text)
    assert asked.status == 200 and found["path"] == "/v1/chat/completions?a=1" and found["body"] == '{"x": 1}'
    assert (
        found["headers"]["Authorization"] == "Bearer inner" and found["headers"]["Content-Type"] == "application/json"
    )
    assert "Cookie" not in found["headers"] and KEY not in asked.text.decode()
    assert asked.headers["Access-Control-Allow-Origin"] is None, "what the engine says of origins does not pass"
    assert Asked(port, "GET", "/v1/stream").text == b"data: 1\n\ndata: 2\n\n"


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer wrong", f"Bearer {KEY}x", f"Basic {KEY}", KEY])
def test_a_wrong_key_is_refused_everywhere_but_at_health(opened: Any, key: str) -> None:
    port = opened()
    for path in ("/v1/models", "/v1/chat/completions"):
        asked = Asked(port, "GET", path, Authorization=key)
        assert asked.status == 401 and json.loads(asked.text)["error"]["code"] == 401
    assert Asked(port, "GET", "/health", Authorization=key).status == 200


@pytest.mark.parametrize("key", [KEY, None])
def test_foreign_names_are_refused_with_and_without_a_key(opened: Any, key: str | None) -> None:
    """A page whose name is rebound to 127.0.0.1 sends that name."""
    port = opened(key=key)
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "10.0.0.1",
    ):
        assert Asked(port, "GET", "/health", Host=host).status == 403, host
    for host in ("localhost", f"LOCALHOST:{port}", f"127.0.0.1:{port}", "[::1]:80", "127.0.0.2"):
        assert Asked(port, "GET", "/v1/models", Host=host).status == 200, host
    assert Asked(opened(hosts=("chat.home",)), "GET", "/v1/models", Host="chat.home:8000").status == 200
    assert Asked(port, "GET", "http://evil.example/v1/models").status == 403


@pytest.mark.parametrize("key", [KEY, None])
def test_foreign_pages_are_refused_with_and_without_a_key(opened: Any, key: str | None) -> None:
    port = opened(key=key, origins=("https://chat.example",))
    own = f"http://127.0.0.1:{port}"
    for origin in (
        "https://evil.example",
        "null",
        "http://127.0.0.1:1",
        f"{own}.evil.example",
        "https://chat.example.evil",
    ):
        for method in ("GET", "POST", "OPTIONS"):
            asked = Asked(port, method, "/v1/models", Origin=origin, Content_Length="0")
            assert asked.status == 403 and asked.headers["Access-Control-Allow-Origin"] is None, origin
    for origin in ("https://chat.example", own):
        asked = Asked(port, "GET", "/v1/models", Origin=origin)
        assert asked.status == 200 and asked.headers["Access-Control-Allow-Origin"] == origin
        before = Asked(port, "OPTIONS", "/v1/models", Origin=origin, Authorization="")
        assert before.status == 204 and "authorization" in before.headers["Access-Control-Allow-Headers"]


def test_other_paths_are_closed_until_they_are_asked_for(opened: Any) -> None:
    port = opened()
    for path in (
        "/slots",
        "/slots/0?action=save",
        "/props",
        "/metrics",
        "/",
        "/v1/../slots",
        "/v1/%2e%2e/slots",
        "//x/v1/a",
    ):
        assert Asked(port, "GET", path).status == 404, path
    assert Asked(opened(paths=("/metrics",)), "GET", "/metrics").status == 200


def test_bodies_without_a_length_or_too_long(opened: Any) -> None:
    port = opened()
    assert Asked(port, "POST", "/v1/a", Transfer_Encoding="chunked").status == 411
    assert Asked(port, "POST", "/v1/a", Content_Length="many").status == 411
    assert Asked(port, "POST", "/v1/a", Content_Length=str(1 << 40)).status == 413


def test_an_engine_that_is_gone(opened: Any, engine: tuple[str, int]) -> None:
    listener, free = socket.socket(), socket.socket()
    listener.bind(("127.0.0.1", 0))
    free.bind(("127.0.0.1", 0))
    with gate(listener, Rules(KEY, "127.0.0.1"), free.getsockname(), None) as port:
        assert Asked(port, "GET", "/v1/models").status == 502
    free.close()


def test_which_addresses_are_of_this_machine() -> None:
    assert all(map(loopback, ("127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]")))
    assert not any(map(loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org")))
    outside = Rules(KEY, "0.0.0.0")
    assert (
        outside.named("192.168.0.1:8000") and outside.named(socket.gethostname()) and not outside.named("evil.example")
    )
