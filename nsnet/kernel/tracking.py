"""How full a namespace's conntrack table is; and a table that is filled, for the fault that is about nothing else.

How many entries have room is one number of the machine (`nf_conntrack_max`, read-only in a child namespace and never
touched here), but each namespace counts its own entries against it. So the table of one node is full when that node has
so many: 262,144 on a machine of 4 GB and more, which ctnetlink takes in a second or two and 100 MB. They are ordinary
entries of established connections between addresses for benchmarks (RFC 2544), with a mark by which they go again.

A full table makes room for somebody new by throwing out what is not assured or about to close. A crowd that keeps
coming leaves nothing of the kind, so before it is filled that goes, as the kernel would throw it out.

Source: Linux `net/netfilter/nf_conntrack_core.c` (__nf_conntrack_alloc, early_drop, gc_worker),
`net/netfilter/nf_conntrack_netlink.c`.
"""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from socket import AF_INET, inet_aton
from struct import Struct

from nsnet.kernel.netlink import (
    NETLINK_NETFILTER,
    NLA_F_NESTED,
    NLM_F_CREATE,
    NLM_F_EXCL,
    PROTOCOLS,
    Message,
    Netlink,
    NetlinkError,
    Request,
    attribute,
    attributes,
    inner,
    nested,
)
from nsnet.kernel.netns import inside
from nsnet.state import Change, ConntrackTable, Refusal

_ROOT = Path("/proc/sys/net/netfilter")
_NEW, _GET, _DELETE = (1 << 8 | kind for kind in range(3))  # NFNL_SUBSYS_CTNETLINK; IPCTNL_MSG_CT_…
_ORIGINAL, _REPLY, _STATUS, _PROTOINFO, _TIMEOUT, _MARK, _MASK = 1, 2, 3, 4, 7, 8, 21  # CTA_…
_U32 = Struct("!I")
_PORT = Struct("!H")
_NFGENMSG = Struct("=BBH")
_ANY_FAMILY, _OF_IPV4 = _NFGENMSG.pack(0, 0, 0), _NFGENMSG.pack(AF_INET, 0, 0)
_SEEN_REPLY, _ASSURED, _CONFIRMED = 2, 4, 8  # IPS_…
_ESTABLISHED = 3  # TCP_CONNTRACK_…
_LASTS = 432_000  # s: what an established connection has
_OURS = _U32.pack(0x6E736E74)  # the fillers' mark: "nsnt"
_NOBODYS = bytes(4)
_EVERY_BIT = _U32.pack(0xFFFFFFFF)
_DESTINATION, _SERVED = inet_aton("198.19.255.254"), _PORT.pack(9)  # discard
_FIRST = (inet_aton("198.18.0.1"), _SERVED)  # source and port
_CROWD = [_U32.pack(0xC612_0100 + number) for number in range(0xFE00)]  # 198.18.1.0 and the addresses after it
_AT_ONCE = 1000  # entries of one address, and between two looks
_ROUNDS_WITHOUT_PROGRESS = 5


def read(netns: str) -> list[ConntrackTable]:
    """The table, where it is full, or was filled; none where it is neither, or the kernel has no conntrack."""
    with inside(netns):
        count, most = _number("nf_conntrack_count"), _number("nf_conntrack_max")
        if not most or count < most // 2:
            return []
        with Netlink(NETLINK_NETFILTER) as netfilter:
            filled = _is_there(netfilter)
    return [ConntrackTable(full=count >= most, filled=filled)] if filled or count >= most else []


def write(netns: str, changes: Sequence[Change]) -> list[Refusal]:
    """Fills the table up, or takes out what filled it."""
    with inside(netns), Netlink(NETLINK_NETFILTER) as netfilter:
        found = [(change, _empty(netfilter) if change.verb == "delete" else _fill(netfilter)) for change in changes]
    return [Refusal(change, why) for change, why in found if why]


def forget(netns: str) -> None:
    """Every connection, but those that fill the table up. Raises NetlinkError."""
    with inside(netns), Netlink(NETLINK_NETFILTER) as netfilter:
        netfilter.do(_all_with(_NOBODYS))


def _number(name: str) -> int:
    """0: there is none, or no limit."""
    try:
        return int((_ROOT / name).read_text(encoding="ascii"))
    except OSError:
        return 0


# --- what fills it ----------------------------------------------------------------------------------------------------


