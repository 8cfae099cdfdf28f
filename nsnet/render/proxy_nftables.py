"""kube-proxy's nftables mode: one table per family, its chains, sets, maps and elements, as values that change singly.

Source: Kubernetes 1.36 `pkg/proxy/nftables/proxier.go` (`setupNFTables`, `syncProxyRules`; facts/KUBEPROXY.md §5).

    nat-prerouting, -output  → services: @service-ips, @service-nodeports → service-…, local-…, external-… → dnat
    filter-…-pre-dnat        → firewall-check: @firewall-ips → firewall-…: drop what is in no source range
    filter-input, -forward, -output → service-endpoints-check, nodeport-endpoints-check: @no-endpoint-…: reject or drop
    filter-forward, -output  → cluster-ips-check: reject other ports of @cluster-ips, drop the rest of the Service range
    nat-postrouting          → masquerading: what is marked, and what an endpoint sends to itself (@hairpin-connections)

A packet asks one map instead of a list of rules, so it takes as long with 5,000 Services as with one. Since 1.36 there
are neither endpoint chains (but for session affinity, which must remember whom it chose) nor jumps to a chain that
marks: the kernel looks for loops through every jump, which made large rule sets slow.

What packets meet otherwise than in iptables mode (upstream meant each of it; `tests/test_proxy_nftables.py` has the
table): other ports of a clusterIP are refused and unused addresses of the Service range dropped; node ports are served
on the node's primary address only, never on loopback; a load balancer's source ranges hold before anything else, with
no endpoint too; invalid packets are not dropped and marked ones not accepted in FORWARD (that is left to others).

Two things upstream leaves to chance are fixed here: of two Services that claim one address and port the first by name
has it (a Go map's order decides there), and source ranges are written merged, as the kernel keeps them.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import msgspec

from nsnet import names
from nsnet.model import Family, Node, family_of, subnets
from nsnet.render import kubeproxy, services
from nsnet.render.kubeproxy import PRIMARY, LocalDetector, Told
from nsnet.render.ranges import united
from nsnet.render.services import Joined, Place, Port, ServicePortInfo, Target
from nsnet.state import Key, Nft, NftChain, NftElement, NftSet, NftTable, nft_interval

TABLE = "kube-proxy"


class Settings(msgspec.Struct, frozen=True, cache_hash=True):
    """What a KubeProxyConfiguration can tell the nftables mode; the defaults are kube-proxy's.

    `node_port_addresses`: PRIMARY, this node's addresses that match, or None for every local address but loopback.
    `service_cidrs`: the Service ranges; empty: unallocated addresses are not dropped.
    """

    detector: LocalDetector = LocalDetector()
    masquerade_bit: int = 14
    masquerade_all: bool = False
    node_port_addresses: tuple[str, ...] | None = PRIMARY
    service_cidrs: tuple[str, ...] = ()
    family: Family = "ip"

    @property
    def mark(self) -> str:
        return f"0x{1 << self.masquerade_bit:08x}"


class _Words(NamedTuple):
    """How a family's constants are spelled."""

    ip: str
    addr: str
    loopback: str


_WORDS: Mapping[str, _Words] = {
    "ip": _Words("ip", "ipv4_addr", "127.0.0.0/8"),
    "ip6": _Words("ip6", "ipv6_addr", "::1"),
}


def settings_on(node: Node, said: Told, family: Family = "ip") -> Settings:
    """What the kube-proxy of a node makes of it. Unlike in iptables mode, nothing said means the primary address."""
    every = subnets(said.cluster.networking.serviceSubnet)
    primary = said.config.nodePortAddresses in ((), PRIMARY)
    return Settings(
        kubeproxy.detector(said, node, family),
        kubeproxy.masquerade_bit(said.config.nftables.masqueradeBit),
        said.config.nftables.masqueradeAll,
        PRIMARY if primary else kubeproxy.node_port_addresses(said, node, family),
        service_cidrs=tuple(part for part in every if family_of(part) == family),
        family=family,
    )


