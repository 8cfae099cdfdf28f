"""Many sockets in many namespaces from one process: thousands of questions a second, each told apart by its answer.

A socket belongs for ever to the namespace it was opened in, so only opening enters a namespace; everything else is one
epoll loop over non-blocking sockets (and, for ICMP, one raw socket per source that is written and drained in turns: on
veth the echo's whole way happens inside sendto, so a forked child takes half of many pings to the second processor).
asyncio streams take three times as long (facts/FLOOR.md).

The IPv4 neighbour table is one for all namespaces of the machine (1,024 entries, forced collection above 512). Known
neighbours are permanent entries and do not count, but two pods on one bridge learn each other by real ARP. So a Probe
says what its packets will make the kernel learn, probes run in windows that learn at most ENTRIES, and what a window
learned is deleted before the next begins.

Two things the kernel does that a plain client would get wrong:
- An ICMP error that arrives while connect() still holds the socket (over veth all is synchronous) is not reported but
  kept as a "soft" error until the SYN is sent again a second later. SO_ERROR shows it at once.
- A packet that the namespace's own OUTPUT rules drop makes UDP and ICMP sends fail with EPERM: to the caller, silence.
"""

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from itertools import count, groupby, islice
from time import monotonic
from typing import Literal, NamedTuple, Self

import msgspec

from nsnet.kernel.netlink import NETLINK_ROUTE, Netlink, Request, attribute, take_many
from nsnet.kernel.netns import inside
from nsnet.kernel.process import all_descriptors
from nsnet.kernel.rtnl import NDA_DST, NEIGH, RTM_DELNEIGH

Protocol = Literal["TCP", "UDP", "ICMP"]
Outcome = Literal["ok", "refused", "reset", "timeout", "unreachable", "error"]

ENTRIES = 256  # neighbour entries outstanding: other clusters share the table
OPENED_TOGETHER = 256  # calls
RAW_SOCKETS = 2048  # open at once, of 20,000 descriptors
WORTH_A_CHILD = 500  # pings, from which on a second process is sooner done
MOST_BODY, CHUNK = 64 * 1024, 16 * 1024

IP_RECVERR, IPV6_RECVERR = 11, 25
SOL_RAW, ICMP_FILTER, ICMP6_FILTER = 255, 1, 1
ECHO_REPLY, UNREACHABLE, ECHO, EXCEEDED = 0, 3, 8, 11
ANSWERS = frozenset({ECHO_REPLY, UNREACHABLE, EXCEEDED})
ALL_BUT_ANSWERS = 0xFFFFFFFF & ~sum(1 << kind for kind in ANSWERS)
UNREACHABLE6, TOO_BIG6, EXCEEDED6, ECHO6, ECHO_REPLY6 = 1, 2, 3, 128, 129
ERRORS6 = frozenset({UNREACHABLE6, TOO_BIG6, EXCEEDED6})
IPV6_HEADER = 40
LINGER_0 = struct.pack("ii", 1, 0)  # close() resets: no TIME_WAIT, and conntrack forgets the connection soon
PADDING = b"nsnet verifies. "

OUTCOMES: dict[int, Outcome] = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ETIMEDOUT: "timeout",
    errno.EPERM: "timeout",  # dropped on the way out
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTDOWN: "unreachable",
    errno.ENONET: "unreachable",
    errno.EACCES: "unreachable",  # a prohibit route
    errno.EINVAL: "unreachable",  # a blackhole route
    errno.ENOPROTOOPT: "unreachable",
    errno.EPROTO: "unreachable",
}


class Learned(NamedTuple):
    """A neighbour entry that the kernel makes by itself when a probe passes."""

    netns: str
    address: str
    dev: str = "eth0"


class Probe(msgspec.Struct, frozen=True):
    """One question. `payload` is sent and an answer awaited; an empty one over TCP asks only for the connection.

    `source` is the address to bind to (empty: the kernel's choice), `learns` what to forget afterwards, `tries` how
    often to ask if there is silence (0: as often as any other; 1 where silence is what one hopes for). `framed`: over
    TCP the answer begins with its length in two bytes (DNS), and ends there.
    """

    netns: str
    protocol: Protocol
    address: str
    port: int = 0
    payload: bytes = b""
    source: str = ""
    learns: tuple[Learned, ...] = ()
    tries: int = 0
    framed: bool = False