def _fill(netfilter: Netlink) -> str:
    """Why it is not full afterwards, or nothing."""
    most = _number("nf_conntrack_max")
    if not most:
        return "this kernel's conntrack has no limit (net.netfilter.nf_conntrack_max is 0)"
    _throw_out(netfilter)
    netfilter.ask([_entry(*_FIRST)])  # by which it is seen that they are there
    ports = [_PORT.pack(1024 + number) for number in range(_AT_ONCE)]
    many = netfilter.packed([_entry(_CROWD[0], port) for port in ports])
    stuck, before, start = 0, -1, int.from_bytes(os.urandom(2))
    while (count := _number("nf_conntrack_count")) < most:
        stuck = stuck + 1 if count <= before else 0
        if stuck > _ROUNDS_WITHOUT_PROGRESS:
            return f"it takes no more than {count} entries of {most}"
        before, start = count, start + 1
        source = _CROWD[start % len(_CROWD)]
        if most - count < _AT_ONCE:
            netfilter.ask([_entry(source, port) for port in ports[: most - count]])
        else:
            netfilter.ask_packed(many.replace(_CROWD[0], source))
    return ""


def _ends(kind: int, source: bytes, destination: bytes, sport: bytes, dport: bytes) -> bytes:
    ip = nested(1 | NLA_F_NESTED, attribute(1, source), attribute(2, destination))
    proto = (attribute(1, bytes([PROTOCOLS["tcp"]])), attribute(2, sport), attribute(3, dport))
    return nested(kind | NLA_F_NESTED, ip, nested(2 | NLA_F_NESTED, *proto))


_ALIKE = b"".join((
    attribute(_STATUS, _U32.pack(_SEEN_REPLY | _ASSURED | _CONFIRMED)),
    attribute(_TIMEOUT, _U32.pack(_LASTS)),
    attribute(_MARK, _OURS),
    nested(_PROTOINFO | NLA_F_NESTED, nested(1 | NLA_F_NESTED, attribute(1, bytes([_ESTABLISHED])))),
))  # fmt: skip


def _body(source: bytes, sport: bytes) -> bytes:
    there = _ends(_ORIGINAL, source, _DESTINATION, sport, _SERVED)
    return _OF_IPV4 + there + _ends(_REPLY, _DESTINATION, source, _SERVED, sport) + _ALIKE


_PIECES = re.split(b"from|at", _body(b"from", b"at"))  # they are many, so what they share is packed once


def _entry(source: bytes, sport: bytes) -> Request:
    one, two, three, four, five = _PIECES
    body = b"".join((one, source, two, sport, three, source, four, sport, five))
    return Request(_NEW, NLM_F_CREATE | NLM_F_EXCL, body)


def _is_there(netfilter: Netlink) -> bool:
    source, sport = _FIRST
    try:
        netfilter.get(Request(_GET, 0, _OF_IPV4 + _ends(_ORIGINAL, source, _DESTINATION, sport, _SERVED)))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def _empty(netfilter: Netlink) -> str:
    """All with the mark; to a kernel without marks the attributes would mean every entry, but it took none either."""
    refused = netfilter.ask([_all_with(_OURS)])
    return next((str(failure) for failure in refused.values()), "")


def _all_with(mark: bytes) -> Request:
    return Request(_DELETE, 0, _ANY_FAMILY + attribute(_MARK, mark) + attribute(_MASK, _EVERY_BIT))


# --- what gives way ---------------------------------------------------------------------------------------------------


def _throw_out(netfilter: Netlink) -> None:
    """What the kernel itself would, for somebody new."""
    others = attribute(_MARK, _NOBODYS) + attribute(_MASK, _EVERY_BIT)
    (messages,) = netfilter.dump([Request(_GET, 0, _ANY_FAMILY + others)])
    netfilter.ask([going for message in messages for going in _giving_way(message)])


def _giving_way(message: Message) -> Iterator[Request]:
    found = attributes(message.data, message.start + _NFGENMSG.size, message.end)
    (status,) = _U32.unpack(found[_STATUS])
    tcp = inner(inner(found.get(_PROTOINFO, b"")).get(1, b""))
    if not status & _ASSURED or (tcp and tcp[1][0] != _ESTABLISHED):
        family = _NFGENMSG.pack(message.data[message.start], 0, 0)
        yield Request(_DELETE, 0, family + attribute(_ORIGINAL | NLA_F_NESTED, found[_ORIGINAL]))