def node_values(every: Iterable[Joined], where: Place, told: Settings) -> frozenset[Nft]:
    """kube-proxy's whole table on this node; nodes share what is joined."""
    spelled = [_kept(joined, where, told) for joined in every]
    dispatched: dict[Key, NftElement] = {}
    for item in reversed(spelled):
        dispatched.update(item.elements)  # so that the first by name has what two claim
    return shared(told, where.ip).union(*(item.own for item in spelled), dispatched.values())


class Spelled(msgspec.Struct, frozen=True):
    """A Service, or a port of one: what is its own, and its elements in the maps and sets that all Services share."""

    own: frozenset[Nft]
    elements: dict[Key, NftElement]


def _kept(joined: Joined, where: Place, told: Settings) -> Spelled:
    """All ports of a Service together: looked up once, for most Services need nothing new."""
    key = (where, told)
    kept = joined.kept.get(key)
    if kept is None:
        parts = [_kept_port(joined, port, where, told) for port in services.ports(joined, told.family)]
        kept = joined.kept[key] = parts[0] if len(parts) == 1 else _together(parts)
    assert isinstance(kept, Spelled)
    return kept


def _together(parts: list[Spelled]) -> Spelled:
    elements = {key: element for part in reversed(parts) for key, element in part.elements.items()}
    return Spelled(frozenset[Nft]().union(*(part.own for part in parts)), elements)


def _kept_port(joined: Joined, port: Port, where: Place, told: Settings) -> Spelled:
    """The same for all nodes that see the port alike."""
    info = services.on_node(port, where)
    loops = _local(port, info, where)
    key = (info, told, loops)
    kept = joined.kept.get(key)
    if kept is None:
        kept = joined.kept[key] = spell(info, told, loops)
    assert isinstance(kept, Spelled)
    return kept


def _local(port: Port, info: ServicePortInfo, where: Place) -> tuple[Target, ...]:
    """Endpoints of this node that a rule can reach: only these can meet themselves here."""
    here = {item.target for item in port.candidates if item.node == where.node}
    return tuple(target for target in info.targets if target in here) if here else ()


# --- what all Services share ------------------------------------------------------------------------------------------

_BASE = (
    ("filter-prerouting-pre-dnat", "type filter hook prerouting priority -110", ("ct state new jump firewall-check",)),
    ("filter-output-pre-dnat", "type filter hook output priority -110", ("ct state new jump firewall-check",)),
    (
        "filter-input",
        "type filter hook input priority 0",
        ("ct state new jump nodeport-endpoints-check", "ct state new jump service-endpoints-check"),
    ),
    (
        "filter-forward",
        "type filter hook forward priority 0",
        ("ct state new jump service-endpoints-check", "ct state new jump cluster-ips-check"),
    ),
    (
        "filter-output",
        "type filter hook output priority 0",
        ("ct state new jump service-endpoints-check", "ct state new jump cluster-ips-check"),
    ),
    ("nat-prerouting", "type nat hook prerouting priority -100", ("jump services",)),
    ("nat-output", "type nat hook output priority -100", ("jump services",)),
    ("nat-postrouting", "type nat hook postrouting priority 100", ("jump masquerading",)),
)
"""(name, hook, rules). Source ranges look at the address that was asked for, so they stand before the nat chains; the
endpoint checks look at what the nat chains left alone. `reject` is not allowed in prerouting on older kernels."""

_PORT = "meta l4proto . th dport"


