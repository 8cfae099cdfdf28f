"""agnhost netexec's protocol, pure: bytes in, bytes out, no socket.

HTTP on every TCP port, lines on every UDP port, as Kubernetes' own end-to-end tests speak them
(test/images/agnhost/netexec), so that those tests can be asked of our pods. Three things are nsnet's own: a path that
netexec does not have answers with a JSON line that says who was asked and who asked; the UDP line `whoami` answers with
the same; and a TCP client that sends a bare line (`echo hostName | nc`, agnhost's serve-hostname) gets a line back.
/shell, /exit and /upload are never served.

What a client can make a conversation hold is bounded: MAX_HEAD bytes (and one `receive` more) and MAX_HEADERS lines of
header or trailer, no body at all (bodies are read and dropped). HTTP itself is llhttp's business (httptools): framing,
pipelining, keep-alive, refusals.
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import httptools
import msgspec

MAX_HEAD = 16 * 1024
MAX_HEADERS = 100

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"
NEVER = frozenset({"/shell", "/exit", "/upload"})
REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 431: b"Request Header Fields Too Large"}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Served(msgspec.Struct, frozen=True):
    """Whom a socket stands in for."""

    namespace: str
    pod: str
    node: str
    ip: str
    hostname: str
    port: int


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON line: who was asked, who asked (`client` is `ip:port` as seen here) and, over HTTP, what."""

    pod: str
    namespace: str
    node: str
    hostname: str
    ip: str
    port: int
    client: str
    method: str = ""
    path: str = ""
    host: str = ""
    headers: dict[str, str] = {}


def identity(served: Served, client: str, **request: Any) -> bytes:
    """The JSON line, newline included."""
    who = Identity(
        served.pod, served.namespace, served.node, served.hostname, served.ip, served.port, client, **request
    )
    return msgspec.json.encode(who) + b"\n"


def line(served: Served, client: str, said: str) -> str:
    """The answer to one line; empty for a line the protocol does not have (netexec does not answer those)."""
    word, _, rest = said.partition(" ")
    match word.lower():
        case "hostname":
            return served.hostname
        case "echo":
            return rest
        case "clientip":
            return client
        case "serverport":
            return str(served.port)
        case "whoami":
            return identity(served, client).decode().rstrip("\n")
    return ""


def datagram(served: Served, client: str, data: bytes) -> bytes:
    """The answer to a datagram, as netexec gives it: without a newline at its end. Empty: no answer."""
    return line(served, client, data.decode("utf-8", "replace").strip()).encode()


def response(status: int, body: bytes, kind: bytes = TEXT, *, head: bool = False, close: bool = False) -> bytes:
    """A whole HTTP/1.1 answer; `head` leaves out the body but says its length (RFC 9110 9.3.2)."""
    return b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s\r\n%s" % (
        status,
        REASONS[status],
        kind,
        len(body),
        b"Connection: close\r\n" if close else b"",
        b"" if head else body,
    )


class Conversation:
    """One TCP connection: `receive` what the client sent, get what to send back.

    Afterwards `closing` says that nothing more is to be read, and `idle` that no request is half-way.
    """

    __slots__ = ("_headers", "_out", "_parser", "_pending", "_started", "_url", "client", "closing", "idle", "served")

    def __init__(self, served: Served, client: str) -> None:
        self.served = served
        self.client = client
        self.closing = False
        self.idle = True
        self._started = False
        self._parser = httptools.HttpRequestParser(self)
        self._out: list[bytes] = []
        self.on_message_begin()

    def receive(self, data: bytes) -> bytes:
        """What to send back, possibly nothing. Never raises, whatever the bytes are."""
        if self.closing:
            return b""
        self.idle = False
        self._pending += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.closing = True  # the request was answered; what it wants to upgrade to is not spoken here
        except (httptools.HttpParserError, httptools.HttpParserCallbackError):
            self._refuse(data)
        if self._pending > MAX_HEAD and not self.closing:
            self._say(431, b"")
        self._started = True
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _refuse(self, data: bytes) -> None:
        """Bytes that are not HTTP: a line of the UDP protocol is answered, the rest refused."""
        said = b"" if self._started else self._line(data)
        if said:
            self._out.append(said)
            self.closing = True
        elif not self.closing:
            self._say(431 if len(self._headers) > MAX_HEADERS else 400, b"")

    def _line(self, data: bytes) -> bytes:
        first, newline, _ = data.partition(b"\n")
        answer = line(self.served, self.client, first.decode("utf-8", "replace").strip()) if newline else ""
        return answer.encode() + b"\n" if answer else b""

    def _say(self, status: int, body: bytes) -> None:
        self._out.append(response(status, body, close=True))
        self.closing = True

    # --- what llhttp found, in order ---

    def on_message_begin(self) -> None:
        self.idle = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._pending = 0  # bytes since llhttp last came to the end of something: of what it may be keeping

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        if len(self._headers) > MAX_HEADERS:
            raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        self._pending = 0
        if any(name.lower() == b"expect" for name, _ in self._headers):
            self._out.append(CONTINUE)

    def on_body(self, _: bytes) -> None:
        self._pending = 0

    def on_message_complete(self) -> None:
        if self.closing:
            return
        self.closing = not self._parser.should_keep_alive() or self._parser.should_upgrade()
        method = self._parser.get_method()
        status, kind, body = self._answer(method)
        self._out.append(response(status, body, kind, head=method == b"HEAD", close=self.closing))
        self.idle = True
        self._headers = []
        self._pending = 0

    def _answer(self, method: bytes) -> tuple[int, bytes, bytes]:
        path, _, query = self._url.decode("utf-8", "replace").partition("?")
        if path in NEVER:
            return 404, TEXT, b""
        plain = PATHS.get(path)
        if plain is not None:
            return 200, TEXT, plain(self, query).encode("utf-8", "replace")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._headers}
        host = next((value for name, value in headers.items() if name.lower() == "host"), "")
        said = {"method": method.decode(), "path": self._url.decode("utf-8", "replace"), "host": host}
        return 200, JSON, identity(self.served, self.client, headers=headers, **said)


def _echo(query: str) -> str:
    return parse_qs(query, errors="replace", max_num_fields=MAX_HEADERS).get("msg", [""])[0]


def _echo_or_nothing(query: str) -> str:
    try:
        return _echo(query)
    except ValueError:  # more fields than anyone means
        return ""


PATHS: dict[str, Callable[[Conversation, str], str]] = {
    "/hostname": lambda asked, _: asked.served.hostname,
    "/clientip": lambda asked, _: asked.client,
    "/echo": lambda _, query: _echo_or_nothing(query),
    "/healthz": lambda _, __: "",
    "/serverport": lambda asked, _: str(asked.served.port),
}
