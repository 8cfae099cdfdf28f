"""Who listens: TCP sockets in LISTEN and bound UDP sockets of a namespace, asked of the kernel's sock_diag.

A pod is ready when the ports it should serve listen; the socket table answers that for every namespace without sending
a packet and without knowing which process holds the socket.

Source: Linux `include/uapi/linux/{sock_diag,inet_diag}.h`, `net/ipv4/{inet_diag,udp_diag}.c`.
"""

from collections.abc import Iterable, Iterator
from socket import AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, inet_ntop
from struct import Struct

from nsnet.kernel.netlink import NETLINK_SOCK_DIAG, Message, Netlink, Request
from nsnet.state import Listener

SOCK_DIAG_BY_FAMILY = 20
TCP_CLOSE, TCP_LISTEN = 7, 10  # a UDP socket that is bound and not connected is in state CLOSE

_REQUEST = Struct("=BBBxI48x")  # family, protocol, extensions, states, socket id
_ANSWER = Struct("!xxxxH2x16s")  # …, source port, destination port, source address
_INODE = Struct("=68xI")


def _request(family: int, protocol: int, state: int) -> Request:
    return Request(SOCK_DIAG_BY_FAMILY, 0, _REQUEST.pack(family, protocol, 0, 1 << state))


_QUESTIONS = tuple(
    (protocol, family, _request(family, number, state))
    for protocol, number, state in (("TCP", IPPROTO_TCP, TCP_LISTEN), ("UDP", IPPROTO_UDP, TCP_CLOSE))
    for family in (AF_INET, AF_INET6)
)


def socket() -> Netlink:
    """A sock_diag socket of the calling thread's namespace."""
    return Netlink(NETLINK_SOCK_DIAG)


def listeners(diag: Netlink) -> frozenset[Listener]:
    """The listening sockets of the namespace that `diag` was opened in."""
    answers = diag.dump([request for _, _, request in _QUESTIONS])
    return frozenset(
        listener
        for (protocol, family, _), messages in zip(_QUESTIONS, answers, strict=True)
        for listener in _decode(protocol, family, messages)
    )


def taking_connections(diag: Netlink) -> frozenset[int]:
    """The inodes of the sockets in LISTEN (/proc/net/tcp takes 5 ms, for it goes through all connections)."""
    requests = [request for protocol, _, request in _QUESTIONS if protocol == "TCP"]
    return frozenset(
        _INODE.unpack_from(data, start)[0] for messages in diag.dump(requests) for _, data, start, _ in messages
    )


def _decode(protocol: str, family: int, messages: Iterable[Message]) -> Iterator[Listener]:
    size = 4 if family == AF_INET else 16
    for _, data, start, _ in messages:
        port, packed = _ANSWER.unpack_from(data, start)
        if port:
            yield Listener(protocol, port, inet_ntop(family, packed[:size]))
