"""State values ↔ rtnetlink messages, packed by hand, both directions in one file.

Writing: `requests(value, verb, index)` gives the messages that add, change or delete a value; links that have to be
made go through `bridge`, `tunnel` and `pair`, because their interface numbers are chosen beforehand (so that everything
that refers to a device can be packed before the kernel has made it).
Reading: `interfaces` decodes a dump of links; `link`, `ports`, `addresses`, `routes`, `neighbours` and `fdb` turn dumps
into the same values. What the kernel makes by itself is left out, as `nsnet.state` says.

How a pair knows its other end: each end carries `netns/device` of the other as its alias. An end is believed when both
aliases name each other and each one's IFLA_LINK is the other's number; anything else is an `OtherLink`, hence drift.

IPv6 costs the machine half of a namespace's creation time (duplicate address detection, multicast reports), so devices
here get no link-local address (`addr_gen_mode none`) until an IPv6 address is wanted on them.

Sources: Linux `net/core/rtnetlink.c`, `net/ipv4/{devinet,fib_frontend,fib_semantics}.c`, `drivers/net/{veth,vxlan}`,
iproute2 `ip/iproute.c` (scope of a route that names none), `lib/rt_names.c` (protocol names).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from struct import Struct
from typing import NamedTuple

from nsnet.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Request,
    attribute,
    attributes,
    first,
    inner,
    nested,
    text,
)
from nsnet.state import (
    SEGMENTS,
    Address,
    Bridge,
    BridgePort,
    FdbEntry,
    Ipip,
    Link,
    Loopback,
    Neighbour,
    OtherLink,
    Route,
    Segments,
    Tun,
    Value,
    Veth,
    Vxlan,
    Wireguard,
    connected,
)

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 18, 20, 26, 27, 28, 29
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES, IFLA_QDISC, IFLA_GSO_MAX_SEGS = 31, 32, 6, 40
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_VXLAN_ID, IFLA_VXLAN_LINK, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING = 1, 3, 4, 7
IFLA_VXLAN_PORT, IFLA_VXLAN_LOCAL6 = 15, 17
IFLA_IPTUN_LOCAL, IFLA_IPTUN_REMOTE, IFLA_IPTUN_PMTUDISC = 2, 3, 10
IFLA_TUN_TYPE, IFLA_TUN_PI, IFLA_TUN_PERSIST = 3, 4, 6
IFF_TUN = 1
IFLA_BRPORT_MODE = 4
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
VETH_INFO_PEER = 1
RTEXT_FILTER_SKIP_STATS = 8

IFA_ADDRESS, IFA_LOCAL = 1, 2
IFA_F_NODAD = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH, RTA_VIA = 1, 4, 5, 6, 7, 8, 9, 18
RTAX_MTU = 2
RTNH_F_ONLINK = 4
RTM_F_CLONED = 0x200
RT_TABLE_MAIN = 254
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
RTPROT_REDIRECT, RTPROT_KERNEL = 1, 2
RTN_UNICAST = 1
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80
NTF_SELF = 0x02

AF_UNSPEC, AF_BRIDGE = 0, 7
IFF_UP = 1
IPV4_BITS = 32
LO = 1  # the number of `lo` in every namespace
ALIAS = 255  # bytes of the longest alias (IFALIASZ - 1)
MIN_IPV6_MTU = 1280  # below it a device has no IPv6 settings

_LINK = Struct("=BxHiII")  # family, type, number, flags, changed flags
_ADDR = Struct("=BBBBI")  # family, prefix length, flags, scope, number
_ROUTE = Struct("=BBBBBBBBI")  # family, dst and src length, tos, table, protocol, scope, type, flags
_NEIGH = Struct("=BxxxiHBB")  # family, number, state, flags, type
_NEXTHOP = Struct("=HBBi")  # length, flags, hops, number
_U32 = Struct("=I")
_U16 = Struct("=H")
_BE16 = Struct("!H")

_PROTOCOLS = {
    0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra", 10: "mrt", 11: "zebra",
    12: "bird", 13: "dnrouted", 14: "xorp", 15: "ntk", 16: "dhcp", 18: "keepalived", 42: "babel", 99: "openr",
    186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip
_PROTOCOL_NUMBERS = {name: number for number, name in _PROTOCOLS.items()}
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_SCOPE_NUMBERS = {name: number for number, name in _SCOPES.items()}
_KINDS = {1: "unicast", 6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
_KIND_NUMBERS = {name: number for number, name in _KINDS.items()}

# Devices that tunnel modules put into every new namespace.
_FALLBACKS = {"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "sit0", "ip6tnl0", "ip6gre0", "ip6_vti0"}

Index = Mapping[str, int]
"""Device name → interface number, of one namespace."""


# --- small pieces ---------------------------------------------------------------------------------------------------


def _u32(kind: int, number: int) -> bytes:
    return attribute(kind, _U32.pack(number))


def _mac(words: str) -> bytes:
    return bytes.fromhex(words.replace(":", ""))


def _ip(words: str) -> bytes:
    return inet_pton(AF_INET6 if ":" in words else AF_INET, words)


def _words(packed: bytes) -> str:
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


def _family(words: str) -> int:
    return AF_INET6 if ":" in words else AF_INET


def _up(up: bool) -> int:
    return IFF_UP if up else 0


def _info(kind: str, *data: bytes) -> bytes:
    """IFLA_LINKINFO of a device to be made; a kind without data of its own sends no empty attribute."""
    inside = (nested(IFLA_INFO_DATA, *data),) if data else ()
    return nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, kind), *inside)


def alias_of(end: str) -> str:
    """The alias that names `netns/device`: itself, or (over 255 bytes) its beginning and a hash of the whole."""
    if len(end) <= ALIAS:
        return end
    return f"{end[:238]}~{hashlib.sha256(end.encode()).hexdigest()[:16]}"


# --- writing: links -------------------------------------------------------------------------------------------------


def _new(index: int, flags: int, *parts: bytes) -> Request:
    body = _LINK.pack(AF_UNSPEC, 0, index, flags, flags) + b"".join(parts)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def _change(index: int, flags: int, mask: int, *parts: bytes) -> Request:
    """Changes a device that is there. RTM_NEWLINK, because RTM_SETLINK ignores what belongs to a port's bridge."""
    return Request(RTM_NEWLINK, 0, _LINK.pack(AF_UNSPEC, 0, index, flags, mask) + b"".join(parts))


