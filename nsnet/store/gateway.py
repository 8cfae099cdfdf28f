"""etcd's v3 API over its JSON gateway: one kept connection, the next endpoint when one fails, errors as sentences.

The gateway is part of every etcd since 3.3 and needs nothing but HTTP (facts/PARTS.md: 1,170 puts a second over one
connection; a gRPC client would be another dependency for as much). Bytes are base64, 64-bit numbers are strings, and
what is false, 0 or empty is left out: msgspec's structs with defaults, not strict about numbers, read exactly that.
The stock http.client sends a request in two packets and parses an answer as an e-mail: a quarter of a write's time.

Every request may be sent twice, when the connection broke before the answer came; so each is one that does no harm the
second time (a compare fails then, a lease's id is ours to choose). Sources: etcd `api/v3rpc/rpctypes/error.go`,
`Documentation/dev-guide/api_grpc_gateway.md`.
"""

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, TypeVar

import httptools
import msgspec

from nsnet.errors import InputError, MachineError, NsnetError
from nsnet.store import Unreachable
from nsnet.store.location import INSIDE, PATIENCE, Location, unix_path

T = TypeVar("T")

CONNECT_SECONDS = 1.5
ANSWER_SECONDS = 8.0  # etcd gives up by itself after about 7
PAUSE_FIRST, PAUSE_LAST = 0.05, 1.0
NOT_FOUND, PRECONDITION, UNAVAILABLE = 5, 9, 14
CALL_AGAIN = {
    1,
    4,
    UNAVAILABLE,
}  # cancelled, deadline exceeded, unavailable: no leader, leader changed, timed out, stopped


