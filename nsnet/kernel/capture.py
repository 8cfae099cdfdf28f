"""Packets at every hop: AF_PACKET sockets of many namespaces in one process, merged on the kernel's one clock.

One socket sees all devices of its namespace, both directions, with the time at which the kernel had the packet. The
filter is classic BPF (`bpf.py`) and is attached before the socket is bound, so that nothing unwanted gets in. Packets
of several namespaces are put in order: what is older than the last moment at which every socket was known to be empty
can be overtaken by nothing.

Memory is bounded: each socket's queue in the kernel, and what is read of a socket before its turn has come. What does
not fit the queue is dropped by the kernel, counted (PACKET_STATISTICS) and told.

Three things the kernel does:
- Timestamps are switched on by the first socket that wants them, a moment later and by another thread; before that a
  packet gets the time at which it is read. So `_clock` waits until a frame sent on `lo` has the time of its sending.
- Closing one such socket takes 15 ms (an RCU grace period). They wait for it together, in threads.
- A socket keeps its namespace alive. So those whose name is gone are closed: `down` must not wait for a spectator.

Sources: Linux `net/packet/af_packet.c`, `net/core/dev.c` (net_enable_timestamp), packet(7).
"""

import ctypes
import errno
import os
import select
import socket
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from struct import Struct
from typing import NamedTuple, Self

from nsnet.errors import NotReachedError
from nsnet.kernel import bpf, netns
from nsnet.kernel.netlink import take_many

_ALL_PROTOCOLS = 3
_EXPERIMENTAL = 0x88B5  # IEEE 802 local experimental Ethertype: nobody listens to it
_ATTACH_FILTER, _TIMESTAMP_NS = 26, 35
_SOL_PACKET, _STATISTICS = 263, 6
_OUTGOING = 4
_IP_ALONE = {65534, 768}  # ARPHRD_NONE (TUN, WireGuard), ARPHRD_TUNNEL (IPIP): an IP packet and no frame
_HEADERS = {4: bytes(12) + b"\x08\x00", 6: bytes(12) + b"\x86\xdd"}  # by the IP version: from nobody, to nobody

_QUEUES = 64 << 20  # bytes of all sockets' queues together
_QUEUE = (1 << 20, 16 << 20)  # of one: at least, at most
_WAITING = 1 << 20  # bytes read of one socket that may wait for their turn
_SLACK = 1_000_000  # ns between a packet's time and its being in the queue
_CHECK = 0.5  # s between looks whether the namespaces are still there
_CLOCK_TRIES = 100
_CLOSERS = 32

_TIMESPEC = Struct("=qq")
_COUNTS = Struct("=II")
_SOCKADDR_LL = Struct("=HHiHBB8x")
_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)

_libc = ctypes.CDLL(None, use_errno=True)


class Seen(NamedTuple):
    """A frame on a device; `time` in ns since 1970, `length` as it was on the wire (`data` may be cut)."""

    time: int
    netns: str
    dev: str
    outgoing: bool
    data: bytes
    length: int


class _Spectator:
    """The socket of one namespace, and what was read of it before its turn."""

    __slots__ = ("dev", "drops", "identity", "netns", "sock", "waiting")

    def __init__(self, name: str, dev: str, program: bytes, queue: int) -> None:
        self.netns, self.dev = name, dev
        self.identity = netns.identity(name)
        self.drops = 0
        self.waiting: list[Seen] = []
        self.sock = _opened(name, dev, program, queue)


