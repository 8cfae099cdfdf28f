"""conntrack entries of a namespace, by ctnetlink: of the protocols that are asked for, read and deleted.

kube-proxy's clean-up asks for the UDP ones, and a cluster that flushes what a new policy denies for all
(`render.conntrack`, `render.policy_flows` say which must go). A node that talks much has many TCP entries, so the
kernel is asked to send those of one protocol alone (CTA_FILTER, Linux 5.8; an older one sends all).

Source: Linux `include/uapi/linux/netfilter/nfnetlink_conntrack.h`, `net/netfilter/nf_conntrack_netlink.c`.
"""

import errno
from collections.abc import Collection, Iterator, Mapping, Sequence
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from struct import Struct

from nsnet.kernel.netlink import (
    NETLINK_NETFILTER,
    NLA_F_NESTED,
    PROTOCOLS,
    Message,
    Netlink,
    Request,
    attribute,
    attributes,
    inner,
    nested,
)
from nsnet.kernel.netns import inside
from nsnet.state import Change, Conntrack, Refusal, socket_address

_NAMES: Mapping[int, str] = {number: name for name, number in PROTOCOLS.items()}
_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK; IPCTNL_MSG_CT_GET, _DELETE
_ORIGINAL, _REPLY, _INFO, _FILTER = 1, 2, 4, 25  # CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_PROTOINFO, CTA_FILTER
_IP, _PROTO = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_ENDS = {AF_INET: (1, 2), AF_INET6: (3, 4)}  # CTA_IP_V4_SRC, CTA_IP_V4_DST; CTA_IP_V6_SRC, CTA_IP_V6_DST
_TCP, _STATE = 1, 1  # CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE
_OVER = (7, 8)  # TCP_CONNTRACK_TIME_WAIT, TCP_CONNTRACK_CLOSE
_NUMBER, _SPORT, _DPORT = 1, 2, 3  # CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT
_BY_PROTOCOL = Struct("=I").pack(1 << 3)  # CTA_FILTER_ORIG_FLAGS: CTA_FILTER_F_CTA_PROTO_NUM
_NFGENMSG = Struct("=BBH")
_PORT = Struct("!H")


def _tuple(*parts: bytes) -> bytes:
    return nested(_ORIGINAL | NLA_F_NESTED, *parts)


def _numbered(protocol: str) -> bytes:
    return attribute(_NUMBER, bytes([PROTOCOLS[protocol]]))


def _dump(protocol: str, family: int) -> Request:
    wanted = _tuple(nested(_PROTO | NLA_F_NESTED, _numbered(protocol)))
    return Request(
        _GET, 0, _NFGENMSG.pack(family, 0, 0) + wanted + nested(_FILTER | NLA_F_NESTED, attribute(1, _BY_PROTOCOL))
    )


def read(netns: str, protocols: Collection[str] = ("udp",)) -> frozenset[Conntrack]:
    """The namespace's entries of these protocols, of both families. A kernel without ctnetlink shows none."""
    dumps = [_dump(protocol, family) for protocol in sorted(protocols) for family in _ENDS]
    with inside(netns), Netlink(NETLINK_NETFILTER) as netfilter:
        try:
            answers = netfilter.dump(dumps)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.EOPNOTSUPP}:
                return frozenset()
            raise
    found = (entry for messages in answers for message in messages for entry in _decode(message))
    return frozenset(entry for entry in found if entry.protocol in protocols)


def _decode(message: Message) -> Iterator[Conntrack]:
    _, data, start, end = message
    found = attributes(data, start + _NFGENMSG.size, end)
    protocol, src, sport, dst, dport = _ends(found[_ORIGINAL])
    if protocol in _NAMES:
        _, ip, port, seen, seen_port = _ends(found[_REPLY])
        ends = socket_address(ip, port), _NAMES[protocol], socket_address(seen, seen_port)
        yield Conntrack(src, sport, dst, dport, *ends, over=_is_over(found))


def _is_over(found: dict[int, bytes]) -> bool:
    said = inner(inner(found.get(_INFO, b"")).get(_TCP, b"")).get(_STATE)
    return said is not None and said[0] in _OVER


def _ends(payload: bytes) -> tuple[int, str, int, str, int]:
    """Protocol, source and destination of one direction; ports of a protocol without them are 0."""
    found = inner(payload)
    ip, proto = inner(found[_IP]), inner(found[_PROTO])
    (sport,), (dport,) = (_PORT.unpack_from(proto.get(kind, b"\0\0")) for kind in (_SPORT, _DPORT))
    family = AF_INET if _ENDS[AF_INET][0] in ip else AF_INET6
    src, dst = (inet_ntop(family, ip[kind]) for kind in _ENDS[family])
    return proto[_NUMBER][0], src, sport, dst, dport


def write(netns: str, changes: Sequence[Change]) -> list[Refusal]:
    """Deletes the entries. One that is gone already is success; nothing else can be done with an entry."""
    with inside(netns), Netlink(NETLINK_NETFILTER) as netfilter:
        refused = netfilter.ask([_delete(change.value) for change in changes])
    failures = {changes[position]: failure for position, failure in refused.items()}
    return [Refusal(change, str(why)) for change, why in failures.items() if why.code != errno.ENOENT]


def _delete(entry: object) -> Request:
    assert isinstance(entry, Conntrack)
    family = AF_INET6 if ":" in entry.dst else AF_INET
    addresses = zip(_ENDS[family], (entry.src, entry.dst), strict=True)
    ends = nested(_IP | NLA_F_NESTED, *(attribute(kind, inet_pton(family, ip)) for kind, ip in addresses))
    ports = ((_SPORT, entry.sport), (_DPORT, entry.dport))
    proto = nested(
        _PROTO | NLA_F_NESTED, _numbered(entry.protocol), *(attribute(kind, _PORT.pack(port)) for kind, port in ports)
    )
    return Request(_DELETE, 0, _NFGENMSG.pack(family, 0, 0) + _tuple(ends, proto))
