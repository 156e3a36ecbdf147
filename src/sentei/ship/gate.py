"""The door of `sentei serve`: what engines' own servers let in, it asks for first.

llama.cpp's server and `transformers serve` answer whoever reaches them: any web page (CORS is open, or a name that is
rebound to 127.0.0.1), any path (`/slots` shows the prompts of others). So they listen on a loopback port of their own,
and this stands in front: a key, the names that it may be called by, the pages that may call it, the paths.
"""

from __future__ import annotations

import contextlib
import hmac
import http.client
import ipaddress
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

BODY = 64 << 20  # bytes of a request at most
SECONDS = 600.0  # that a backend may take before its first byte, and between two
_PIECE = 1 << 16
# Of one connection, not of the message (RFC 9110, 7.6.1); and what the gate itself says of origins.
_OWN = {"connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade"}
_SENT = {"content-type", "accept", "user-agent"}  # of a request, all that the backend needs


@dataclass(frozen=True)
class Rules:
    """Who may ask for what.

    Attributes:
        key: asked for as `Authorization: Bearer KEY` everywhere but at `/health`; None: nobody is asked.
        host: that the gate listens on.
        hosts: further names that it may be called by, without port.
        origins: of web pages that may ask, such as `https://chat.example`; by default only its own.
        paths: that are let through besides `/health` and what begins with `/v1/`.
    """

    key: str | None
    host: str
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    def named(self, host: str | None) -> bool:
        """Whether a Host header names this server: by address, which nobody can rebind, or by a name that was given.

        Addresses other than those of loopback are of use only where it listens on one.
        """
        name = _name(host)
        if name is None:
            return False
        if name in {"localhost", self.host.lower(), *(given.lower() for given in self.hosts)}:
            return True
        address = _address(name)
        if address is None:
            return not loopback(self.host) and name in {socket.gethostname().lower(), socket.getfqdn().lower()}
        return address.is_loopback or not loopback(self.host)

    def admits(self, origin: str, host: str | None) -> bool:
        """Whether a web page of this origin may ask: one that was named, or one that this very server gave."""
        return origin in self.origins or (host is not None and origin in (f"http://{host}", f"https://{host}"))

    def knows(self, authorization: str | None) -> bool:
        """Whether the key is right."""
        wanted = f"Bearer {self.key}".encode()
        return self.key is None or hmac.compare_digest((authorization or "").encode("latin-1", "replace"), wanted)

    def open_to(self, path: str) -> bool:
        """Whether a path is let through."""
        plain = unquote(path)
        if ".." in plain or "//" in plain or "\\" in plain:
            return False
        return plain == "/health" or plain.startswith("/v1/") or plain in self.paths


def loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    address = _address(host.strip("[]"))
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


@contextlib.contextmanager
def gate(listener: socket.socket, rules: Rules, backend: tuple[str, int], secret: str | None) -> Iterator[int]:
    """Answers on a bound socket while the block runs.

    Args:
        listener: bound, not yet listening.
        rules: for every request.
        backend: address and port of the server behind it.
        secret: the backend's own key, which only the gate knows.

    Yields:
        The port.
    """
    server = _Server(listener, rules, backend, secret)
    thread = threading.Thread(target=server.serve_forever, name="gate", daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # an answer that still streams does not hold up the end

    def __init__(self, listener: socket.socket, rules: Rules, backend: tuple[str, int], secret: str | None) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_activate()
        self.rules, self.backend, self.secret = rules, backend, secret

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no event."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SECONDS
    server: _Server

    def do_GET(self) -> None:
        self._pass()

    def do_POST(self) -> None:
        self._pass()

    def do_OPTIONS(self) -> None:
        """A browser asks whether a page may ask; no key comes with that."""
        if not self._refused(asked=False):
            self.send_response(204)
            self._origin()
            self.send_header("Access-Control-Allow-Methods", "GET, POST")
            self.send_header("Access-Control-Allow-Headers", "authorization, content-type")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are the user's own business."""

    def _refused(self, *, asked: bool = True) -> bool:
        """Answers a request that the rules forbid. `asked`: whether the key is."""
        rules, path = self.server.rules, self.path.partition("?")[0]
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        host = hosts[0] if len(hosts) == 1 else None
        if not self.path.startswith("/") or not rules.named(host):
            return self._say(403, f"this server is not {', '.join(hosts) or 'named'}; see --allow-host of sentei serve")
        if any(not rules.admits(origin, host) for origin in origins):
            return self._say(403, "pages of this origin may not ask; see --allow-origin of sentei serve")
        if not rules.open_to(path):
            return self._say(404, f"{path} is not served; see --allow-path of sentei serve")
        if asked and path != "/health" and not rules.knows(self.headers.get("Authorization")):
            return self._say(401, "a key is needed: Authorization: Bearer KEY, as sentei serve printed it")
        return False

    def _pass(self) -> None:
        """Lets a request through, and streams the answer back."""
        try:
            length = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            length = -1
        if length < 0 or self.headers.get("Transfer-Encoding"):
            self._say(411, "the length of the request is needed, as Content-Length")
            return
        if self._refused():
            return
        if length > BODY:
            self._say(413, f"a request has at most {BODY >> 20} MB")
            return
        body = self.rfile.read(length) if length else None
        headers = {name: value for name, value in self.headers.items() if name.lower() in _SENT}
        if self.server.secret is not None:
            headers["Authorization"] = f"Bearer {self.server.secret}"
        with contextlib.closing(http.client.HTTPConnection(*self.server.backend, timeout=SECONDS)) as behind:
            try:
                behind.request(self.command, self.path, body, headers)
                answer = behind.getresponse()
            except (OSError, http.client.HTTPException) as error:
                self._say(502, f"the engine does not answer: {error}")
                return
            self._relay(answer)

    def _relay(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        sized = answer.getheader("Content-Length") is not None
        for name, value in answer.getheaders():
            if name.lower() not in _OWN | {"server", "date"} and not name.lower().startswith("access-control-"):
                self.send_header(name, value)
        self._origin()
        if not sized:  # ends where the connection does
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        while piece := answer.read1(_PIECE):
            self.wfile.write(piece)
            self.wfile.flush()

    def _origin(self) -> None:
        """Tells the browser that the page may read the answer; the rules have let it in."""
        if origin := self.headers.get("Origin"):
            self.send_header("Access-Control-Allow-Origin", origin)
            self.send_header("Vary", "Origin")

    def _say(self, status: int, message: str) -> bool:
        """An error, in the form of OpenAI's. The connection ends, since the body was not read."""
        body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": status}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        self.wfile.write(body)
        return True


def _name(host: str | None) -> str | None:
    """The name in a Host header, lower case, without port and brackets."""
    if not host:
        return None
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
