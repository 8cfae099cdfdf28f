"""One packet that is known again wherever it is seen, whatever NAT makes of its addresses and ports.

TCP: the sequence number of the SYN, which every answer acknowledges and which conntrack leaves alone. UDP: eight bytes
behind `echo `, which a pod server gives back. ICMP: eight bytes of an echo's data. ICMP errors quote all of them.

The SYN is a real connect()'s, with the offloads that a connection has (a raw socket's packet has its checksum, and so
escapes what checksums suffer from). TCP_REPAIR lets one choose its sequence number (Linux `net/ipv4/tcp.c`,
`tcp_v4_connect` takes a `write_seq` that is there). The socket is closed at once: what it is answered nobody knows of,
so the kernel resets the connection.

Of many at once the cookies begin alike (`cookies`), so that one filter finds them all.
"""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import suppress
from random import SystemRandom
from struct import Struct
from typing import NamedTuple

from nsnet.errors import NotReachedError
from nsnet.kernel.netns import inside
from nsnet.kernel.ruletrace import Match

_NUMBERS = {
    "tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "icmp": socket.IPPROTO_ICMP, "icmp6": socket.IPPROTO_ICMPV6,
}  # fmt: skip
_ECHO = {"icmp": 8, "icmp6": 128}  # an echo request's type
_ICMP = Struct(">BBHHH")
_WORD = b"echo "
_REPAIR, _QUEUE, _SEQUENCE = 19, 20, 21  # TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ
_SEND_QUEUE = 2
_INT, _LINGER = Struct("=I"), Struct("=ii")