def marked(mark: str) -> Request:
    """`ip link set lo alias MARK up`: what makes a new namespace ours."""
    return _change(LO, IFF_UP, IFF_UP, text(IFLA_IFALIAS, mark))


def bridge(value: Bridge, index: int) -> list[Request]:
    """`ip link add NAME … type bridge`, up, and its MTU.

    A bridge follows the smallest MTU of its ports (1500 without any) until somebody changes its MTU, and setting what
    it has is no change: so it is made with another one.
    """
    shape = (text(IFLA_IFNAME, value.name), attribute(IFLA_ADDRESS, _mac(value.mac)), _u32(IFLA_MTU, value.mtu ^ 1))
    return [_new(index, _up(value.up), *shape, _info("bridge")), _change(index, 0, 0, _u32(IFLA_MTU, value.mtu))]


Tunnel = Vxlan | Ipip | Wireguard


def tunnel(value: Tunnel, index: int, dev: int = 0, netns_fd: int = -1) -> Request:
    """`ip link add NAME … type vxlan`, ipip or wireguard, up; `dev` is the number of the device that carries it.

    With `netns_fd` it stands in that namespace, and its packets leave by the one where the message is sent.
    """
    mac = attribute(IFLA_ADDRESS, _mac(value.mac)) if isinstance(value, Vxlan) else b""
    shape = (text(IFLA_IFNAME, value.name), mac, _u32(IFLA_MTU, value.mtu))
    target = _u32(IFLA_NET_NS_FD, netns_fd) if netns_fd >= 0 else b""
    return _new(index, _up(value.up), *shape, target, _tunnel_info(value, dev))


def _tunnel_info(value: Tunnel, dev: int) -> bytes:
    match value:
        case Vxlan():
            return _info("vxlan", *_vxlan_data(value, dev))
        case Ipip():
            return _info("ipip", *_ipip_data(value))
        case Wireguard():
            return _info("wireguard")


def _vxlan_data(value: Vxlan, dev: int) -> Iterator[bytes]:
    packed = _ip(value.local)
    yield _u32(IFLA_VXLAN_ID, value.vni)
    yield _u32(IFLA_VXLAN_LINK, dev) if dev else b""
    yield attribute(IFLA_VXLAN_LOCAL if len(packed) == 4 else IFLA_VXLAN_LOCAL6, packed)
    yield attribute(IFLA_VXLAN_LEARNING, bytes([value.learning]))
    yield attribute(IFLA_VXLAN_PORT, _BE16.pack(value.port))