def shared(told: Settings, node_ip: str) -> frozenset[Nft]:
    """The table without any Service."""
    found: list[Nft] = [NftTable(TABLE, "rules for kube-proxy", told.family), *_sets(told), *_addresses(told, node_ip)]
    found += [_chain(told, name, *rules, hook=f"{hook}; policy accept;") for name, hook, rules in _BASE]
    for name, rules in _checks(told).items():
        found.append(_chain(told, name, *rules))
    helper = "helper for @no-endpoint-services / @no-endpoint-nodeports"
    return frozenset([*found, NftChain(TABLE, "reject-chain", ("reject",), comment=helper, family=told.family)])


def _chain(told: Settings, name: str, *rules: str, hook: str = "") -> NftChain:
    return NftChain(TABLE, name, rules, hook, family=told.family)


def _sets(told: Settings) -> Iterator[NftSet]:
    addr = _WORDS[told.family].addr
    by_address, by_port = f"{addr} . inet_proto . inet_service : verdict", "inet_proto . inet_service : verdict"
    for name, kind, comment in (
        ("cluster-ips", addr, "Active ClusterIPs"),
        ("hairpin-connections", f"{addr} . {addr} . inet_proto . inet_service", "service hairpin connections"),
        ("service-ips", by_address, "ClusterIP, ExternalIP and LoadBalancer IP traffic"),
        ("service-nodeports", by_port, "NodePort traffic"),
        ("no-endpoint-services", by_address, "vmap to drop or reject packets to services with no endpoints"),
        ("no-endpoint-nodeports", by_port, "vmap to drop or reject packets to service nodeports with no endpoints"),
        ("firewall-ips", by_address, "destinations that are subject to LoadBalancerSourceRanges"),
    ):
        yield NftSet(TABLE, name, kind, comment=comment, family=told.family)


def _addresses(told: Settings, node_ip: str) -> Iterator[Nft]:
    """Whose node ports are served; upstream has no set for «all»."""
    if told.node_port_addresses is None:
        return
    comment = "IPs that accept NodePort traffic"
    yield NftSet(TABLE, "nodeport-ips", _WORDS[told.family].addr, comment=comment, family=told.family)
    for address in (node_ip,) if told.node_port_addresses == PRIMARY else told.node_port_addresses:
        if address and not ip_address(address).is_loopback:
            yield NftElement(TABLE, "nodeport-ips", address, family=told.family)


def _checks(told: Settings) -> dict[str, tuple[str, ...]]:
    ip = _WORDS[told.family].ip
    key = f"{ip} daddr . {_PORT}"
    mine, local = _node_ports(told)
    marked = f"meta mark & {told.mark} != 0x00000000 meta mark set meta mark ^ {told.mark} masquerade fully-random"
    itself = f"ct status dnat {ip} saddr . {key} @hairpin-connections masquerade fully-random"
    return {
        "firewall-check": (f"{key} vmap @firewall-ips",),
        "service-endpoints-check": (f"{key} vmap @no-endpoint-services",),
        "nodeport-endpoints-check": (f"{mine} {_PORT} vmap @no-endpoint-nodeports",),
        "cluster-ips-check": tuple(_other_ports(told)),
        "services": (
            *_off_cluster(told),
            f"{key} vmap @service-ips",
            f"{local}{mine} {_PORT} vmap @service-nodeports",
        ),
        "masquerading": (marked, itself),
    }


def _node_ports(told: Settings) -> tuple[str, str]:
    """The match for an address whose node ports are served, and what must be asked before it outside of INPUT."""
    words = _WORDS[told.family]
    if told.node_port_addresses is None:
        return f"{words.ip} daddr != {words.loopback}", "fib daddr type local "
    return f"{words.ip} daddr @nodeport-ips", ""


def _other_ports(told: Settings) -> Iterator[str]:
    ip = _WORDS[told.family].ip
    yield f'{ip} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"'
    if told.service_cidrs:
        yield f'{ip} daddr {_among(told.service_cidrs)} drop comment "Drop traffic to unallocated ClusterIPs"'


