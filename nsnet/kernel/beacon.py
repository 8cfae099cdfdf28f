"""One packet that is known again wherever it is seen, whatever NAT makes of its addresses and ports.

TCP: the sequence number of the SYN, which every answer acknowledges and which conntrack leaves alone. UDP: eight bytes
behind `echo `, which a pod server gives back. ICMP: eight bytes of an echo's data. ICMP errors quote all of them.

The SYN is a real connect()'s, with the offloads that a connection has (a raw socket's packet has its checksum, and so
escapes what checksums suffer from). TCP_REPAIR lets one choose its sequence number (Linux `net/ipv4/tcp.c`,
`tcp_v4_connect` takes a `write_seq` that is there). The socket is closed at once: what it is answered nobody knows of,
so the kernel resets the connection.
"""

import os
import secrets
import socket
from contextlib import suppress
from struct import Struct
from typing import NamedTuple

from nsnet.errors import NotReachedError
from nsnet.kernel.netns import inside
from nsnet.kernel.ruletrace import Match

_NUMBERS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "icmp": socket.IPPROTO_ICMP}
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
    def number(self) -> int:
        return _NUMBERS[self.protocol]

    @property
    def filter(self) -> str:
        """Tcpdump's words for it, its answers and the errors that quote it."""
        if self.protocol == "tcp":
            sent = int.from_bytes(self.cookie, "big")
            return f"tcp[4:4] = {sent} or tcp[8:4] = {(sent + 1) & 0xFFFFFFFF} or {_error(self, 4)}"
        if self.protocol == "udp":
            return f"{_pair('udp', 13, self.cookie)} or {_pair('udp', 8, self.cookie)} or {_error(self, 13)}"
        return f"{_pair('icmp', 8, self.cookie)} or {_error(self, 8)}"

    @property
    def matches(self) -> tuple[Match, ...]:
        """The packet itself, in a rule's words; not its answers."""
        if self.protocol == "icmp":
            return Match(0, b"\x08"), Match(8, self.cookie)
        return (Match(4 if self.protocol == "tcp" else 13, self.cookie),)

    def is_sent(self, frame_seq: int, payload: bytes, kind: int) -> bool:
        """Is a decoded packet (its sequence number, payload and ICMP type) this one, and not an answer?"""
        match self.protocol:
            case "tcp":
                return frame_seq == int.from_bytes(self.cookie, "big")
            case "udp":
                return payload.startswith(_WORD + self.cookie)
        return kind == 8 and payload.startswith(self.cookie)


def _pair(what: str, at: int, cookie: bytes) -> str:
    first, second = (int.from_bytes(cookie[start : start + 4], "big") for start in (0, 4))
    return f"({what}[{at}:4] = {first} and {what}[{at + 4}:4] = {second})"


def _error(one: Beacon, at: int) -> str:
    """An ICMP error: the quoted packet's IP header has 20 bytes."""
    first = int.from_bytes(one.cookie[:4], "big")
    return f"(icmp[0] != 0 and icmp[0] != 8 and icmp[{28 + at}:4] = {first})"


def beacon(netns: str, protocol: str, dst: str, dport: int, sport: int = 0) -> Beacon:
    """A packet with a cookie of its own, and the source that the kernel gives it.

    Raises NotReachedError where the namespace has no route to `dst`, or the source port is taken.
    """
    cookie = os.urandom(4) if protocol == "tcp" else secrets.token_hex(4).encode()
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    try:
        with inside(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect((dst, dport or 9))
            src = asking.getsockname()[0]
            with socket.socket(socket.AF_INET, kind) as binding:
                binding.bind(("0.0.0.0", sport))  # noqa: S104 - only to learn a port that is free
                port = binding.getsockname()[1]
    except OSError as error:
        raise NotReachedError(
            f"{netns} cannot send to {dst}: {error.strerror}", "nsnet trace without --live"
        ) from error
    return Beacon(netns, protocol, src, 0 if protocol == "icmp" else port, dst, dport, cookie)


def send(one: Beacon) -> str:
    """Sends it; empty, or the kernel's word for refusing that (a rule of the namespace's own OUTPUT dropped it)."""
    with inside(one.netns):
        sock = _socket(one)
    with sock:
        try:
            if one.protocol == "tcp":
                _connect(sock, one)
            else:
                sock.sendto(_bytes(one), (one.dst, one.dport if one.protocol == "udp" else 0))
        except OSError as error:
            return os.strerror(error.errno or 0)
        if one.protocol == "udp":
            with suppress(
                OSError
            ):  # the socket stays until its answer is there: else the kernel says "port unreachable"
                sock.settimeout(0.2)
                sock.recv(64)
    return ""


def _socket(one: Beacon) -> socket.socket:
    if one.protocol == "icmp":
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if one.protocol == "tcp" else socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", one.sport))  # noqa: S104 - a client's port
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
    own = int(one.cookie[:4], 16)  # an id of its own, or conntrack takes it for a ping of before
    head = _ICMP.pack(8, 0, 0, own, 1)
    return _ICMP.pack(8, 0, _sum(head + one.cookie), own, 1) + one.cookie


def _sum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