def _ipip_data(value: Ipip) -> Iterator[bytes]:
    yield attribute(IFLA_IPTUN_LOCAL, _ip(value.local))
    if value.remote:
        yield attribute(IFLA_IPTUN_REMOTE, _ip(value.remote))
    yield attribute(IFLA_IPTUN_PMTUDISC, bytes([value.pmtudisc]))


_ONE_QUEUE = _u32(IFLA_NUM_TX_QUEUES, 1) + _u32(IFLA_NUM_RX_QUEUES, 1)  # two for each processor cost a third of a pair


def _end(value: Veth) -> bytes:
    mac = attribute(IFLA_ADDRESS, _mac(value.mac)) if value.mac else b""
    return text(IFLA_IFNAME, value.name) + mac + _u32(IFLA_MTU, value.mtu) + _ONE_QUEUE


def pair(near: Veth, far: Veth, numbers: tuple[int, int], netns_fd: int, master: int = 0) -> Request:
    """A veth pair in one message, from the side of `near`, which is up and (with `master`) a port of that bridge.

    The far end stands in the namespace of `netns_fd`, still down: a peer created up is refused with ENOTCONN. An empty
    `mac` leaves the choice to the kernel.
    """
    peer = _LINK.pack(AF_UNSPEC, 0, numbers[1], 0, 0) + _end(far) + _u32(IFLA_NET_NS_FD, netns_fd)
    port = _u32(IFLA_MASTER, master) if master else b""
    return _new(numbers[0], _up(near.up), _end(near), port, _info("veth", attribute(VETH_INFO_PEER, peer)))


def named(index: int, peer: str, hairpin: bool = False) -> Request:
    """The alias of a pair's end, and hairpin in the same message where the end is a new bridge port."""
    return _change(index, 0, 0, text(IFLA_IFALIAS, alias_of(peer)), _hairpin(True) if hairpin else b"")


def without_ipv6(index: int) -> Request:
    """`ip link set DEV addrgenmode none`, while the device is down. Refused where the device has no IPv6 at all."""
    mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
    return _change(index, 0, 0, nested(IFLA_AF_SPEC, nested(AF_INET6, mode)))


def up_or_down(index: int, up: bool) -> Request:
    return _change(index, _up(up), IFF_UP)


def reshaped(value: Bridge | Veth | Tunnel | Tun, index: int) -> Request:
    """MAC (where it has one), MTU and up of a device that keeps its kind."""
    mac = b""
    if isinstance(value, Bridge | Veth | Vxlan) and value.mac:
        mac = attribute(IFLA_ADDRESS, _mac(value.mac))
    return _change(index, _up(value.up), IFF_UP, mac, _u32(IFLA_MTU, value.mtu))


def gone(index: int) -> Request:
    return Request(RTM_DELLINK, 0, _LINK.pack(AF_UNSPEC, 0, index, 0, 0))


def grouped(index: int, group: int) -> Request:
    return _change(index, 0, 0, _u32(IFLA_GROUP, group))


def group_gone(group: int) -> Request:
    """All links of a group at once: one wait of about 20 ms in the kernel instead of one for each link."""
    return Request(RTM_DELLINK, 0, _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + _u32(IFLA_GROUP, group))


def _hairpin(on: bool) -> bytes:
    data = nested(IFLA_INFO_SLAVE_DATA, attribute(IFLA_BRPORT_MODE, bytes([on])))
    return nested(IFLA_LINKINFO, text(IFLA_INFO_SLAVE_KIND, "bridge"), data)


def _port(value: BridgePort, index: Index) -> list[Request]:
    number = index[value.name]
    return [
        _change(number, 0, 0, _u32(IFLA_MASTER, index[value.bridge])),
        _change(number, 0, 0, _hairpin(value.hairpin)),
    ]


# --- writing: the rest ----------------------------------------------------------------------------------------------


def _address(kind: int, flags: int, value: Address, index: Index) -> Request:
    ip, _, length = value.cidr.partition("/")
    packed, family = _ip(ip), _family(ip)
    # Nobody else has an address that is given out here; duplicate detection would hold it back for a second.
    nodad = IFA_F_NODAD if family == AF_INET6 and kind == RTM_NEWADDR else 0
    head = _ADDR.pack(family, int(length), nodad, RT_SCOPE_UNIVERSE, index[value.dev])
    return Request(kind, flags, head + attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed))


