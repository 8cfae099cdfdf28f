"""The page's door: HTTP on loopback, for whoever has the URL with its token.

- Only 127.0.0.1 is listened on, in the namespace the verb was started in. Host must be a name of this machine's
  loopback (so a name that somebody points here, DNS rebinding, leads nowhere), and where a browser says Origin it must
  be the page's own.
- The token of the URL is exchanged for a cookie (SameSite=Strict, HttpOnly), so that it does not stay in the address
  bar; without the cookie nothing is served. Ports share cookies, so the cookie's name has the port in it.
- The page loads nothing from elsewhere and runs no script but its own (Content-Security-Policy).
- Everything is read, but for a packet that one asks to be sent, which takes POST.

`http.server` says of itself that it has only basic security checks; behind these that is what is wanted: no
directory is served, no path is opened, and there is nothing between a request and the table in `_answer`.
"""

import secrets
import sys
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler
from importlib import resources
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from nsnet.cli.page import asked
from nsnet.cli.page.feed import Feed
from nsnet.errors import NsnetError

LOOPBACK = "127.0.0.1"
LOCAL = frozenset({LOOPBACK, "localhost"})
CONNECTIONS = 64  # at a time
SILENCE = 30.0  # s a connection may say nothing
HTML, JSON = "text/html; charset=utf-8", "application/json"
FILES = {
    "/": ("index.html", HTML),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in ("page", "picture", "way")},
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STATUS = {2: HTTPStatus.BAD_REQUEST}


class Server(ThreadingMixIn, TCPServer):
    """Listens from its making on; `port` 0 takes a free one. Raises OSError where it is taken."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, cluster: str, feed: Feed, port: int = 0) -> None:
        super().__init__((LOOPBACK, port), Handler)
        self.cluster, self.feed = cluster, feed
        self.port: int = self.server_address[1]
        self.token, self.secret = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self.files = {path: (_read(name), kind) for path, (name, kind) in FILES.items()}
        self._room = threading.BoundedSemaphore(CONNECTIONS)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/?token={self.token}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each connection, as far as there is room."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error; anything else is printed."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _read(name: str) -> bytes:
    return (resources.files("nsnet") / "data" / "page" / name).read_bytes()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "nsnet", ""
    timeout = SILENCE

    def do_GET(self) -> None:
        self._answer(changing=False)

    def do_POST(self) -> None:
        self._answer(changing=True)

    def log_message(self, *_: Any) -> None:
        """The terminal belongs to the URL."""

    def _answer(self, *, changing: bool) -> None:
        try:
            url = urlsplit(self.path)
            words = {name: values[-1] for name, values in parse_qs(url.query).items()}
            length = int(self.headers.get("Content-Length") or 0)
            why = self._stranger(changing=changing)
        except ValueError:
            self.close_connection = True  # where it ends nobody knows
            self._say(HTTPStatus.BAD_REQUEST, "this is no request")
            return
        if length or self.headers.get("Transfer-Encoding"):
            self.close_connection = True  # nobody reads a body here
        if why:
            self._say(HTTPStatus.FORBIDDEN, why)
        elif "token" in words and url.path == "/":
            self._exchange(words["token"])
        elif not self._is_known():
            self._say(HTTPStatus.FORBIDDEN, "open the address that `nsnet ui` has printed, with its token")
        elif url.path == "/way" or (url.path == "/packet" and changing):
            self._way(words, send=changing)
        elif url.path == "/feed" and not changing:
            self._feed()
        elif url.path in self.server.files and not changing:
            self._send(HTTPStatus.OK, *self.server.files[url.path])
        else:
            self._say(HTTPStatus.NOT_FOUND, "there is no such thing here")

    # --- who asks -----------------------------------------------------------------------------------------------------

    def _stranger(self, *, changing: bool) -> str:
        """Why the request is none of our page's; empty where it may be."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if urlsplit(f"//{host}").hostname not in LOCAL:
            return "this page has the address 127.0.0.1 or localhost, and no other name"
        if (changing or origin is not None) and origin != f"http://{host}":
            return "asked from another page"
        return ""

    @property
    def _cookie(self) -> str:
        return f"nsnet-ui-{self.server.port}"

    def _is_known(self) -> bool:
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(self.headers.get("Cookie", ""))
        except CookieError:
            return False
        said = cookies[self._cookie].value if self._cookie in cookies else ""
        return secrets.compare_digest(said.encode(), self.server.secret.encode())

    def _exchange(self, token: str) -> None:
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._say(HTTPStatus.FORBIDDEN, "this token is none of this `nsnet ui`'s: it ends with the one who made it")
            return
        cookie = f"{self._cookie}={self.server.secret}; Path=/; HttpOnly; SameSite=Strict"
        self._send(HTTPStatus.SEE_OTHER, b"", HTML, {"Location": "/", "Set-Cookie": cookie})

    # --- what is answered ---------------------------------------------------------------------------------------------

    def _way(self, words: Mapping[str, str], *, send: bool) -> None:
        ends = words.get("from", ""), words.get("to", ""), words.get("protocol", "tcp")
        try:
            found, status = asked.way(self.server.cluster, *ends, send=send), HTTPStatus.OK
        except NsnetError as error:
            found = {"error": str(error), "hint": error.hint}
            status = STATUS.get(error.exit_code, HTTPStatus.CONFLICT)
        self._send(status, msgspec.json.encode(found), JSON)

    def _feed(self) -> None:
        """Server-sent events until the browser goes away."""
        self.close_connection = True
        self._head(HTTPStatus.OK, {"Content-Type": "text/event-stream", "Connection": "close"})
        for name, data in self.server.feed.follow():
            event = b"event: %b\ndata: %b\n\n" % (name.encode(), data) if name else b": still here\n\n"
            self.wfile.write(event)

    def _say(self, status: HTTPStatus, text: str) -> None:
        self._send(status, f"{text}\n".encode(), "text/plain; charset=utf-8")

    def _send(self, status: HTTPStatus, body: bytes, kind: str, more: Mapping[str, str] | None = None) -> None:
        self._head(status, {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})})
        self.wfile.write(body)

    def _head(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