def _opened(name: str, dev: str, program: bytes, queue: int) -> socket.socket:
    with netns.inside(name):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        _attach(sock, program)
        take_many(sock, queue)
        sock.setsockopt(socket.SOL_SOCKET, _TIMESTAMP_NS, 1)
        _bind(sock, dev)
    except OSError:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, dev: str) -> None:
    """To a device, or to all of them: for these Python's bind has no word."""
    if dev:
        sock.bind((dev, _ALL_PROTOCOLS))
        return
    address = _SOCKADDR_LL.pack(socket.AF_PACKET, socket.htons(_ALL_PROTOCOLS), 0, 0, 0, 0)
    if _libc.bind(sock.fileno(), address, len(address)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _attach(sock: socket.socket, program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))
    head = Struct("@HP").pack(len(program) // 8, ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, head)


class Capture:
    """Everything that passes, in the order of its times. A context manager: leaving it closes the sockets."""

    def __init__(
        self, places: Sequence[tuple[str, str]], program: bpf.Program = bpf.EVERYTHING, snapshot: int = bpf.SNAPSHOT
    ) -> None:
        """`places` are (namespace, device); an empty device stands for all of them.

        Raises NotReachedError where a namespace or a device is not there.
        """
        self._buffer = bytearray(snapshot)
        self._view = memoryview(self._buffer)
        self._epoll = select.epoll()
        self._there: dict[int, _Spectator] = {}
        self._left: list[Seen] = []  # of those that are gone
        self._drops: dict[str, int] = {}
        self._checked = time.monotonic()
        self.until = 0  # ns since 1970: nothing older comes any more
        self.gone: list[str] = []
        self._open(places, bpf.packed(program))

    def _open(self, places: Sequence[tuple[str, str]], program: bytes) -> None:
        low, high = _QUEUE
        queue = max(low, min(high, _QUEUES // max(1, len(places))))
        clock = _clock(places[0][0]) if places else None
        try:
            for name, dev in places:
                one = _Spectator(name, dev, program, queue)
                self._there[one.sock.fileno()] = one
                self._epoll.register(one.sock.fileno(), select.EPOLLIN)
        except OSError as error:
            self.close()
            raise _not_there(name, dev, error) from error
        finally:
            _close([clock] if clock else [])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """All at once; their namespaces are free afterwards."""
        socks = [one.sock for one in self._there.values()]
        self._there = {}
        self._epoll.close()
        _close(socks)

    @property
    def alive(self) -> bool:
        """Is there still anything to look at, or to be told?"""
        return bool(self._there or self._left)

    def drops(self) -> dict[str, int]:
        """Namespace → packets that the kernel has dropped, because we were too slow, since the beginning."""
        for one in self._there.values():
            self._count(one)
        return dict(self._drops)

    def _count(self, one: _Spectator) -> None:
        with suppress(OSError):
            _, lost = _COUNTS.unpack(one.sock.getsockopt(_SOL_PACKET, _STATISTICS, _COUNTS.size))
            self._drops[one.netns] = self._drops.get(one.netns, 0) + lost

    def read(self, timeout: float) -> list[Seen]:
        """What has passed and can be overtaken by nothing any more; waits at most `timeout` seconds for the first."""
        waiting = bool(self._left) or any(one.waiting for one in self._there.values())
        self._epoll.poll(0.002 if waiting else timeout)
        horizon = time.time_ns() - _SLACK
        ready = {fd for fd, _ in self._epoll.poll(0)}
        for fd in ready:
            one = self._there[fd]
            empty = self._drain(one)
            if not empty and one.waiting:
                horizon = min(horizon, one.waiting[-1].time)
        self._check()
        return self._up_to(horizon)

    def rest(self) -> list[Seen]:
        """Everything that is there at this moment, however much the queues hold; what comes later is left."""
        moment = time.time_ns()
        found: list[Seen] = []
        for one in list(self._there.values()):
            empty = False
            while not empty and not (one.waiting and one.waiting[-1].time > moment):
                found += one.waiting
                one.waiting = []
                empty = self._drain(one)
            found += one.waiting
            one.waiting = []
        found += self._left
        self._left = []
        return sorted(found, key=lambda seen: seen.time)

    def _up_to(self, horizon: int) -> list[Seen]:
        self.until = horizon
        found, self._left = _parted(self._left, horizon)
        for one in self._there.values():
            mine, one.waiting = _parted(one.waiting, horizon)
            found += mine
        return sorted(found, key=lambda seen: seen.time)  # stable: what one device passes on to another stays in order

    def _drain(self, one: _Spectator) -> bool:
        """Reads until nothing is there (True), or enough is waiting for its turn."""
        size = sum(len(seen.data) for seen in one.waiting)
        while size < _WAITING:
            try:
                seen = self._next(one)
            except BlockingIOError:
                return True
            except OSError as error:
                self._trouble(one, error)
                return True
            if seen is not None:
                one.waiting.append(seen)
                size += len(seen.data) + 100
        return False

    def _next(self, one: _Spectator) -> Seen | None:
        """One packet; None for what a device shows twice (`lo`), or in a form that is neither a frame nor an IP packet.

        An IP packet gets an Ethernet header without addresses, so that everybody reads it as they read others.
        """
        length, told, _, (dev, _, kind, hardware, _) = one.sock.recvmsg_into([self._buffer], _SPACE, socket.MSG_TRUNC)
        if dev == "lo" and kind == _OUTGOING:
            return None
        header = b""
        if hardware not in bpf.WITH_ETHERNET_HEADER:
            header = _HEADERS.get(self._buffer[0] >> 4, b"") if hardware in _IP_ALONE and length else b""
            if not header:
                return None
        stamp = next((_ns(data) for _, what, data in told if what == _TIMESTAMP_NS), 0) or time.time_ns()
        data = header + bytes(self._view[: min(length, len(self._buffer))])
        return Seen(stamp, one.netns, dev or one.dev or "?", kind == _OUTGOING, data, len(header) + length)

    def _trouble(self, one: _Spectator, error: OSError) -> None:
        """A device that went down may come up again; one that is gone is not waited for."""
        if one.dev and error.errno == errno.ENETDOWN and _has(one.sock, one.dev):
            return
        self._leave(one, f"{one.netns}: {one.dev or 'the namespace'} is gone")

    def _check(self) -> None:
        if time.monotonic() - self._checked < _CHECK:
            return
        self._checked = time.monotonic()
        for one in list(self._there.values()):
            if netns.identity(one.netns) != one.identity:
                self._leave(one, f"{one.netns} is gone")

    def _leave(self, one: _Spectator, why: str) -> None:
        """What it saw last is told all the same."""
        self.gone.append(why)
        with suppress(OSError):  # nothing is there any more
            while True:
                seen = self._next(one)
                one.waiting += [seen] if seen is not None else []
        self._left += one.waiting
        one.waiting = []
        self._count(one)
        self._epoll.unregister(one.sock.fileno())
        del self._there[one.sock.fileno()]
        _close([one.sock])


def _parted(waiting: list[Seen], horizon: int) -> tuple[list[Seen], list[Seen]]:
    """Those whose turn has come, and the rest."""
    return [seen for seen in waiting if seen.time <= horizon], [seen for seen in waiting if seen.time > horizon]


def _ns(data: bytes) -> int:
    seconds, rest = _TIMESPEC.unpack(data)
    return int(seconds * 1_000_000_000 + rest)


def _has(sock: socket.socket, dev: str) -> bool:
    """Is the device still there, in the socket's own namespace?"""
    import fcntl

    try:
        fcntl.ioctl(sock, 0x8933, Struct("16s24x").pack(dev.encode()))  # SIOCGIFINDEX
    except OSError:
        return False
    return True


def _not_there(name: str, dev: str, error: OSError) -> NotReachedError:
    if error.errno == errno.ENODEV:
        return NotReachedError(f"{name} has no device {dev}", f"ip -n {name} link")
    if isinstance(error, FileNotFoundError):
        return NotReachedError(f"the namespace {name} is not there", "nsnet status; nsnet up FILE builds it")
    return NotReachedError(f"{name}: {error.strerror}", "nsnet status")


def _close(socks: Iterable[socket.socket]) -> None:
    found = list(socks)
    if found:
        with ThreadPoolExecutor(min(_CLOSERS, len(found))) as pool:
            list(pool.map(socket.socket.close, found))


def _clock(name: str) -> socket.socket | None:
    """A socket that holds the kernel's timestamps on, once they are; None where `lo` is down or the namespace gone."""
    try:
        sock = _opened(name, "lo", bpf.packed(bpf.EVERYTHING), _QUEUE[0])
    except OSError:
        return None
    frame = bytes(12) + _EXPERIMENTAL.to_bytes(2, "big") + b"nsnet's clock"
    with suppress(OSError):
        for _ in range(_CLOCK_TRIES):
            before = time.time_ns()
            sock.send(frame)
            after = time.time_ns()
            time.sleep(0.001)  # a packet without a time gets that of its reading, which shall be a later one
            if any(before <= stamp <= after for stamp in _stamps(sock, frame)):
                break
    return sock


def _stamps(sock: socket.socket, frame: bytes) -> list[int]:
    found = []
    with suppress(BlockingIOError):
        while True:
            data, told, _, _ = sock.recvmsg(256, _SPACE)
            if data == frame:
                found += [_ns(value) for _, what, value in told if what == _TIMESTAMP_NS]
    return found
