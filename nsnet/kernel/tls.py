"""A few TLS questions in namespaces: a handshake with a server name, a payload, and the certificate that was shown.

Unlike `probe` this waits for one after the other, in a few threads: a handshake costs processor time, not waiting time.
Nothing is trusted and nothing verified; what was shown is the answer. Sockets are opened before, where entering a
namespace does not touch what other threads do.
"""

import hashlib
import socket
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import monotonic

from nsnet.kernel.netns import inside
from nsnet.kernel.probe import MOST_BODY, OUTCOMES, Answer, Probe

THREADS = 8


def probe(questions: Sequence[tuple[Probe, str]], *, timeout: float = 1.0) -> list[Answer]:
    """Asks each probe with its server name. An answer's body: the SHA-256 of the certificate, a line end, the data."""
    sockets = [_socket(item.netns) for item, _ in questions]
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(_ask, sock, *asked, timeout) for sock, asked in zip(sockets, questions, strict=True)]
    return [job.result() for job in jobs]


def _socket(netns: str) -> socket.socket | OSError:
    try:
        with inside(netns):
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        return error


def _ask(sock: socket.socket | OSError, item: Probe, name: str, timeout: float) -> Answer:
    started = monotonic()
    if isinstance(sock, OSError):
        return Answer("error", error=str(sock))
    try:
        with sock:
            sock.settimeout(timeout)
            sock.connect((item.address, item.port))
            local = sock.getsockname()
            with _context().wrap_socket(sock, server_hostname=name) as wrapped:
                shown = wrapped.getpeercert(binary_form=True) or b""
                wrapped.sendall(item.payload)
                body = _all(wrapped)
    except TimeoutError:
        return Answer("timeout", error="no answer", seconds=monotonic() - started)
    except OSError as error:
        outcome = OUTCOMES.get(error.errno or 0, "error")
        return Answer(outcome, error=str(error), seconds=monotonic() - started)
    head = hashlib.sha256(shown).hexdigest().encode()
    return Answer("ok", head + b"\n" + body, local, "", monotonic() - started)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _all(sock: ssl.SSLSocket) -> bytes:
    """Until the other side ends, or a silence after the first data."""
    body = b""
    with suppress(TimeoutError, ssl.SSLError):
        while len(body) < MOST_BODY and (data := sock.recv(16384)):
            body += data
    return body