class Answer(msgspec.Struct, frozen=True):
    """What came back. `local` is the asking socket's own address and port; `error` the kernel's word for a failure.

    `seconds` is the time of the last of `tries` attempts (more than one: the earlier ones met silence).
    """

    outcome: Outcome
    body: bytes = b""
    local: tuple[str, int] = ("", 0)
    error: str = ""
    seconds: float = 0.0
    tries: int = 1


Progress = Callable[[int, int], None]
Report = Callable[[int, Answer], None]

SILENCE = Answer("timeout", error="no answer")


def probe(
    probes: Sequence[Probe],
    *,
    timeout: float = 1.0,
    tries: int = 2,
    concurrency: int = 128,
    progress: Progress | None = None,
) -> list[Answer]:
    """Asks them all; the answers stand in the order of the probes.

    An attempt without an answer within `timeout` seconds is repeated until there were `tries`. At most `concurrency`
    TCP and UDP sockets are open at once. `progress` gets (answered, all) now and then. Never raises for what the
    network does; a namespace that is not there is outcome `error`. Raises ValueError for what is no address (a name
    would be asked of the machine's own resolver).

    The process may afterwards open as many files as its hard limit says.
    """
    for address in {item.address for item in probes} | {item.source for item in probes if item.source}:
        ip_address(address)
    all_descriptors()
    answers: list[Answer] = [SILENCE] * len(probes)
    done = 0
    with _Echo() as echo:
        for window in windows(probes):
            silent = window
            for attempt in count(1):
                silent = _attempt(probes, silent, answers, attempt, echo, timeout, concurrency)
                silent = [index for index in silent if attempt < (probes[index].tries or tries)]
                if progress:
                    progress(done + len(window) - len(silent), len(probes))
                if not silent:
                    break
            forget({entry for index in window for entry in probes[index].learns})
            done += len(window)
            if progress:
                progress(done, len(probes))
    return answers


def windows(probes: Sequence[Probe], entries: int = ENTRIES) -> Iterator[list[int]]:
    """The order to ask in: lists of indexes, each learning at most `entries` neighbours (one probe may learn more).

    With the first go all that learn nothing; what learns the same (a pair's two directions, all protocols) is together.
    """
    groups: dict[frozenset[Learned], list[int]] = {}
    for index, item in enumerate(probes):
        groups.setdefault(frozenset(item.learns), []).append(index)
    nothing = groups.pop(frozenset(), [])
    window: list[int] = []
    learned: set[Learned] = set()
    for entry, indexes in groups.items():
        if window and len(learned | entry) > entries:
            yield nothing + sorted(window, key=lambda index: probes[index].netns)
            nothing, window, learned = [], [], set()
        window += indexes
        learned |= entry
    if nothing or window:
        yield nothing + sorted(window, key=lambda index: probes[index].netns)


def _attempt(
    probes: Sequence[Probe],
    indexes: list[int],
    answers: list[Answer],
    attempt: int,
    echo: "_Echo",
    timeout: float,
    concurrency: int,
) -> list[int]:
    """Asks those at `indexes` once, writes the answers, returns who met silence."""

    def report(index: int, answer: Answer) -> None:
        answers[index] = answer if attempt == 1 else msgspec.structs.replace(answer, tries=attempt)

    pings = [index for index in indexes if probes[index].protocol == "ICMP"]
    others = [index for index in indexes if probes[index].protocol != "ICMP"]
    if pings:
        _ping(probes, pings, report, timeout, echo)
    if others:
        with _Calls(probes, report, timeout) as calls:
            calls.run(others, concurrency)
    return [index for index in indexes if answers[index].outcome == "timeout"]


def _same_place(probes: Sequence[Probe], indexes: Iterable[int]) -> Iterator[tuple[str, list[int]]]:
    for netns, group in groupby(indexes, key=lambda index: probes[index].netns):
        yield netns, list(group)