def _off_cluster(told: Settings) -> Iterator[str]:
    """What is not from a local pod gets the node's address, so that the answer comes back this way."""
    match = "" if told.masquerade_all else _from_pod(told, "!= ")
    if told.masquerade_all or told.detector:
        words = [f"{_WORDS[told.family].ip} daddr @cluster-ips", *([match] if match else ()), _marking(told)]
        comment = "masquerade clusterIP traffic" + ("" if told.masquerade_all else " from outside cluster")
        yield f'{" ".join(words)} comment "{comment}"'


def _from_pod(told: Settings, negated: str = "") -> str:
    """The detector as a match: a local pod, or with `!= ` everybody else."""
    if told.detector.source:
        return f"{_WORDS[told.family].ip} saddr {negated}{_among((told.detector.source,))}"
    pattern = told.detector.interface
    name = f"{pattern[:-1]}*" if pattern.endswith("+") else pattern
    return f'iifname {negated}"{name}"'


def _marking(told: Settings) -> str:
    return f"meta mark set meta mark | {told.mark}"


def _among(cidrs: Iterable[str]) -> str:
    """Addresses as the kernel keeps them: sorted, what touches or overlaps merged, one alone without braces."""
    networks = [ip_network(cidr, strict=False) for cidr in cidrs]
    ends = united((int(network.network_address), int(network.broadcast_address)) for network in networks)
    kind = type(networks[0].network_address)
    spelled = [nft_interval(str(kind(first)), str(kind(last))) for first, last in ends]
    return spelled[0] if len(spelled) == 1 else f"{{ {', '.join(spelled)} }}"


# --- one Service port -------------------------------------------------------------------------------------------------


class _Names(NamedTuple):
    """The chains a Service port may have; the four share one name after the first word."""

    service: str
    local: str
    external: str
    firewall: str


def _names(info: ServicePortInfo) -> _Names:
    base = names.nft_service(info.name, info.protocol)
    return _Names(*(f"{prefix}-{base}" for prefix in ("service", "local", "external", "firewall")))


def _endpoints(info: ServicePortInfo) -> dict[Target, str]:
    """Chain and affinity set of an endpoint are named alike after the first word."""
    return {
        target: names.nft_endpoint(info.name, info.protocol, target.ip, target.port)
        for target in (info.targets if info.affinity_seconds else ())
    }


def spell(info: ServicePortInfo, told: Settings, loops: tuple[Target, ...] = ()) -> Spelled:
    """One Service port in values; `loops` are the endpoints on this node."""
    own, endpoints = _names(info), _endpoints(info)
    found: list[Nft] = []
    if info.cluster:
        found.append(_chain(told, own.service, *_choice(info, info.cluster, endpoints, told)))
    if info.local:
        found.append(_chain(told, own.local, *_choice(info, info.local, endpoints, told)))
    if info.has_endpoints and info.external:
        found.append(_chain(told, own.external, *_external(info, own, told)))
    if _is_firewalled(info):
        found.append(_chain(told, own.firewall, _firewall(info, told)))
    for target, base in endpoints.items():
        found += _sticky(info, target, base, told)
    shared_with_all = (*_dispatch(info, own, told), *_hairpins(info, loops, told))
    return Spelled(frozenset(found), {element.key: element for element in shared_with_all})


def _is_firewalled(info: ServicePortInfo) -> bool:
    """Also without any endpoint: what is in no range shall not even learn that there is none."""
    return bool(info.load_balancer_vips and info.source_ranges)


def _choice(
    info: ServicePortInfo, targets: tuple[Target, ...], endpoints: Mapping[Target, str], told: Settings
) -> Iterator[str]:
    """One of n at random, each alike; with session affinity first the one that was chosen before."""
    ip = _WORDS[told.family].ip
    draw = f"numgen random mod {len(targets)}"
    if not info.affinity_seconds:
        pairs = ", ".join(f"{number} : {target.ip} . {target.port}" for number, target in enumerate(targets))
        yield f"meta l4proto {info.protocol} dnat {ip} addr . port to {draw} map {{ {pairs} }}"
        return
    for target in targets:
        yield f"{ip} saddr @affinity-{endpoints[target]} goto endpoint-{endpoints[target]}"
    ways = ", ".join(f"{number} : goto endpoint-{endpoints[target]}" for number, target in enumerate(targets))
    yield f"{draw} vmap {{ {ways} }}"


