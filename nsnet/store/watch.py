"""What happens in an etcd, as it happens: one stream of every change since a revision, taken up again where it broke.

The whole key space is watched, not a prefix. A revision is one transaction somewhere in the store, so *every* revision
brings an event; whoever knows that the store is at revision 17 has seen everything once the stream has brought 17. With
a prefix nobody could tell silence from delay (etcd's progress notifications may overtake events before 3.4.25).

The stream is a socket like any other and never blocks: `fileno` is an epoll descriptor that stays the same when the
connection behind it changes. `hasleader` asks etcd to end the stream when its member has lost the others.
"""

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import httptools
import msgspec

from nsnet.store.gateway import CONNECT_SECONDS, Gateway, connected, context

PAUSE_FIRST, PAUSE_LAST = 0.1, 5.0  # seconds until a lost stream is opened again, as flannel waits
KEPT = 100_000  # events that wait for somebody to ask; more, and whoever asks lists everything anew
EVERYTHING = {"key": b"\0", "range_end": b"\0"}


class _KeyValue(msgspec.Struct):
    key: bytes
    value: bytes = b""
    mod_revision: int = 0


class _Event(msgspec.Struct):
    kv: _KeyValue
    type: str = "PUT"


class _Header(msgspec.Struct, frozen=True):
    revision: int = 0


class _Result(msgspec.Struct, frozen=True):
    header: _Header = _Header()
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    events: list[_Event] = []


class _Frame(msgspec.Struct):
    result: _Result | None = None


class Change(msgspec.Struct, frozen=True):
    """A key was written at `revision`, or deleted (`value` is None)."""

    revision: int
    key: bytes
    value: bytes | None


_frames = msgspec.json.Decoder(_Frame, strict=False)


class Watch:
    """Every change after revision `since`. Used by one thread; `pump` whenever `fileno` is readable, and now and then.

    `within`: of a range of keys alone, as etcd says it; `reached` is that of the last change in it then.

    `reached` is the revision up to which everything has come; `compacted` that up to which etcd has forgotten the
    changes, where it has forgotten some that were wanted (0: it has not).
    """

    def __init__(self, gateway: Gateway, since: int, within: Mapping[str, bytes] = EVERYTHING) -> None:
        self._gateway = gateway
        self._within = within
        self._tls = context(gateway.location)
        self._endpoint = 0
        self._poll = select.epoll()
        self._socket: socket.socket | None = None
        self._pause = PAUSE_FIRST
        self._again = 0.0  # when to connect again
        self.begin(since)

    def begin(self, since: int) -> None:
        """Starts anew: everything after `since`."""
        self.since = self.reached = since
        self.compacted = 0
        self.changes: deque[Change] = deque()
        self._again = 0.0
        self._close()

    def fileno(self) -> int:
        return self._poll.fileno()

    def close(self) -> None:
        self._close()
        self._poll.close()

    def pump(self, timeout: float = 0.0) -> bool:
        """Takes in what has come, waiting for it at most `timeout` seconds; True when that was something."""
        deadline = time.monotonic() + timeout
        while not self.compacted:
            before = self.reached
            if self._socket is None and time.monotonic() >= self._again:
                self._open()
            if self._socket is not None:
                self._take()
            if self.reached > before or self.compacted:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._sleep(left)
        return True

    def forget(self, revision: int) -> None:
        """Nobody will ask for the changes up to `revision` again."""
        while self.changes and self.changes[0].revision <= revision:
            self.changes.popleft()
        self.since = max(self.since, min(revision, self.reached))

    def elsewhere(self) -> None:
        """This endpoint is behind, or its connection dead without having said so."""
        self._lost()
        self._again = 0.0

    def _sleep(self, left: float) -> None:
        if self._socket is None:
            time.sleep(min(left, max(0.0, self._again - time.monotonic())))
        else:
            self._poll.poll(left)

    # --- the stream ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        endpoint = self._gateway.location.endpoints[self._endpoint]
        try:
            self._socket = connected(endpoint, self._tls)
            self._socket.settimeout(CONNECT_SECONDS)
            self._socket.sendall(_request(self._within, self.reached + 1))
        except OSError:
            self._lost()
            return
        self._parser = httptools.HttpResponseParser(self)
        self._text = b""
        self._socket.setblocking(False)
        self._poll.register(self._socket, select.EPOLLIN)

    def _lost(self) -> None:
        """The next endpoint, after a while."""
        self._close()
        self._endpoint = (self._endpoint + 1) % len(self._gateway.location.endpoints)
        self._again = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, PAUSE_LAST)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()  # which takes it out of the epoll set
            self._socket = None

    def _take(self) -> None:
        """Reads all there is: what TLS has read already shows in no poll."""
        try:
            while self._socket is not None:
                data = self._socket.recv(1 << 18)
                if not data:
                    self._lost()
                    return
                self._parser.feed_data(data)
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except (OSError, httptools.HttpParserError, msgspec.MsgspecError):
            self._lost()

    def on_body(self, body: bytes) -> None:
        """Httptools calls it: the answer's body is one frame of JSON per line, and never ends."""
        self._text += body
        *lines, self._text = self._text.split(b"\n")
        for line in filter(None, lines):
            self._frame(_frames.decode(line).result)

    def _frame(self, said: _Result | None) -> None:
        if said is None or (said.canceled and not said.compact_revision):
            self._lost()  # no leader, say
            return
        self._pause = PAUSE_FIRST
        if said.canceled:
            self.compacted = said.compact_revision
            return
        for event in said.events:
            value = event.kv.value if event.type == "PUT" else None
            self.changes.append(Change(event.kv.mod_revision, event.kv.key, value))
        if said.events:
            self.reached = said.events[-1].kv.mod_revision
        if len(self.changes) > KEPT:
            self.forget(self.changes[len(self.changes) - KEPT].revision)


def _request(within: Mapping[str, bytes], revision: int) -> bytes:
    body: dict[str, Any] = {**within, "start_revision": str(revision)}
    data = msgspec.json.encode({"create_request": body})
    return (
        b"POST /v3/watch HTTP/1.1\r\nHost: etcd\r\nContent-Type: application/json\r\nGrpc-Metadata-hasleader: true\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(data), data)
    )