def _why(error: OSError, sock: socket.socket) -> OSError:
    """A REJECT rule of the namespace's own OUTPUT makes a send fail like a DROP; its ICMP error waits in the socket."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if error.errno == errno.EPERM else 0
    return OSError(number, "") if number else error


def _failed(error: OSError, started: float) -> Answer:
    """What an error of the kernel means to the one who asked."""
    number = error.errno if isinstance(error, OSError) and error.errno else 0
    outcome = OUTCOMES.get(number, "error")
    text = os.strerror(number) if number else str(error)
    return Answer(outcome, error=text, seconds=monotonic() - started)


# --- TCP and UDP ------------------------------------------------------------------------------------------------------


class _Call:
    """A question under way."""

    __slots__ = ("body", "index", "sent", "sock", "started")

    def __init__(self, index: int, sock: socket.socket) -> None:
        self.index = index
        self.sock = sock
        self.started = monotonic()
        self.sent = False
        self.body = b""


class _Calls:
    """The epoll loop over TCP and UDP sockets."""

    def __init__(self, probes: Sequence[Probe], report: Report, timeout: float) -> None:
        self.probes = probes
        self.report = report
        self.timeout = timeout
        self.epoll = select.epoll()
        self.calls: dict[int, _Call] = {}  # by descriptor, the oldest first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.epoll.close()
        for call in self.calls.values():
            call.sock.close()

    def run(self, indexes: Iterable[int], concurrency: int) -> None:
        """Opens calls until there are `concurrency`, and again when half of them have ended.

        A few at a time, and between them all that has answered is read: on a busy machine thousands take longer to open
        than a call has time, and an answer that lies there unread is no silence.
        """
        queue = iter(indexes)
        more = filling = True
        while more or self.calls:
            if more and filling:
                batch = list(islice(queue, min(OPENED_TOGETHER, concurrency - len(self.calls))))
                more = bool(batch)
                self.start(batch)
                filling = len(self.calls) < concurrency
            patience = 0.0 if more and filling else self.patience()
            for fd, _ in self.epoll.poll(patience, len(self.calls) or 1):
                self.proceed(self.calls[fd])
            self.expire()
            filling = filling or len(self.calls) <= concurrency // 2

    def start(self, indexes: list[int]) -> None:
        for netns, group in _same_place(self.probes, indexes):
            started = monotonic()
            socks: list[socket.socket] = []
            try:
                with inside(netns):
                    socks.extend(self.socket(index) for index in group)
            except OSError as error:
                for index in group[len(socks) :]:
                    self.report(index, _failed(error, started))
            for index, sock in zip(group, socks, strict=False):
                self.connect(_Call(index, sock))

    def socket(self, index: int) -> socket.socket:
        tcp, family = self.probes[index].protocol == "TCP", _family(self.probes[index].address)
        return socket.socket(family, (socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) | socket.SOCK_NONBLOCK)

    def connect(self, call: _Call) -> None:
        item = self.probes[call.index]
        sock = call.sock
        try:
            if item.protocol == "TCP":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
            elif sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
            if item.source:
                sock.bind((item.source, 0))
            with suppress(BlockingIOError):  # EINPROGRESS
                sock.connect((item.address, item.port))
            waits_for = self.ask(call, item)
        except OSError as error:
            self.fail(call, _why(error, sock))
            return
        self.calls[sock.fileno()] = call
        self.epoll.register(sock.fileno(), waits_for)

    def ask(self, call: _Call, item: Probe) -> int:
        """Sends the question if the connection is there already; what to wait for next. Raises OSError."""
        if item.payload:
            with suppress(BlockingIOError):
                call.sent = call.sock.send(item.payload) == len(item.payload)
            if call.sent:
                return select.EPOLLIN
        number = call.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, "")
        return select.EPOLLOUT

    def proceed(self, call: _Call) -> None:
        item = self.probes[call.index]
        try:
            if not call.sent:
                self.epoll.modify(call.sock.fileno(), self.ask(call, item))
                if not item.payload:
                    self.succeed(call)
                return
            finished = self.read(call, item)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(call, error)
            return
        if finished:
            self.succeed(call)

    def read(self, call: _Call, item: Probe) -> bool:
        """Reads what is there; True at the answer's end. Raises BlockingIOError where more is to come."""
        while True:
            data = call.sock.recv(CHUNK)
            call.body += data
            if not data or item.protocol == "UDP" or len(call.body) >= MOST_BODY:
                return True
            if item.framed and len(call.body) >= 2 + int.from_bytes(call.body[:2], "big"):
                return True

    def succeed(self, call: _Call) -> None:
        local = call.sock.getsockname()[:2]
        self.finish(call, Answer("ok", call.body, local, "", monotonic() - call.started))

    def fail(self, call: _Call, error: OSError) -> None:
        answer = _failed(error, call.started)
        self.finish(call, msgspec.structs.replace(answer, body=call.body) if call.body else answer)

    def finish(self, call: _Call, answer: Answer) -> None:
        fd = call.sock.fileno()
        if self.calls.pop(fd, None):
            self.epoll.unregister(fd)  # close() alone leaves it there while a process forked meanwhile holds a copy
        call.sock.close()
        self.report(call.index, answer)

    def patience(self) -> float:
        """Seconds until the oldest call has waited long enough."""
        for call in self.calls.values():
            return max(0.0, call.started + self.timeout - monotonic())
        return 0.0

    def expire(self) -> None:
        limit = monotonic() - self.timeout
        while self.calls:
            call = next(iter(self.calls.values()))
            if call.started > limit:
                return
            if call.body:  # it answered and did not hang up
                self.succeed(call)
            else:
                self.finish(call, msgspec.structs.replace(SILENCE, seconds=monotonic() - call.started))