def _neighbour(kind: int, flags: int, value: Neighbour, index: Index) -> Request:
    head = _NEIGH.pack(_family(value.ip), index[value.dev], NUD_PERMANENT, 0, 0)
    return Request(kind, flags, head + attribute(NDA_DST, _ip(value.ip)) + attribute(NDA_LLADDR, _mac(value.mac)))


def _fdb(kind: int, flags: int, value: FdbEntry, index: Index) -> Request:
    head = _NEIGH.pack(AF_BRIDGE, index[value.dev], NUD_PERMANENT, NTF_SELF, 0)
    return Request(kind, flags, head + attribute(NDA_LLADDR, _mac(value.mac)) + attribute(NDA_DST, _ip(value.dst)))


def _usual_scope(route: Route) -> str:
    """The scope of a route that names none, as iproute2 fills it in."""
    direct = route.kind == "unicast" and not route.via and not route.nexthops
    return "link" if direct and ":" not in route.dst else "global"


def _route(kind: int, flags: int, value: Route, index: Index, scope: int) -> Request:
    ip, _, length = ("0.0.0.0/0" if value.dst == "default" else value.dst).partition("/")
    family = _family(ip)
    protocol = _PROTOCOL_NUMBERS.get(value.proto)
    head = _ROUTE.pack(
        family, int(length), 0, 0, RT_TABLE_MAIN, int(value.proto) if protocol is None else protocol,
        scope, _KIND_NUMBERS[value.kind], RTNH_F_ONLINK if value.onlink and not value.nexthops else 0,
    )  # fmt: skip
    return Request(kind, flags, head + b"".join(_route_parts(value, index, family, int(length), ip)))


def _route_parts(value: Route, index: Index, family: int, length: int, ip: str) -> Iterator[bytes]:
    if length:
        yield attribute(RTA_DST, _ip(ip))
    if value.via:
        yield _gateway(value.via, family)
    if value.dev:
        yield _u32(RTA_OIF, index[value.dev])
    if value.src:
        yield attribute(RTA_PREFSRC, _ip(value.src))
    if value.metric:
        yield _u32(RTA_PRIORITY, value.metric)
    if value.mtu:
        yield nested(RTA_METRICS, _u32(RTAX_MTU, value.mtu))
    if value.nexthops:
        yield nested(RTA_MULTIPATH, *(_nexthop(hop, value.onlink, index, family) for hop in value.nexthops))


def _gateway(via: str, family: int) -> bytes:
    packed = _ip(via)
    if _family(via) == family:
        return attribute(RTA_GATEWAY, packed)
    return attribute(RTA_VIA, _U16.pack(_family(via)) + packed)


def _nexthop(hop: tuple[str, str], onlink: bool, index: Index, family: int) -> bytes:
    via, dev = hop
    gateway = _gateway(via, family) if via else b""
    return _NEXTHOP.pack(len(gateway) + 8, RTNH_F_ONLINK if onlink else 0, 0, index[dev]) + gateway


def requests(value: Value, verb: str, index: Index) -> list[Request]:
    """The messages of one change of a value that is not a link to be made or deleted; in order.

    Raises LookupError for a device, protocol, scope or kind of route that is not known.
    """
    if verb == "delete":
        return _deletions(value, index)
    match value:
        case Address():
            route = connected(value) if verb == "replace" else None  # which does not come back by itself
            again = [] if route is None else requests(route, "add", index)
            return [_address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, value, index), *again]
        case Neighbour():
            return [_neighbour(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, value, index)]
        case Route():
            scope = _SCOPE_NUMBERS[value.scope or _usual_scope(value)]
            return [_route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, value, index, scope)]
        case FdbEntry():
            return [_fdb(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, value, index)]
        case BridgePort():
            return _port(value, index)
        case Loopback(up):
            return [up_or_down(LO, up)]
        case Segments(dev, most):
            return [_change(index[dev], 0, 0, _u32(IFLA_GSO_MAX_SEGS, most))]
        case Bridge() | Veth() | Vxlan() | Ipip() | Wireguard() | Tun():
            return [reshaped(value, index[value.name])]
        case _:
            raise LookupError(f"{type(value).__name__} is not written with rtnetlink")


