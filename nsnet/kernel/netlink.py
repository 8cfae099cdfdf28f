"""Netlink sockets and framing: many requests in one send, answers matched by sequence number, extack kept.

pyroute2 is the field's codec, but used object by object it costs 20 to 30 times the kernel's own work; messages packed
by hand cost 1.0 to 1.2 times (shared facts, FLOOR.md). So this file speaks the framing, `rtnl.py` and `sockdiag.py` the
messages, and tests compare their bytes with pyroute2's.

Three things make it fast and still exact:

- only the last request of a send asks for an acknowledgement: the kernel answers the others only when it refuses them,
  and it works through one send in order;
- several dumps go out in one send: one that fits the first buffer is over before the kernel reads the next request, and
  one that does not makes the kernel say EBUSY to the next, which is then asked again alone;
- NETLINK_CAP_ACK leaves the request out of the answers, NETLINK_EXT_ACK adds the kernel's own sentence.

Sources: Linux `net/netlink/af_netlink.c`, `include/uapi/linux/netlink.h`; the batching is that of `tools/net/ynl`.
"""

import errno
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from struct import Struct
from types import TracebackType
from typing import NamedTuple, Self

NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12
PROTOCOLS: Mapping[str, int] = {"tcp": 6, "udp": 17, "sctp": 132}  # IPPROTO_…, of what has ports

NLMSG_ERROR = 2
NLMSG_DONE = 3

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_ACK_TLVS = 0x200  # in an answer: attributes follow

NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_SO_RCVBUFFORCE = 33

_HEADER = Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = Struct("=HH")  # length, type
_CODE = Struct("=i")

_BUFFER = 1 << 16  # one recv; the kernel fills at most 32 KiB
_QUEUE = 4 << 20  # answers that may wait
_SEND = 1 << 16  # bytes of one send; a socket's default limit is three times this
_TRIES = 20  # of one dump, when the table keeps changing under it


class Request(NamedTuple):
    """One message: its type, its flags beside NLM_F_REQUEST, and everything after the header."""

    kind: int
    flags: int
    body: bytes


class Message(NamedTuple):
    """One answer, left where it arrived: its body is `data[start:end]`."""

    kind: int
    data: bytes
    start: int
    end: int


class Failure(NamedTuple):
    """What the kernel said to a request it refused: the error number and its own sentence (may be empty)."""

    code: int
    sentence: str

    def __str__(self) -> str:
        words = os.strerror(self.code)
        return f"{self.sentence} ({words})" if self.sentence else words


class NetlinkError(OSError):
    """A dump or a single request that the kernel refused."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code, str(failure))


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Attributes inside one; without NLA_F_NESTED, as iproute2 sends them to rtnetlink."""
    return attribute(kind, b"".join(attributes))


def text(kind: int, words: str) -> bytes:
    """A string attribute with its terminating zero."""
    return attribute(kind, words.encode() + b"\0")


def string(payload: bytes) -> str:
    """What `text` packed. Others' bytes that are no UTF-8 can be printed, and are told apart."""
    return payload.rstrip(b"\0").decode(errors="backslashreplace")


def attributes(data: bytes, start: int, end: int) -> dict[int, bytes]:
    """Attribute type → payload; of several of one type the last one counts."""
    found = {}
    unpack = _ATTRIBUTE.unpack_from
    while start + 4 <= end:
        length, kind = unpack(data, start)
        if length < 4:
            break
        found[kind & NLA_TYPE_MASK] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def inner(payload: bytes) -> dict[int, bytes]:
    """The attributes inside an attribute."""
    return attributes(payload, 0, len(payload))


def first(payload: bytes, wanted: int) -> bytes:
    """The first attribute of that type inside an attribute, looked for no further; empty where there is none."""
    return next((body for kind, body in _each(payload) if kind == wanted), b"")


def listed(payload: bytes) -> Iterator[bytes]:
    """The payloads of a list: attributes whose types say nothing, or all the same."""
    return (body for _, body in _each(payload))


def _each(payload: bytes) -> Iterator[tuple[int, bytes]]:
    start, unpack = 0, _ATTRIBUTE.unpack_from
    while start + 4 <= len(payload):
        length, kind = unpack(payload, start)
        if length < 4:
            break
        yield kind & NLA_TYPE_MASK, payload[start + 4 : start + length]
        start += (length + 3) & ~3