# --- ICMP -------------------------------------------------------------------------------------------------------------


class _Raw:
    """The raw socket of one source: `waiting` by sequence number."""

    __slots__ = ("base", "ident", "is_ipv6", "sequence", "sock", "waiting")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_ipv6 = sock.family == socket.AF_INET6
        self.ident = int.from_bytes(os.urandom(2), "big")
        self.sequence = 0
        self.waiting: dict[int, tuple[int, bytes, float]] = {}  # → (index, address, when)
        words = struct.unpack(f"!{len(PADDING) // 2}H", PADDING)
        self.base = (ECHO << 8) + self.ident + sum(words)

    def packet(self, sequence: int) -> bytes:
        if self.is_ipv6:  # the kernel reckons the checksum, which takes the addresses in
            return struct.pack("!BBHHH", ECHO6, 0, 0, self.ident, sequence) + PADDING
        total = self.base + sequence
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        return struct.pack("!BBHHH", ECHO, 0, ~total & 0xFFFF, self.ident, sequence) + PADDING


class _Heard(NamedTuple):
    """An ICMP message: what it says, of which echo, from whom and to which of our addresses."""

    kind: int
    replied: bool
    about: int
    sequence: int
    source: bytes
    local: str


def _hear(raw: _Raw) -> _Heard:
    """The next message of the socket. Raises OSError."""
    if not raw.is_ipv6:
        packet = raw.sock.recv(2048)
        kind, about, sequence = echo_of(packet)
        local = socket.inet_ntoa(packet[16:20]) if kind in ANSWERS else ""
        return _Heard(kind, kind == ECHO_REPLY, about, sequence, packet[12:16], local)
    packet, ancillary, _, (host, *_) = raw.sock.recvmsg(2048, 64)
    kind, about, sequence = echo6_of(packet)
    to = next((data[:16] for _, option, data in ancillary if option == socket.IPV6_PKTINFO), bytes(16))
    source = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return _Heard(kind, kind == ECHO_REPLY6, about, sequence, source, socket.inet_ntop(socket.AF_INET6, to))


def _raw_socket(family: int) -> socket.socket:
    """One that hears echo replies and errors, in the namespace the process is in."""
    if family == socket.AF_INET:
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
        sock.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("I", ALL_BUT_ANSWERS))
        return sock
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6)
    passing = sum(1 << kind for kind in (*ERRORS6, ECHO_REPLY6))
    blocked = ~passing & ((1 << 256) - 1)  # 256 types, 32 to a word
    words = [(blocked >> (32 * word)) & 0xFFFFFFFF for word in range(8)]
    sock.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, struct.pack("=8I", *words))
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    return sock