def _deletions(value: Value, index: Index) -> list[Request]:
    match value:
        case Address():
            return [_address(RTM_DELADDR, 0, value, index)]
        case Neighbour():
            return [_neighbour(RTM_DELNEIGH, 0, value, index)]
        case Route():
            return [_route(RTM_DELROUTE, 0, value, index, RT_SCOPE_NOWHERE)]
        case FdbEntry():
            return [_fdb(RTM_DELNEIGH, 0, value, index)]
        case BridgePort():
            return [_change(index[value.name], 0, 0, _u32(IFLA_MASTER, 0))]
        case Loopback():
            return [up_or_down(LO, False)]
        case Segments(dev):
            return [_change(index[dev], 0, 0, _u32(IFLA_GSO_MAX_SEGS, SEGMENTS))]
        case Bridge() | Veth() | Vxlan() | Ipip() | Wireguard() | Tun() | OtherLink():
            return [gone(index[value.name])]
        case _:
            raise LookupError(f"{type(value).__name__} is not deleted with rtnetlink")


# --- reading --------------------------------------------------------------------------------------------------------

_SKIP_STATS = _u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)

GET_LO = Request(RTM_GETLINK, 0, _LINK.pack(AF_UNSPEC, 0, LO, 0, 0) + _SKIP_STATS)
GET_LINKS = Request(RTM_GETLINK, 0, _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + _SKIP_STATS)
GET_ADDRESSES = Request(RTM_GETADDR, 0, _ADDR.pack(AF_UNSPEC, 0, 0, 0, 0))
GET_NEIGHBOURS = Request(RTM_GETNEIGH, 0, _NEIGH.pack(AF_UNSPEC, 0, 0, 0, 0))
GET_ROUTES = Request(RTM_GETROUTE, 0, _ROUTE.pack(AF_UNSPEC, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0))


def get_fdb(index: int) -> Request:
    """The forwarding entries of one device; a dump of all would also list every port's own address."""
    return Request(RTM_GETNEIGH, 0, _NEIGH.pack(AF_BRIDGE, index, 0, 0, 0))


class Interface(NamedTuple):
    """A link as the kernel tells it; numbers are not resolved yet."""

    number: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    alias: str
    peer: int  # IFLA_LINK: for a veth the number of the other end, in its namespace
    master: int
    port: bool  # the master is a bridge
    hairpin: bool
    data: bytes  # IFLA_INFO_DATA
    qdisc: str = ""  # the root queueing discipline's kind
    segments: int = SEGMENTS


def _string(payload: bytes) -> str:
    return payload[:-1].decode(errors="surrogateescape")