class Beacon(NamedTuple):
    """A packet to send from `netns`; `src` and `sport` are what the kernel chose there."""

    netns: str
    protocol: str
    src: str
    sport: int
    dst: str
    dport: int
    cookie: bytes  # 4 bytes for TCP, 8 else

    @property
    def spoken(self) -> str:
        """The protocol as it is on the wire: IPv6 has an ICMP of its own."""
        return "icmp6" if self.protocol == "icmp" and ":" in self.dst else self.protocol

    @property
    def number(self) -> int:
        return _NUMBERS[self.spoken]

    @property
    def filter(self) -> str:
        """Tcpdump's words for it, its answers and the errors that quote it."""
        at = _Offsets(self.spoken, ":" in self.dst)
        if self.protocol == "tcp":
            sent = int.from_bytes(self.cookie, "big")
            return f"{at.word(4, sent)} or {at.word(8, (sent + 1) & 0xFFFFFFFF)} or {at.error(4, sent)}"
        first, second = (int.from_bytes(self.cookie[start : start + 4], "big") for start in (0, 4))
        places = (13, 8) if self.protocol == "udp" else (8,)
        said = " or ".join(f"({at.word(place, first)} and {at.word(place + 4, second)})" for place in places)
        return f"{said} or {at.error(places[0], first)}"

    @property
    def filter_of_all(self) -> str:
        """The same for every beacon of its protocol and family whose cookie begins like that (`cookies`)."""
        at = _Offsets(self.spoken, ":" in self.dst)
        common = self.cookie[: len(self.cookie) // 2]
        start, size = int.from_bytes(common, "big"), len(common)
        places = {"tcp": (4, 8), "udp": (13, 8), "icmp": (8,)}[self.protocol]
        return " or ".join([*(at.word(place, start, size) for place in places), at.error(places[0], start, size)])

    @property
    def matches(self) -> tuple[Match, ...]:
        """The packet itself, in a rule's words; not its answers."""
        if self.protocol == "icmp":
            return Match(0, bytes((_ECHO[self.spoken],))), Match(8, self.cookie)
        return (Match(4 if self.protocol == "tcp" else 13, self.cookie),)

    def is_sent(self, frame_seq: int, payload: bytes, kind: int) -> bool:
        """Is a decoded packet (its sequence number, payload and ICMP type) this one, and not an answer?"""
        match self.protocol:
            case "tcp":
                return frame_seq == int.from_bytes(self.cookie, "big")
            case "udp":
                return payload.startswith(_WORD + self.cookie)
        return kind == _ECHO[self.spoken] and payload.startswith(self.cookie)


class _Offsets(NamedTuple):
    """Conditions on four bytes in tcpdump's language, which knows what is behind an IPv6 header by its offset only."""

    protocol: str
    is_ipv6: bool

    def word(self, offset: int, value: int, size: int = 4) -> str:
        """At an offset of the transport header."""
        if not self.is_ipv6:
            return f"{self.protocol}[{offset}:{size}] = {value}"
        return f"(ip6[6] = {_NUMBERS[self.protocol]} and ip6[{40 + offset}:{size}] = {value})"

    def error(self, offset: int, value: int, size: int = 4) -> str:
        """An ICMP error that quotes a packet with that value; a quoted IPv4 header has 20 bytes."""
        if not self.is_ipv6:
            return f"(icmp[0] != 0 and icmp[0] != 8 and icmp[{28 + offset}:{size}] = {value})"
        return f"(ip6[6] = 58 and ip6[40] < 128 and ip6[{40 + 8 + 40 + offset}:{size}] = {value})"


def cookies(protocol: str, count: int) -> Iterator[bytes]:
    """So many cookies (16,000 at most) that begin alike, and end as none of before (a ping's id is made of that).

    No two stand one after the other: a number beside one is that of an acknowledgement, or of the RST that follows it.
    """
    common = secrets.token_bytes(2)
    for number in SystemRandom().sample(range(1 << 14), count):
        cookie = common + (4 * number + 1).to_bytes(2, "big")
        yield cookie if protocol == "tcp" else cookie.hex().encode()


def beacon(netns: str, protocol: str, dst: str, dport: int, sport: int = 0, cookie: bytes = b"") -> Beacon:
    """A packet with a cookie of its own (or this one), and the source that the kernel gives it.

    Raises NotReachedError where the namespace has no route to `dst`, or the source port is taken.
    """
    cookie = cookie or (os.urandom(4) if protocol == "tcp" else secrets.token_hex(4).encode())
    kind, family = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM, _family(dst)
    try:
        with inside(netns), socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect((dst, dport or 9))
            src = asking.getsockname()[0]
            with socket.socket(family, kind) as binding:
                binding.bind(("", sport))  # only to learn a port that is free
                port = binding.getsockname()[1]
    except OSError as error:
        raise NotReachedError(
            f"{netns} cannot send to {dst}: {error.strerror}", "nsnet trace without --live"
        ) from error
    return Beacon(netns, protocol, src, 0 if protocol == "icmp" else port, dst, dport, cookie)


def send(one: Beacon) -> str:
    """Sends it; empty, or the kernel's word for refusing that (a rule of the namespace's own OUTPUT dropped it)."""
    sock, refused = fire(one)
    with sock:
        if one.protocol == "udp" and not refused:
            with suppress(OSError):
                sock.settimeout(0.2)
                sock.recv(64)
    return refused


def fire(one: Beacon) -> tuple[socket.socket, str]:
    """`send`, and its socket. Of UDP it stays until the answer is there, or the kernel says "port unreachable"."""
    with inside(one.netns):
        sock = _socket(one)
    try:
        if one.protocol == "tcp":
            _connect(sock, one)
        else:
            sock.sendto(_bytes(one), (one.dst, one.dport if one.protocol == "udp" else 0))
    except OSError as error:
        return sock, os.strerror(error.errno or 0)
    return sock, ""


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _socket(one: Beacon) -> socket.socket:
    family = _family(one.dst)
    if one.protocol == "icmp":
        return socket.socket(family, socket.SOCK_RAW, one.number)
    sock = socket.socket(family, socket.SOCK_STREAM if one.protocol == "tcp" else socket.SOCK_DGRAM)
    sock.bind(("", one.sport))
    return sock


def _connect(sock: socket.socket, one: Beacon) -> None:
    """One SYN with the cookie as its sequence number. An answer that is there at once (by `lo`) changes nothing."""
    number = int.from_bytes(one.cookie, "big")
    for option, value in ((_REPAIR, 1), (_QUEUE, _SEND_QUEUE), (_SEQUENCE, number), (_REPAIR, 0)):
        sock.setsockopt(socket.IPPROTO_TCP, option, _INT.pack(value))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(1, 0))
    sock.setblocking(False)
    with suppress(BlockingIOError, ConnectionRefusedError):
        sock.connect((one.dst, one.dport))


def _bytes(one: Beacon) -> bytes:
    if one.protocol == "udp":
        return _WORD + one.cookie + b"\n"
    own = int(one.cookie[4:], 16)  # an id of its own, or conntrack takes it for a ping of before
    head = _ICMP.pack(_ECHO[one.spoken], 0, 0, own, 1)
    return head[:2] + _sum(head + one.cookie).to_bytes(2, "big") + head[4:] + one.cookie


def _sum(data: bytes) -> int:
    """RFC 1071. Of ICMPv6 the kernel writes it, which covers the addresses, too (RFC 3542 §3.1)."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