def _sticky(info: ServicePortInfo, target: Target, base: str, told: Settings) -> Iterator[Nft]:
    """An endpoint that remembers who came: source addresses for so many seconds after their last new connection."""
    words = _WORDS[told.family]
    flags = ("dynamic", "timeout")
    yield NftSet(TABLE, f"affinity-{base}", words.addr, flags, info.affinity_seconds, family=told.family)
    remember = f"update @affinity-{base} {{ {words.ip} saddr }}"
    yield _chain(told, f"endpoint-{base}", remember, f"meta l4proto {info.protocol} dnat to {target}")


def _external(info: ServicePortInfo, own: _Names, told: Settings) -> Iterator[str]:
    """Where traffic to node ports, external and load balancer addresses enters."""
    if not info.external_local:
        yield _marking(told)
        yield f"goto {own.service}"
        return
    if told.detector:
        yield f'{_from_pod(told)} goto {own.service} comment "short-circuit pod traffic"'
    yield f'fib saddr type local {_marking(told)} comment "masquerade local traffic"'
    yield f'fib saddr type local goto {own.service} comment "short-circuit local traffic"'
    if info.has_external:
        yield f"goto {own.local}"


def _firewall(info: ServicePortInfo, told: Settings) -> str:
    """A node inside a range may loop back with the balancer's own address as source."""
    more = info.load_balancer_vips if info.node_in_ranges else ()
    return f"{_WORDS[told.family].ip} saddr != {_among((*info.source_ranges, *more))} drop"


# --- its elements in the shared maps and sets -------------------------------------------------------------------------


def _dispatch(info: ServicePortInfo, own: _Names, told: Settings) -> Iterator[NftElement]:
    def element(name: str, key: str, data: str = "", comment: str = "") -> NftElement:
        return NftElement(TABLE, name, key, data, comment, told.family)

    port, node_port = f"{info.protocol} . {info.port}", f"{info.protocol} . {info.node_port}"
    yield element("cluster-ips", info.cluster_ip)
    if info.has_internal:
        inner = own.local if info.internal_local else own.service
        yield element("service-ips", f"{info.cluster_ip} . {port}", f"goto {inner}")
    else:
        yield element("no-endpoint-services", f"{info.cluster_ip} . {port}", _missing(info), info.name)
    for address in (*info.external_ips, *info.load_balancer_vips):
        if info.has_endpoints:
            yield element("service-ips", f"{address} . {port}", f"goto {own.external}")
        if not info.has_external:
            yield element("no-endpoint-services", f"{address} . {port}", _missing(info), info.name)
    if info.node_port and info.has_endpoints:
        yield element("service-nodeports", node_port, f"goto {own.external}")
    if info.node_port and not info.has_external:
        yield element("no-endpoint-nodeports", node_port, _missing(info), info.name)
    if _is_firewalled(info):
        for address in info.load_balancer_vips:
            yield element("firewall-ips", f"{address} . {port}", f"goto {own.firewall}")


def _missing(info: ServicePortInfo) -> str:
    """Where an endpoint is missing: dropped when there is none here, refused when there is none anywhere."""
    return "drop" if info.has_endpoints else "goto reject-chain"


def _hairpins(info: ServicePortInfo, loops: tuple[Target, ...], told: Settings) -> Iterator[NftElement]:
    for target in loops:
        key = f"{target.ip} . {target.ip} . {info.protocol} . {target.port}"
        yield NftElement(TABLE, "hairpin-connections", key, family=told.family)
