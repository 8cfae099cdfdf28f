"""Which netfilter rules one packet matched: asked of the kernel itself, as `nft monitor trace` asks it.

A table `nsnet-trace` marks the packet (`meta nftrace set 1`) where it comes into a namespace and where it leaves it,
before any other rule; from then on the kernel tells each rule it matches, of iptables-nft's tables and of nftables'
alike. A rule is told by its handle: its place among the rules of its chain says which line of the state it is.

The table belongs to the socket that made it (NFT_TABLE_F_OWNER): nobody else can change it, and the kernel removes it
when the socket is closed, whatever ended us. So a table of that name without an owner is a leftover of somebody else's
(`nftables.tables` shows it as drift).

Done without `nft`, for a subscription is ready at once where nobody can tell when `nft monitor` is, and one process per
node that reads all of its rules costs a tenth of a second each at 1,000 Services.

Sources: Linux `include/uapi/linux/netfilter/nf_tables.h`, `net/netfilter/nf_tables_trace.c`.
"""

import errno
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from struct import Struct
from typing import NamedTuple, Self

from nsnet.errors import MachineError
from nsnet.kernel import nftnl
from nsnet.kernel.netlink import NETLINK_NETFILTER, attribute, attributes, inner, nested, string, take_many, text
from nsnet.kernel.netns import inside, netlink
from nsnet.kernel.nftables import OWNED, TRACE

_HEADER = Struct("=IHHII")
_NFGENMSG = Struct(">BBH")
_U32 = Struct(">I")
_S32 = Struct(">i")
_U64 = Struct(">Q")

_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_BEGIN, _END, _ERROR = 0x10, 0x11, 2
_NFTABLES = 10
_NEWTABLE, _NEWCHAIN, _NEWRULE, _TRACE = 0, 3, 6, 17
_GROUP = 1 << 8  # NFNLGRP_NFTRACE, the ninth, as a bind() mask
_NESTED = 0x8000
_INET = 1  # one table for both families

_PRIORITY = -350  # behind defragmentation, before raw
_PREROUTING, _OUTPUT = 0, 3
_REGISTER = 1
_TRANSPORT, _NFTRACE, _L4PROTO = 2, 12, 16
_BUFFER = 1 << 17
_QUEUE = 4 << 20


class Match(NamedTuple):
    """`size` bytes at `offset` of the transport header are `value`."""

    offset: int
    value: bytes


class Told(NamedTuple):
    """One step of the packet: the rule (`handle` in its chain) it matched, or (0) a policy or the end of a chain.

    `trace` names the packet's pass through the namespace, `verdict` is accept, drop, continue, jump CHAIN, …
    """

    netns: str
    trace: int
    family: str  # of the table, in nft's words
    table: str
    chain: str
    handle: int
    verdict: str
    iif: int

    @property
    def chain_name(self) -> "ChainName":
        return self.family, self.table, self.chain


class RuleTrace:
    """Watches one packet in these namespaces. A context manager; afterwards nothing of it is left."""

    def __init__(self, places: Sequence[str], protocol: int, matches: Sequence[Match]) -> None:
        """`protocol` is the IP protocol's number. Raises MachineError where the kernel cannot do it."""
        self._socks: dict[str, socket.socket] = {}
        try:
            for name in places:
                self._socks[name] = _watching(name, protocol, matches)
        except OSError as error:
            self.close()
            why = "live traces of rules need Linux 5.12 and nf_tables"
            raise MachineError(f"{name}: no rule trace: {error.strerror}", why) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The kernel takes the tables away with their sockets."""
        for sock in self._socks.values():
            sock.close()
        self._socks = {}

    def read(self) -> list[Told]:
        """What was told since the last time, each namespace's in its order."""
        return [told for name, sock in self._socks.items() for told in _read(name, sock)]


def _watching(name: str, protocol: int, matches: Sequence[Match]) -> socket.socket:
    with inside(name):
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        take_many(sock, _QUEUE)
        sock.bind((0, _GROUP))
        sock.send(b"".join(_transaction(protocol, matches)))
        _acknowledged(sock)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _transaction(protocol: int, matches: Sequence[Match]) -> Iterable[bytes]:
    """The table, its two chains and their rules, or nothing of it."""
    expressions = [*_compared(_meta(_L4PROTO), bytes((protocol,)))]
    for match in matches:
        expressions += _compared(_payload(match.offset, len(match.value)), match.value)
    expressions += [_immediate(b"\x01"), _expression("meta", _u32(2, _NFTRACE), _u32(3, _REGISTER))]
    rule = nested(4 | _NESTED, *(nested(1 | _NESTED, one) for one in expressions))
    yield _message(_BEGIN, 0, 1, b"", family=0, number=_NFTABLES)
    yield _message(_NEWTABLE, _CREATE, 2, text(1, TRACE) + _u32(2, OWNED))
    for sequence, (chain, hook) in enumerate((("prerouting", _PREROUTING), ("output", _OUTPUT))):
        where = nested(4 | _NESTED, _u32(1, hook), attribute(2, _S32.pack(_PRIORITY)))
        named = text(1, TRACE) + text(3, chain) + where + text(7, "filter")
        yield _message(_NEWCHAIN, _CREATE, 3 + 2 * sequence, named)
        yield _message(_NEWRULE, _CREATE | _APPEND, 4 + 2 * sequence, text(1, TRACE) + text(2, chain) + rule)
    yield _message(_END, _ACK, 7, b"", family=0, number=_NFTABLES)


