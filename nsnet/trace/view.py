"""One namespace with the eyes of one address family, indexed: what a packet asks of it.

Made from its values alone, once for each set of values. What is of the other family is not there.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_interface, ip_network
from operator import attrgetter
from typing import Any, TypeVar, get_args

import msgspec

from nsnet import state
from nsnet.state import (
    Address,
    Bridge,
    BridgePort,
    Chain,
    Conntrack,
    ConntrackTable,
    Family,
    FdbEntry,
    IpSet,
    LegacyChain,
    Loopback,
    Neighbour,
    Offload,
    OtherLink,
    Qdisc,
    Route,
    Sysctl,
    Value,
    Vxlan,
    WireguardKey,
    WireguardPeer,
)
from nsnet.trace.nft import Tables, tables
from nsnet.trace.rules import number

Link = Loopback | state.Link


class Entry(msgspec.Struct, frozen=True):
    """A route as numbers: `network` has `length` leading bits that count."""

    network: int
    length: int
    route: Route
    bits: int = 32


LEGACY = "legacy "  # before the names of the older xtables' tables
LOOPBACK: dict[Family, str] = {"ip": "127.0.0.1", "ip6": "::1"}
FORWARDING: dict[Family, str] = {"ip": "net.ipv4.ip_forward", "ip6": "net.ipv6.conf.all.forwarding"}
BRIDGE_NF: dict[Family, str] = {
    "ip": "net.bridge.bridge-nf-call-iptables",
    "ip6": "net.bridge.bridge-nf-call-ip6tables",
}


class View(msgspec.Struct, frozen=True, eq=False):
    family: Family
    links: dict[str, Link]
    ports: dict[str, BridgePort]
    addresses: dict[str, list[str]]  # device → address/length
    local: frozenset[str]
    entries: list[Entry]
    neighbours: dict[tuple[str, str], str]
    fdb: dict[tuple[str, str], str]
    keys: dict[str, WireguardKey]
    peers: dict[str, list[WireguardPeer]]
    sysctls: dict[str, str]
    chains: Mapping[tuple[str, str], Chain]
    legacy: dict[tuple[str, str], Chain]  # of the older xtables, in tables called `legacy filter`
    nft: Tables
    sets: dict[str, IpSet]
    qdiscs: dict[str, Qdisc]
    offloads: dict[str, Offload]
    tracked: dict[tuple[str, str, int, str, int], Conntrack]  # protocol, source, destination: as the packet comes
    tracks: bool = True  # is there room for what conntrack does not know yet?
    hooks: dict[str, list[tuple[int, bool, Any]]] = {}  # the chains that stand in each, as netfilter.py finds them
    behind: dict[tuple[str, str], str] = {}  # (bridge, MAC) → the port behind which it was last: where to look first

    def chain(self, table: str, name: str) -> Chain | None:
        return (self.legacy if table.startswith(LEGACY) else self.chains).get((table, name))

    def is_up(self, dev: str) -> bool:
        link = self.links.get(dev)
        return link is not None and not isinstance(link, OtherLink) and link.up

    def is_local(self, address: str) -> bool:
        return address in self.local or (is_loopback(address) and self.is_up("lo"))

    @property
    def forwards(self) -> bool:
        return self.is_on(FORWARDING[self.family])

    @property
    def shows_bridged(self) -> bool:
        """Does a bridge show what it forwards to netfilter?"""
        return self.is_on(BRIDGE_NF[self.family])

    def is_on(self, sysctl: str) -> bool:
        return self.sysctls.get(sysctl, "0") not in ("", "0")

    def mtu(self, dev: str) -> int:
        """0: whatever comes."""
        link = self.links.get(dev)
        return 0 if link is None or isinstance(link, Loopback | OtherLink) else link.mtu

    def mac(self, dev: str) -> str:
        link = self.links.get(dev)
        return link.mac if isinstance(link, Bridge | state.Veth | Vxlan) else ""

    def bridge_of(self, dev: str) -> BridgePort | None:
        return self.ports.get(dev)


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


@lru_cache(maxsize=1 << 11)
def view(every: frozenset[Value], family: Family = "ip", chains: Mapping[tuple[str, str], Chain] | None = None) -> View:
    """The namespace with these values. Connected routes, which the kernel makes, are made here from the addresses.

    `chains`: those of iptables, where they are not among the values.
    """
    values = _Sorted(every, family)
    links = {_name(value): value for kind in _LINKS for value in values.of(kind)}
    owned = sorted(values.of(Address), key=lambda item: item.cidr)
    addresses: dict[str, list[str]] = {}
    for value in owned:
        addresses.setdefault(value.dev, []).append(value.cidr)
    peers: dict[str, list[WireguardPeer]] = {}
    for peer in values.of(WireguardPeer):
        peers.setdefault(peer.dev, []).append(peer)
    made = [route for value in owned if value.routed and (route := state.connected(value)) is not None]
    routes = [route for route in [*values.of(Route), *made] if _works(route, links)]
    return View(
        family=family,
        links=links,
        ports={value.name: value for value in values.of(BridgePort)},
        addresses=addresses,
        local=frozenset(cidr.partition("/")[0] for cidrs in addresses.values() for cidr in cidrs),
        entries=sorted(map(_entry, routes), key=lambda entry: (-entry.length, entry.route.metric)),
        neighbours={(value.dev, value.ip): value.mac for value in values.of(Neighbour)},
        fdb={(value.dev, value.mac): value.dst for value in values.of(FdbEntry)},
        keys={value.dev: value for value in values.of(WireguardKey)},
        peers=peers,
        sysctls={value.name: value.value for value in values.of(Sysctl)},
        chains={(value.table, value.name): value for value in values.of(Chain)} if chains is None else chains,
        legacy={(chain.table, chain.name): chain for chain in map(_legacy, values.of(LegacyChain))},
        nft=tables([value for kind in _NFT for value in values.of(kind)]),
        sets={value.name: value for value in values.of(IpSet)},
        qdiscs={value.dev: value for value in values.of(Qdisc)},
        offloads={value.dev: value for value in values.of(Offload)},
        tracked={
            (value.protocol, value.src, value.sport, value.dst, value.dport): value for value in values.of(Conntrack)
        },
        tracks=not any(value.full for value in values.of(ConntrackTable)),
    )


_LINKS: tuple[type[Link], ...] = get_args(Link)
_NFT: tuple[type[state.Nft], ...] = get_args(state.Nft)
T = TypeVar("T")


class _Sorted:
    """The values of one family, and what both have, by their kinds."""

    def __init__(self, every: Iterable[Value], family: Family) -> None:
        self._kinds: defaultdict[type, list[Any]] = defaultdict(list)
        for value in every:
            if _family(value) in ("", family):
                self._kinds[type(value)].append(value)

    def of(self, kind: type[T]) -> list[T]:
        return self._kinds[kind]


def family_of(address: str) -> Family:
    return "ip6" if ":" in address else "ip"


_FAMILY: Mapping[type, Callable[[Any], str]] = {
    Address: lambda one: family_of(one.cidr),
    Route: lambda one: family_of(one.dst),
    Neighbour: lambda one: family_of(one.ip),
    **dict.fromkeys((Chain, LegacyChain, *_NFT), attrgetter("family")),
}
"""Of what has one."""


def _family(value: Value) -> str:
    """Empty for what both have."""
    said = _FAMILY.get(type(value))
    return said(value) if said else ""


def _legacy(value: LegacyChain) -> Chain:
    return Chain(f"{LEGACY}{value.table}", value.name, value.rules, value.policy, value.family)


def _name(link: Link) -> str:
    return "lo" if isinstance(link, Loopback) else link.name


def _works(route: Route, links: dict[str, Link]) -> bool:
    """The kernel takes a route away when its device goes down."""
    link = links.get(route.dev)
    return not route.dev or link is None or isinstance(link, OtherLink) or link.up


def _entry(route: Route) -> Entry:
    network = ip_network("0.0.0.0/0" if route.dst == "default" else route.dst, strict=False)
    return Entry(int(network.network_address), network.prefixlen, route, network.max_prefixlen)


def lookup(here: View, dst: str) -> Route | None:
    """The route of the longest prefix, then of the lowest metric; a local address leads to `lo`."""
    if here.is_local(dst):
        src = dst if dst in here.local else LOOPBACK[here.family]
        return Route(dst, dev="lo", proto="kernel", src=src, kind="local")
    wanted = number(dst)
    for entry in here.entries:
        if (wanted ^ entry.network) >> (entry.bits - entry.length) == 0:
            return entry.route
    return None


def source(here: View, route: Route, dev: str, nexthop: str) -> str:
    """The source address the kernel gives: the route's, else the device's in the next hop's subnet, else its first."""
    if route.src:
        return route.src
    cidrs = here.addresses.get(dev, [])
    near = [cidr for cidr in cidrs if nexthop and _is_in(nexthop, cidr)]
    own = near or cidrs or [cidr for others in here.addresses.values() for cidr in others]
    return own[0].partition("/")[0] if own else ""


@lru_cache(maxsize=1 << 12)
def _is_in(address: str, cidr: str) -> bool:
    return ip_address(address) in ip_interface(cidr).network