def _ping(probes: Sequence[Probe], indexes: list[int], report: Report, timeout: float, echo: "_Echo") -> None:
    """Asks them; a forked child takes half of many, because nearly all of a ping's time is the kernel's, in sendto."""
    ordered = sorted(indexes, key=lambda index: _place(probes[index]))
    middle = _between_sources(probes, ordered) if len(ordered) >= WORTH_A_CHILD and (os.cpu_count() or 1) > 1 else 0
    if not middle:
        echo.run(probes, indexes, report, timeout)
        return
    answers = _in_child(probes, ordered[middle:], timeout)
    echo.run(probes, ordered[:middle], report, timeout)
    taken = answers()
    for index, answer in taken:
        report(index, answer)
    if not taken:  # the child did not live to tell
        echo.run(probes, ordered[middle:], report, timeout)


def _between_sources(probes: Sequence[Probe], ordered: list[int]) -> int:
    """Where to cut in two: no source on both sides, because its raw sockets would hear each other's answers."""
    middle = len(ordered) // 2
    last = probes[ordered[middle - 1]].netns
    return next((at for at in range(middle, len(ordered)) if probes[ordered[at]].netns != last), 0)


def _in_child(probes: Sequence[Probe], indexes: list[int], timeout: float) -> Callable[[], list[tuple[int, Answer]]]:
    """Starts asking them in a forked process; what is returned waits for its answers (none if it was killed)."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            taken: list[tuple[int, Answer]] = []
            with _Echo() as echo:
                echo.run(probes, indexes, lambda index, answer: taken.append((index, answer)), timeout)
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(msgspec.msgpack.encode(taken))
        finally:
            os._exit(0)
    os.close(writing)

    def answers() -> list[tuple[int, Answer]]:
        with os.fdopen(reading, "rb") as pipe:
            data = pipe.read()
        os.waitpid(child, 0)
        try:
            return msgspec.msgpack.decode(data, type=list[tuple[int, Answer]])
        except msgspec.DecodeError:
            return []

    return answers


class _Echo:
    """Pings: many sent, then what came back read, one raw socket per source namespace."""

    AT_ONCE = 64

    def __init__(self) -> None:
        self.raws: dict[tuple[str, str, int], _Raw] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for raw in self.raws.values():
            raw.sock.close()
        self.raws.clear()

    def run(self, probes: Sequence[Probe], indexes: list[int], report: Report, timeout: float) -> None:
        for part in _few_sources(probes, indexes):
            if len(self.raws) > RAW_SOCKETS:
                self.close()
            asked: set[_Raw] = set()
            for place, group in groupby(part, key=lambda index: _place(probes[index])):
                pings = list(group)
                started = monotonic()
                try:
                    raw = self.open(*place)
                except OSError as error:
                    for index in pings:
                        report(index, _failed(error, started))
                    continue
                asked.add(raw)
                for at in range(0, len(pings), self.AT_ONCE):
                    self.send(raw, probes, pings[at : at + self.AT_ONCE], report)
                    self.read(raw, report)
            self.wait({raw for raw in asked if raw.waiting}, report, timeout)

    def open(self, netns: str, source: str, family: int) -> _Raw:
        raw = self.raws.get((netns, source, family))
        if raw is None:
            with inside(netns):
                sock = _raw_socket(family)
            take_many(sock, 1 << 20)
            if source:
                sock.bind((source, 0))
            raw = self.raws[netns, source, family] = _Raw(sock)
        return raw

    def send(self, raw: _Raw, probes: Sequence[Probe], indexes: list[int], report: Report) -> None:
        for index in indexes:
            raw.sequence = (raw.sequence + 1) & 0xFFFF
            address = probes[index].address
            now = monotonic()
            try:
                raw.sock.sendto(raw.packet(raw.sequence), (address, 0))
            except OSError as error:
                report(index, _failed(error, now))
            else:
                raw.waiting[raw.sequence] = (index, socket.inet_pton(raw.sock.family, address), now)

    def read(self, raw: _Raw, report: Report) -> None:
        waiting, ident = raw.waiting, raw.ident
        while waiting:
            try:
                heard = _hear(raw)
            except BlockingIOError:
                return
            except OSError:
                continue
            asked = waiting.get(heard.sequence) if heard.about == ident and heard.local else None
            if asked is None or (heard.replied and asked[1] != heard.source):
                continue
            del waiting[heard.sequence]
            took, local = monotonic() - asked[2], (heard.local, 0)
            if heard.replied:
                report(asked[0], Answer("ok", b"", local, "", took))
            else:
                said = f"ICMP type {heard.kind} from {socket.inet_ntop(raw.sock.family, heard.source)}"
                report(asked[0], Answer("unreachable", b"", local, said, took))

    def wait(self, raws: set[_Raw], report: Report, timeout: float) -> None:
        """Until all have answered or the last has waited `timeout` seconds."""
        deadline = monotonic() + timeout
        with ExitStack() as stack:
            epoll = stack.enter_context(select.epoll())
            by_fd = {raw.sock.fileno(): raw for raw in raws}
            for fd in by_fd:
                epoll.register(fd, select.EPOLLIN)
            while by_fd and (left := deadline - monotonic()) > 0:
                for fd, _ in epoll.poll(left):
                    self.read(by_fd[fd], report)
                    if not by_fd[fd].waiting:
                        epoll.unregister(fd)
                        del by_fd[fd]
        for raw in by_fd.values():
            for index, _, when in raw.waiting.values():
                report(index, msgspec.structs.replace(SILENCE, seconds=monotonic() - when))
            raw.waiting.clear()


def echo_of(packet: bytes) -> tuple[int, int, int]:
    """ICMP type, and identifier and sequence number of the echo a packet (IP header first) is, or is the error about.

    A raw socket hears everything that comes before its filter is set; what is no such packet is (-1, 0, 0).
    """
    try:
        start = (packet[0] & 15) * 4
        kind = packet[start]
        if kind in {UNREACHABLE, EXCEEDED}:
            start += 8 + (packet[start + 8] & 15) * 4
        about, sequence = struct.unpack_from("!HH", packet, start + 4)
    except (IndexError, struct.error):
        return -1, 0, 0
    return kind, about, sequence


def echo6_of(packet: bytes) -> tuple[int, int, int]:
    """The same of an ICMPv6 message, which a raw socket gives without its own header; what it is about has one."""
    try:
        kind = packet[0]
        start = 8 + IPV6_HEADER if kind in ERRORS6 else 0
        about, sequence = struct.unpack_from("!HH", packet, start + 4)
    except (IndexError, struct.error):
        return -1, 0, 0
    return kind, about, sequence


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _place(item: Probe) -> tuple[str, str, int]:
    """Whose raw socket asks it."""
    return item.netns, item.source, _family(item.address)


def _few_sources(probes: Sequence[Probe], indexes: list[int]) -> Iterator[list[int]]:
    """Parts of `indexes` with at most RAW_SOCKETS sources each."""
    part: list[int] = []
    sources: set[tuple[str, str, int]] = set()
    for index in indexes:
        source = _place(probes[index])
        if source not in sources and len(sources) == RAW_SOCKETS:
            yield part
            part, sources = [], set()
        sources.add(source)
        part.append(index)
    if part:
        yield part


# --- neighbours -------------------------------------------------------------------------------------------------------


def forget(entries: Iterable[Learned]) -> None:
    """Deletes neighbour entries, one send per namespace; those that are not there are no matter."""
    for netns, group in groupby(sorted(entries), key=lambda entry: entry.netns):
        with suppress(OSError):
            with inside(netns):
                route = Netlink(NETLINK_ROUTE)
                index = {dev: number for number, dev in socket.if_nameindex()}
            with route:
                route.ask([_deletion(entry.address, index[entry.dev]) for entry in group if entry.dev in index])


def _deletion(address: str, ifindex: int) -> Request:
    family = _family(address)
    head = NEIGH.pack(family, ifindex, 0, 0, 0)
    return Request(RTM_DELNEIGH, 0, head + attribute(NDA_DST, socket.inet_pton(family, address)))