class Refused(NsnetError):  # noqa: N818 - what etcd did
    """etcd's answer to a request is an error; `code` is gRPC's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class NoAnswerError(ConnectionError):
    """The other end has closed the connection."""


class _Error(msgspec.Struct):
    error: str = ""
    message: str = ""
    code: int = 2


class Gateway:
    """The members of one etcd, asked one at a time. Used by one thread."""

    def __init__(self, location: Location, patience: float = PATIENCE) -> None:
        self.location = location
        self.patience = patience
        self._tls = context(location)
        self._at = 0  # the endpoint that is asked
        self._connection: _Connection | None = None

    def ask(self, path: str, body: Any, kind: type[T]) -> T:
        """One request and its answer.

        Raises Refused; Unreachable when no endpoint answers within `patience` seconds; MachineError where trying again
        cannot help.
        """
        data = msgspec.json.encode(body)
        deadline = time.monotonic() + self.patience
        pause, failed = PAUSE_FIRST, 0
        while True:
            try:
                return _answer(*self._post(path, data), kind)
            except (OSError, httptools.HttpParserError, Refused) as error:
                why = self._fatal(error)
                if not isinstance(why, Refused):
                    self._next()  # what is left of this connection is in no known state
                if why is not None:
                    raise why from error
                failed += 1
                if time.monotonic() > deadline:
                    raise unreachable(self.location, error) from error
            if failed % len(self.location.endpoints) == 0:
                time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
                pause = min(2 * pause, PAUSE_LAST)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, path: str, data: bytes) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = _Connection(self.location.endpoints[self._at], self._tls)
        status, body = self._connection.post(path, data)
        if not self._connection.kept:
            self.close()
        return status, body

    def _next(self) -> None:
        self.close()
        self._at = (self._at + 1) % len(self.location.endpoints)

    def _fatal(self, error: Exception) -> NsnetError | None:
        """The error to raise at once; None: the next endpoint may know better."""
        if isinstance(error, Refused):
            return None if error.code in CALL_AGAIN or "too many requests" in str(error) else _explained(error)
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return _distrusted(self.location, error)
        return None


class _Connection:
    """To a host or a unix socket, with or without TLS. `kept`: another request may follow."""

    def __init__(self, endpoint: str, tls: ssl.SSLContext | None) -> None:
        self._host = "localhost" if unix_path(endpoint) else endpoint
        self._socket = connected(endpoint, tls)
        self._socket.settimeout(ANSWER_SECONDS)
        self.kept = True

    def post(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Status and body of the answer. Raises OSError, HttpParserError."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        self._socket.sendall(b"%bContent-Length: %d\r\n\r\n%b" % (head.encode(), len(data), data))
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._complete = self.kept = False
        while not self._complete:
            part = self._socket.recv(1 << 18)
            if not part:
                raise NoAnswerError("the connection was closed before the answer had come")
            self._parser.feed_data(part)
        return self._parser.get_status_code(), b"".join(self._body)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._complete, self.kept = True, self._parser.should_keep_alive()

    def close(self) -> None:
        self._socket.close()


def connected(endpoint: str, tls: ssl.SSLContext | None) -> socket.socket:
    """A connection that notices within some ten seconds when the other end is cut off. Raises OSError."""
    if path := unix_path(endpoint):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _closed_if_it_fails(sock):
            sock.connect(path)
        return sock
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    sock = socket.create_connection((host, int(port)), CONNECT_SECONDS)
    with _closed_if_it_fails(sock):
        _keep_alive(sock)
        return tls.wrap_socket(sock, server_hostname=host) if tls else sock


@contextlib.contextmanager
def _closed_if_it_fails(sock: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        sock.close()
        raise


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in ((socket.TCP_KEEPIDLE, 3), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3)):
        sock.setsockopt(socket.IPPROTO_TCP, name, value)


def context(location: Location) -> ssl.SSLContext | None:
    """TLS as the location asks for it, with our certificate. Raises InputError where a file cannot be used."""
    if not location.tls:
        return None
    missing = [path for path in (location.cacert, location.cert, location.key) if path and not os.access(path, os.R_OK)]
    if missing:
        raise InputError(f"{missing[0]}: cannot be read", "the URL of the store names it")
    try:
        tls = ssl.create_default_context(cafile=location.cacert or None)
        if location.cert:
            tls.load_cert_chain(location.cert, location.key)
    except (ssl.SSLError, OSError) as error:
        names = ", ".join(filter(None, (location.cacert, location.cert, location.key)))
        raise InputError(f"{names}: not usable for TLS: {error}", "PEM files, the key without a password") from error
    return tls


# --- answers and errors -----------------------------------------------------------------------------------------------

_OF_A_PROXY = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
"""What stands before an etcd says so in its own words where it does not reach it."""


def _answer(status: int, body: bytes, kind: type[T]) -> T:
    try:
        if status == HTTPStatus.OK:
            return msgspec.json.decode(body, type=kind, strict=False)
        told = msgspec.json.decode(body, type=_Error, strict=False)
    except msgspec.MsgspecError as error:
        if status in _OF_A_PROXY:
            raise Refused(UNAVAILABLE, f"HTTP {status}") from error
        raise _no_etcd(body) from error
    raise Refused(told.code, told.message or told.error)


def _no_etcd(body: bytes) -> MachineError:
    said = body[:60].decode(errors="replace").strip().replace("\n", " ")
    return MachineError(
        f'what answers there is not an etcd with a v3 JSON gateway: "{said}"',
        "etcd 3.4 or newer; is the URL that of its clients' port?",
    )


def unreachable(location: Location, error: Exception) -> Unreachable:
    """No endpoint answers."""
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if location.text == INSIDE:
        return Unreachable(
            f"the cluster's own etcd does not answer: {why}",
            "`nsnet logs etcd` shows what it says; `nsnet up` starts it",
        )
    hosts = ", ".join(location.endpoints)
    spoken = isinstance(error, NoAnswerError | httptools.HttpParserError) and not location.tls
    hint = "does it want TLS? etcds://…" if spoken else "is etcd running, and the address right?"
    return Unreachable(f"etcd at {hosts} cannot be reached: {why}", f"{hint} nsnet status shows what goes on")


def _distrusted(location: Location, error: ssl.SSLError) -> MachineError:
    why = getattr(error, "verify_message", "") or error.reason or str(error)
    said = f"etcd at {', '.join(location.endpoints)}: TLS failed: {why}"
    if "expired" in why.lower():
        return MachineError(said, "an expired certificate: its owner must renew it")
    if isinstance(error, ssl.SSLCertVerificationError):
        return MachineError(said, "is cacert= the authority that signed etcd's certificate, and the host one it names?")
    return MachineError(
        said, "does etcd accept our certificate (cert=, key=)? has it expired? does it speak TLS there?"
    )


def _explained(error: Refused) -> NsnetError:
    said = str(error)
    if "space exceeded" in said:
        return MachineError(
            "etcd's database is full: it takes no writes (NOSPACE)",
            "etcdctl compact, defrag, then `etcdctl alarm disarm`; nothing was lost, and the cluster goes on",
        )
    if "too large" in said:
        return MachineError("an object is too large for etcd (1.5 MiB)", "split it; or raise --max-request-bytes")
    if "permission" in said or "user name" in said or "auth" in said:
        return MachineError(
            f"etcd refuses us: {said}", "nsnet shows a certificate; users and passwords are not supported"
        )
    return error
