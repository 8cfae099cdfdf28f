"""A steady load of HTTP requests, and what was lost of it: `python load.py ADDRESS PORT HOST RATE KEPT`.

Runs inside a namespace. Request n is due at n/RATE seconds and is sent then, however the ones before it fare; each on a
connection of its own or, with KEPT 1, every other one on a connection that is kept. It ends when its stdin does,
answers what is due until then, and prints JSON: `done`, `seconds`, `late` (how long the latest was sent after it was
due, s), `slowest` (from sent to answered, s) and `lost`, a list of [when it was sent, on time.monotonic's clock, why].
What is not answered by 200 is lost.
"""

import errno
import json
import selectors
import socket
import struct
import sys
from itertools import takewhile
from time import monotonic

PATIENCE = 5.0  # s for an answer
AT_ONCE = 400  # requests under way
KEPT = 16  # connections that are kept
NO_TIME_WAIT = struct.pack("ii", 1, 0)  # closed by a reset: else a minute's connections would use up all ports


class Asking:
    """A connection with one request under way, or none."""

    def __init__(self, sock: socket.socket, *, kept: bool) -> None:
        self.sock = sock
        self.kept = kept
        self.sent = 0.0  # 0: it waits for a request
        self.answer = b""

    def take(self) -> str:
        """What it has heard so far: empty is not yet all, `ok`, or why the request is lost."""
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return ""
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
        self.answer += data
        head, end, body = self.answer.partition(b"\r\n\r\n")
        if not data:
            return "closed"
        length = next((line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b"0")
        if not end or len(body) < int(length):
            return ""
        self.kept = self.kept and b"\r\nconnection: close" not in head.lower()
        return "ok" if head[9:12] == b"200" else head[9:12].decode(errors="replace")


class Load:
    def __init__(self, address: str, port: int, host: str, rate: float, *, kept: bool) -> None:
        self.to = (address, port)
        self.rate, self.kept = rate, kept
        self.request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        self.selector = selectors.DefaultSelector()
        self.idle: list[Asking] = []
        self.busy: dict[Asking, None] = {}  # in the order in which they were sent
        self.done, self.late, self.slowest = 0, 0.0, 0.0
        self.lost: list[tuple[float, str]] = []

    def run(self) -> float:
        """Seconds for which requests were due."""
        self.selector.register(sys.stdin, selectors.EVENT_READ)
        start, number, end = monotonic(), 0, 0.0
        while not end or self.busy or start + number / self.rate < end:
            now = monotonic()
            while (due := start + number / self.rate) <= (end or now) and len(self.busy) < AT_ONCE:
                self.late = max(self.late, now - due)
                self._ask(kept=self.kept and bool(number % 2))
                number += 1
            for key, _ in self.selector.select(max(0.0, min(due - now, 0.1))):
                if key.data is None:
                    self.selector.unregister(sys.stdin)
                    end = monotonic()
                else:
                    self._go_on(key.data)
            self._forget()
        return end - start

    def _ask(self, *, kept: bool) -> None:
        if kept and self.idle:
            one = self.idle.pop()
            one.sent = monotonic()
            self.busy[one] = None
            self._send(one)
            return
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_TIME_WAIT)
        one = Asking(sock, kept=kept)
        one.sent = monotonic()
        self.busy[one] = None
        sock.connect_ex(self.to)
        self.selector.register(sock, selectors.EVENT_WRITE, one)

    def _go_on(self, one: Asking) -> None:
        if not one.sent:  # the proxy has closed it, as it may
            self._close(one)
            self.idle.remove(one)
        elif self.selector.get_key(one.sock).events == selectors.EVENT_WRITE:
            wrong = one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if wrong:
                self._end(one, errno.errorcode.get(wrong, str(wrong)))
                return
            self.selector.modify(one.sock, selectors.EVENT_READ, one)
            self._send(one)
        elif outcome := one.take():
            self._end(one, outcome)

    def _send(self, one: Asking) -> None:
        try:
            one.sock.send(self.request)
        except OSError as error:
            self._end(one, errno.errorcode.get(error.errno or 0, str(error)))

    def _end(self, one: Asking, outcome: str) -> None:
        del self.busy[one]
        if outcome == "ok":
            self.done += 1
            self.slowest = max(self.slowest, monotonic() - one.sent)
        else:
            self.lost.append((one.sent, outcome))
        if outcome == "ok" and one.kept and len(self.idle) < KEPT:
            one.sent, one.answer = 0.0, b""
            self.idle.append(one)
        else:
            self._close(one)

    def _close(self, one: Asking) -> None:
        self.selector.unregister(one.sock)
        one.sock.close()

    def _forget(self) -> None:
        """What nobody has answered in time."""
        limit = monotonic() - PATIENCE
        for one in list(takewhile(lambda one: one.sent < limit, self.busy)):
            self._end(one, "timeout")


def main() -> None:
    address, port, host, rate, kept = sys.argv[1:]
    load = Load(address, int(port), host, float(rate), kept=kept == "1")
    seconds = load.run()
    found = {"done": load.done, "seconds": seconds, "late": load.late, "slowest": load.slowest, "lost": load.lost}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