def interface(message: Message) -> Interface:
    """One RTM_NEWLINK."""
    _, data, start, end = message
    _, _, number, flags, _ = _LINK.unpack_from(data, start)
    found = attributes(data, start + 16, end)
    info = inner(found.get(IFLA_LINKINFO, b""))
    port = info.get(IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0") == b"bridge"
    mode = first(info.get(IFLA_INFO_SLAVE_DATA, b""), IFLA_BRPORT_MODE) if port else b""
    return Interface(
        number=number,
        name=_string(found[IFLA_IFNAME]),
        kind=info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode(),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=_U32.unpack(found[IFLA_MTU])[0],
        up=bool(flags & IFF_UP),
        alias=_string(found.get(IFLA_IFALIAS, b"\0")),
        peer=_number(found.get(IFLA_LINK)),
        master=_number(found.get(IFLA_MASTER)),
        port=port,
        hairpin=bool(mode.strip(b"\0")),
        data=info.get(IFLA_INFO_DATA, b""),
        qdisc=_string(found.get(IFLA_QDISC, b"\0")),
        segments=_number(found[IFLA_GSO_MAX_SEGS]) if IFLA_GSO_MAX_SEGS in found else SEGMENTS,
    )


def _number(payload: bytes | None) -> int:
    return 0 if payload is None else int(_U32.unpack(payload)[0])


def interfaces(messages: Iterable[Message]) -> dict[int, Interface]:
    """Interface number → link, `lo` and the fallback devices of tunnel modules among them."""
    return {found.number: found for found in map(interface, messages)}


Interfaces = Mapping[int, Interface]


def _names(found: Interfaces, number: int) -> str:
    there = found.get(number)
    return there.name if there else ""


def link(found: Interfaces, one: Interface, peer: str = "") -> Loopback | Link | None:
    """The value of one link; `peer` is the confirmed other end of a veth. None for what the kernel made itself."""
    if one.number == LO:
        return Loopback(one.up)
    if one.name in _FALLBACKS:
        return None
    if one.kind == "bridge":
        return Bridge(one.name, one.mac, one.mtu, one.up)
    if one.kind == "veth" and peer:
        return Veth(one.name, peer, one.mac, one.mtu, one.up)
    match one.kind:
        case "vxlan":
            return _vxlan(found, one)
        case "ipip":
            return _ipip(one)
        case "wireguard":
            return Wireguard(one.name, one.mtu, one.up)
        case "tun" if _is_plain_tun(one):
            return Tun(one.name, one.mtu, one.up)
    return OtherLink(one.name, one.kind)


def _ipip(one: Interface) -> Ipip:
    data = inner(one.data)
    local, remote = (_words(data.get(kind, bytes(4))) for kind in (IFLA_IPTUN_LOCAL, IFLA_IPTUN_REMOTE))
    discovers = data.get(IFLA_IPTUN_PMTUDISC, b"\0") != b"\0"
    return Ipip(one.name, one.mtu, _said(local), _said(remote), discovers, one.up)


def _said(address: str) -> str:
    return "" if address == "0.0.0.0" else address  # noqa: S104 - the kernel's word for any


def _is_plain_tun(one: Interface) -> bool:
    """As `ip tuntap add mode tun` makes it: it stays, and its packets have nothing in front."""
    data = inner(one.data)
    told = [data.get(kind, b"\0")[0] for kind in (IFLA_TUN_TYPE, IFLA_TUN_PI, IFLA_TUN_PERSIST)]
    return told == [IFF_TUN, 0, 1]


def _vxlan(found: Interfaces, one: Interface) -> Vxlan:
    data = inner(one.data)
    local = data.get(IFLA_VXLAN_LOCAL) or data.get(IFLA_VXLAN_LOCAL6) or b""
    return Vxlan(
        name=one.name,
        mac=one.mac,
        mtu=one.mtu,
        vni=_number(data.get(IFLA_VXLAN_ID)),
        local=_words(local) if local else "",
        dev=_names(found, _number(data.get(IFLA_VXLAN_LINK))),
        port=_BE16.unpack(data[IFLA_VXLAN_PORT])[0],
        learning=data.get(IFLA_VXLAN_LEARNING, b"\0") != b"\0",
        up=one.up,
    )


def segments(found: Interfaces) -> Iterator[Segments]:
    """The veth ends whose large frames somebody limited."""
    for one in found.values():
        if one.kind == "veth" and one.segments != SEGMENTS:
            yield Segments(one.name, one.segments)


def ports(found: Interfaces) -> Iterator[BridgePort]:
    """The links that are ports of a bridge."""
    for one in found.values():
        if one.port:
            yield BridgePort(one.name, _names(found, one.master), one.hairpin)


def addresses(messages: Iterable[Message], routes: Iterable[Message], found: Interfaces) -> Iterator[Address]:
    """Addresses, without those of `lo` and the link-local ones that the kernel gives.

    `routes` say whether those that belong to them are there. (Of IPv6 they come with the carrier, and are not missed.)
    """
    there = set(_connected(routes))
    for _, data, start, end in messages:
        family, length, _, scope, number = _ADDR.unpack_from(data, start)
        told = attributes(data, start + 8, end)
        packed = told.get(IFA_LOCAL) or told[IFA_ADDRESS]
        if number == LO and _is_loopback(packed, length):
            continue
        if family == AF_INET6 and scope == RT_SCOPE_LINK:
            continue
        up = number in found and found[number].up and family == AF_INET and length < IPV4_BITS
        net = int.from_bytes(packed, "big") >> IPV4_BITS - length if up else 0
        yield Address(_names(found, number), f"{_words(packed)}/{length}", not up or (number, net, length) in there)


def _connected(messages: Iterable[Message]) -> Iterator[tuple[int, int, int]]:
    """Device, network (as a number of that many bits) and prefix length of IPv4 routes that the kernel made."""
    for _, data, start, end in messages:
        family, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(data, start)
        if (family, table, protocol, kind) == (AF_INET, RT_TABLE_MAIN, RTPROT_KERNEL, RTN_UNICAST):
            told = attributes(data, start + 12, end)
            network = int.from_bytes(told.get(RTA_DST, b""), "big") >> IPV4_BITS - length
            yield _number(told.get(RTA_OIF)), network, length


def _is_loopback(packed: bytes, length: int) -> bool:
    return (packed, length) in {(b"\x7f\0\0\1", 8), (bytes(15) + b"\1", 128)}


def neighbours(messages: Iterable[Message], found: Interfaces) -> Iterator[Neighbour]:
    """The permanent neighbours."""
    for _, data, start, end in messages:
        family, number, state, _, _ = _NEIGH.unpack_from(data, start)
        if state & NUD_PERMANENT and family in {AF_INET, AF_INET6}:
            told = attributes(data, start + 12, end)
            if NDA_LLADDR in told:
                yield Neighbour(_names(found, number), _words(told[NDA_DST]), told[NDA_LLADDR].hex(":"))


def fdb(messages: Iterable[Message], found: Interfaces) -> Iterator[FdbEntry]:
    """The permanent entries of a device itself (not of the bridge it is a port of) that lead to another VTEP."""
    for _, data, start, end in messages:
        _, number, state, flags, _ = _NEIGH.unpack_from(data, start)
        if state & NUD_PERMANENT and flags & NTF_SELF:
            told = attributes(data, start + 12, end)
            if NDA_DST in told:
                yield FdbEntry(_names(found, number), told[NDA_LLADDR].hex(":"), _words(told[NDA_DST]))


def routes(messages: Iterable[Message], found: Interfaces) -> Iterator[Route]:
    """Routes of the main table, without those the kernel made."""
    for _, data, start, end in messages:
        head = _ROUTE.unpack_from(data, start)
        table, protocol, kind, flags = head[4], head[5], head[7], head[8]
        if table != RT_TABLE_MAIN or protocol in {RTPROT_KERNEL, RTPROT_REDIRECT} or flags & RTM_F_CLONED:
            continue
        if head[0] in {AF_INET, AF_INET6} and kind in _KINDS:
            yield _read_route(head, attributes(data, start + 12, end), found)


def _read_route(head: tuple[int, ...], told: dict[int, bytes], found: Interfaces) -> Route:
    family, length, _, _, _, protocol, scope, kind, flags = head
    hops = list(_hops(told.get(RTA_MULTIPATH, b""), found))
    metric = _number(told.get(RTA_PRIORITY))
    route = Route(
        dst=_destination(family, told.get(RTA_DST), length),
        dev=_names(found, _number(told.get(RTA_OIF))) if kind == RTN_UNICAST else "",
        via=_via(told),
        proto=_PROTOCOLS.get(protocol, str(protocol)),
        onlink=bool(flags & RTNH_F_ONLINK) or (bool(hops) and all(onlink for _, onlink in hops)),
        src=_words(told[RTA_PREFSRC]) if RTA_PREFSRC in told else "",
        metric=0 if family == AF_INET6 and metric == 1024 else metric,  # IPv6 has no metric 0: 1024 is its default
        mtu=_number(inner(told.get(RTA_METRICS, b"")).get(RTAX_MTU)),
        kind=_KINDS[kind],
        nexthops=tuple(hop for hop, _ in hops),
    )
    named_scope = _SCOPES.get(scope, str(scope))
    return route if named_scope == _usual_scope(route) else _with_scope(route, named_scope)


def _with_scope(route: Route, scope: str) -> Route:
    return Route(
        route.dst, route.dev, route.via, route.proto, route.onlink, route.src, route.metric, route.mtu, route.kind,
        scope, route.nexthops,
    )  # fmt: skip


def _destination(family: int, packed: bytes | None, length: int) -> str:
    if packed is None:
        return "default" if family == AF_INET else "::/0"
    return f"{_words(packed)}/{length}"


def _via(told: dict[int, bytes]) -> str:
    if RTA_GATEWAY in told:
        return _words(told[RTA_GATEWAY])
    return _words(told[RTA_VIA][2:]) if RTA_VIA in told else ""


def _hops(payload: bytes, found: Interfaces) -> Iterator[tuple[tuple[str, str], bool]]:
    """Each next hop of RTA_MULTIPATH as (via, dev), and whether it is onlink."""
    start = 0
    while start + 8 <= len(payload):
        length, flags, _, number = _NEXTHOP.unpack_from(payload, start)
        told = attributes(payload, start + 8, start + length)
        yield (_via(told), _names(found, number)), bool(flags & RTNH_F_ONLINK)
        start += (length + 3) & ~3