def take_many(sock: socket.socket, size: int) -> None:
    """Lets that many bytes wait; in a user namespace no more than net.core.rmem_max says."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


class Netlink:
    """A netlink socket of the namespace it was opened in; it stays there whatever its thread does afterwards."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        take_many(self._socket, _QUEUE)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(self, requests: Sequence[Request]) -> dict[int, Failure]:
        """Send all, in order; what was refused, by position. A refused one does not stop those behind it."""
        failures: dict[int, Failure] = {}
        for first, last in _sends(requests):
            sent = self._send(requests[first:last], NLM_F_ACK)
            for position, failure in self._refused(sent):
                failures[first + position] = failure
        return failures

    def do(self, *requests: Request) -> None:
        """`ask` that raises NetlinkError for the first refused request."""
        for failure in self.ask(requests).values():
            raise NetlinkError(failure)

    def get(self, request: Request) -> Message:
        """The one answer to a request that is no dump. Raises NetlinkError."""
        self._send([request], 0)
        for _, message, failure in self._answers():
            if failure is not None:
                raise NetlinkError(failure)
            return message
        raise NetlinkError(Failure(errno.ENODATA, ""))

    def dump(self, requests: Sequence[Request]) -> list[list[Message]]:
        """The answers to each dump request, whole and consistent.

        A table that does not exist (ENOENT) is empty. Raises NetlinkError for any other refusal, and EINTR for a table
        that changed under every one of many tries.
        """
        answers = self._dump(requests)
        for position, answer in enumerate(answers):
            if answer is None:
                answers[position] = self._dump_again(requests[position])
        return [answer for answer in answers if answer is not None]

    def _dump_again(self, request: Request) -> list[Message]:
        for _ in range(_TRIES):
            (answer,) = self._dump([request])
            if answer is not None:
                return answer
        raise NetlinkError(Failure(errno.EINTR, "the table changed during every reading"))

    def _dump(self, requests: Sequence[Request]) -> list[list[Message] | None]:
        """One try; None where the dump must be asked for again."""
        sent = self._send(requests, 0, NLM_F_DUMP)
        answers: list[list[Message] | None] = [[] for _ in requests]
        interrupted = set()
        waiting = len(requests)
        while waiting:
            data = self._socket.recv(_BUFFER)
            for kind, flags, sequence, start, end in _messages(data):
                position = sequence - sent
                if not 0 <= position < len(requests):
                    continue
                if flags & NLM_F_DUMP_INTR:
                    interrupted.add(position)
                if kind > NLMSG_DONE:
                    answer = answers[position]
                    if answer is not None:
                        answer.append(Message(kind, data, start, end))
                    continue
                waiting -= 1
                failure = _failure(data, kind, flags, start, end)
                if failure is not None and failure.code == errno.EBUSY:
                    interrupted.add(position)
                elif failure is not None and failure.code != errno.ENOENT:
                    self._drain(waiting)
                    raise NetlinkError(failure)
        for position in interrupted:
            answers[position] = None
        return answers

    def _drain(self, waiting: int) -> None:
        """Leave no answer of a failed batch behind for the next one."""
        while waiting:
            data = self._socket.recv(_BUFFER)
            waiting -= sum(kind in {NLMSG_ERROR, NLMSG_DONE} for kind, *_ in _messages(data))

    def packed(self, requests: Sequence[Request]) -> bytes:
        """These requests, for `ask_packed`: for who sends the same thousands of times but for a word or two."""
        return self._packed(requests, NLM_F_ACK)

    def ask_packed(self, data: bytes) -> int:
        """Sends what was packed last, or something as long; how many were refused."""
        self._socket.send(data)
        return sum(1 for _ in self._refused(self._sequence))

    def _send(self, requests: Sequence[Request], last: int, every: int = 0) -> int:
        """Sends with flag `last` on the last request and `every` on each; the first sequence number."""
        self._socket.send(self._packed(requests, last, every))
        return self._sequence - len(requests) + 1

    def _packed(self, requests: Sequence[Request], last: int, every: int = 0) -> bytes:
        first = self._sequence + 1
        self._sequence += len(requests)
        parts = []
        for sequence, (kind, flags, body) in enumerate(requests, first):
            wanted = flags | every | NLM_F_REQUEST
            if sequence == self._sequence:
                wanted |= last
            parts.append(_HEADER.pack(len(body) + 16, kind, wanted, sequence, 0))
            parts.append(body)
            if len(body) & 3:
                parts.append(bytes(-len(body) % 4))
        return b"".join(parts)

    def _refused(self, sent: int) -> Iterator[tuple[int, Failure]]:
        """Positions and refusals until the acknowledgement of the last request."""
        for sequence, _, failure in self._answers():
            if failure is not None:
                yield sequence - sent, failure
            if sequence == self._sequence:
                return

    def _answers(self) -> Iterator[tuple[int, Message, Failure | None]]:
        while True:
            data = self._socket.recv(_BUFFER)
            for kind, flags, sequence, start, end in _messages(data):
                yield sequence, Message(kind, data, start, end), _failure(data, kind, flags, start, end)


def _sends(requests: Sequence[Request]) -> Iterator[tuple[int, int]]:
    """Requests cut into sends of a size the socket takes: (first, behind the last)."""
    first = size = 0
    for position, request in enumerate(requests):
        size += len(request.body) + 20
        if size > _SEND and position > first:
            yield first, position
            first, size = position, len(request.body) + 20
    if first < len(requests):
        yield first, len(requests)


def _messages(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Type, flags, sequence number, start and end of the body, of each message of one datagram."""
    offset = 0
    unpack = _HEADER.unpack_from
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = unpack(data, offset)
        yield kind, flags, sequence, offset + 16, offset + length
        offset += (length + 3) & ~3


def _failure(data: bytes, kind: int, flags: int, start: int, end: int) -> Failure | None:
    """What NLMSG_ERROR or NLMSG_DONE says; None when it says that all went well."""
    if kind not in {NLMSG_ERROR, NLMSG_DONE} or end - start < 4:
        return None
    (code,) = _CODE.unpack_from(data, start)
    if code >= 0:  # a dump's DONE may carry a count
        return None
    behind = start + (20 if kind == NLMSG_ERROR else 4)  # NETLINK_CAP_ACK: only the header of the request stands there
    told = attributes(data, behind, end) if flags & NLM_F_ACK_TLVS else {}
    return Failure(-code, string(told.get(NLMSGERR_ATTR_MSG, b"")))