def _message(kind: int, flags: int, sequence: int, body: bytes, *, family: int = _INET, number: int = 0) -> bytes:
    kind = kind if kind in (_BEGIN, _END) else _NFTABLES << 8 | kind
    flags |= _REQUEST | (_ACK if kind == _NFTABLES << 8 | _NEWRULE else 0)
    head = _HEADER.pack(_HEADER.size + _NFGENMSG.size + len(body), kind, flags, sequence, 0)
    return head + _NFGENMSG.pack(family, 0, number) + body


def _acknowledged(sock: socket.socket) -> None:
    """Waits for the answer to both rules. Raises OSError with the kernel's refusal."""
    waiting = 2
    sock.settimeout(5.0)
    while waiting:
        data, at = sock.recv(_BUFFER), 0
        while at + 20 <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
            if kind == _ERROR:
                (code,) = Struct("=i").unpack_from(data, at + 16)
                if code:
                    raise OSError(-code, errno.errorcode.get(-code, "refused"))
                waiting -= sequence in (4, 6)
            at += (length + 3) & ~3


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, _U32.pack(value))


def _expression(name: str, *parts: bytes) -> bytes:
    return text(1, name) + nested(2 | _NESTED, *parts)


def _meta(key: int) -> bytes:
    return _expression("meta", _u32(1, _REGISTER), _u32(2, key))


def _payload(offset: int, size: int) -> bytes:
    return _expression("payload", _u32(1, _REGISTER), _u32(2, _TRANSPORT), _u32(3, offset), _u32(4, size))


def _compared(loaded: bytes, value: bytes) -> Iterable[bytes]:
    yield loaded
    yield _expression("cmp", _u32(1, _REGISTER), _u32(2, 0), nested(3 | _NESTED, attribute(1, value)))


def _immediate(value: bytes) -> bytes:
    return _expression("immediate", _u32(1, _REGISTER), nested(2 | _NESTED, attribute(1, value)))


# --- what is told -----------------------------------------------------------------------------------------------------

_VERDICTS = {0: "drop", 1: "accept", 3: "queue", -1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"}


def _read(name: str, sock: socket.socket) -> Iterable[Told]:
    with suppress(BlockingIOError):
        while True:
            try:
                data, at = sock.recv(_BUFFER), 0
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue
                raise
            while at + 20 <= len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                if kind == _NFTABLES << 8 | _TRACE:
                    yield _told(name, nftnl.NFPROTO.get(data[at + 16], ""), attributes(data, at + 20, at + length))
                at += max(16, (length + 3) & ~3)


def _told(name: str, family: str, found: dict[int, bytes]) -> Told:
    handle = int(_U64.unpack(found[3])[0]) if 3 in found else 0
    verdict = ""
    if 5 in found:
        said = inner(found[5])
        verdict = _VERDICTS.get(_S32.unpack(said[1])[0], "?") + (f" {string(said[2])}" if 2 in said else "")
    elif 16 in found:
        verdict = _VERDICTS.get(_S32.unpack(found[16])[0], "?")
    iif = nftnl.number(found[10]) if 10 in found else 0
    trace, table, chain = nftnl.number(found[6]), string(found[1]), string(found[2])
    return Told(name, trace, family, table, chain, handle, verdict, iif)


ChainName = tuple[str, str, str]  # family, table, chain
Located = dict[tuple[str, ChainName, int], int]


def located(told: Iterable[Told]) -> Located:
    """(namespace, chain, handle) → the rule's place in its chain, for every chain that was told of."""
    wanted: dict[str, set[ChainName]] = {}
    for step in told:
        if step.handle and step.table != TRACE:
            wanted.setdefault(step.netns, set()).add(step.chain_name)
    return {(netns, *rule): at for netns, chains in wanted.items() for rule, at in places_of(netns, chains).items()}


def places_of(netns: str, chains: Iterable[ChainName]) -> dict[tuple[ChainName, int], int]:
    """(chain, handle) → the rule's place in its chain, counted from 0."""
    wanted = sorted(set(chains))
    with netlink(netns, NETLINK_NETFILTER) as asking:
        answers = asking.dump([nftnl.get_rules(*chain) for chain in wanted])
    return {
        (chain, int(_U64.unpack(nftnl.body(message)[1][3])[0])): index
        for chain, messages in zip(wanted, answers, strict=True)
        for index, message in enumerate(messages)
    }
