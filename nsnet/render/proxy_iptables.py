"""kube-proxy's iptables mode: its chains, names, comments and rule order, spelled as `iptables-save` prints them.

Source: Kubernetes 1.36 `pkg/proxy/iptables/proxier.go` (`syncProxyRules`), checked there against a running kube-proxy.
What kube-proxy leaves to chance (the order of Services inside KUBE-SERVICES and KUBE-NODEPORTS, a Go map's) is by name
here, so that the same objects give the same rules.

    nat  KUBE-SERVICES ─clusterIP────────────────────────────────→ SVC (SVL under internalTrafficPolicy Local)
                       ─externalIP, load balancer─→ [FW]─→ EXT ──→ SVC, SVL ──→ SEP (one per endpoint) → DNAT
                       ─address of the node─→ KUBE-NODEPORTS ─→ EXT
    filter  KUBE-SERVICES, KUBE-EXTERNAL-SERVICES: REJECT or DROP where an endpoint is missing
            KUBE-PROXY-FIREWALL: what FW did not let pass · KUBE-NODEPORTS: health check ports

One Service port is spelled once for all nodes that see it alike (see `services.Joined`), and again when it changes.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from nsnet import names
from nsnet.model import Family, Node
from nsnet.render import kubeproxy, services
from nsnet.render.kubeproxy import LocalDetector, Told
from nsnet.render.services import Joined, Place, ServicePortInfo, Target
from nsnet.state import Chain

LARGE = 1000  # more endpoints than that, counted per Service port: no comments on endpoint rules (upstream's threshold)

_NEW = "-m conntrack --ctstate NEW "
JUMPS: tuple[tuple[str, str, str], ...] = (
    ("filter", "INPUT", "-j KUBE-FIREWALL"),
    ("filter", "INPUT", _NEW + '-m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'),
    ("filter", "INPUT", '-m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS'),
    (
        "filter",
        "INPUT",
        _NEW + '-m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES',
    ),
    ("filter", "FORWARD", _NEW + '-m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'),
    ("filter", "FORWARD", '-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'),
    ("filter", "FORWARD", _NEW + '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
    (
        "filter",
        "FORWARD",
        _NEW + '-m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES',
    ),
    ("filter", "OUTPUT", "-j KUBE-FIREWALL"),
    ("filter", "OUTPUT", _NEW + '-m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'),
    ("filter", "OUTPUT", _NEW + '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
    ("nat", "PREROUTING", '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
    ("nat", "OUTPUT", '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
    ("nat", "POSTROUTING", '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING'),
)
"""(table, built-in chain, rule): kube-proxy's jumps in their order inside each chain. It prepends them one at a time,
so they stand in front of other components' rules, the last ensured first."""


class Settings(msgspec.Struct, frozen=True, cache_hash=True):
    """What a KubeProxyConfiguration can tell the iptables mode; the defaults are kube-proxy's."""

    detector: LocalDetector = LocalDetector()
    masquerade_bit: int = 14
    masquerade_all: bool = False
    localhost_node_ports: bool = True
    node_port_addresses: tuple[str, ...] | None = None  # this node's addresses that match; None: every local address
    conntrack_tcp_be_liberal: bool = False
    family: Family = "ip"

    @property
    def mark(self) -> str:
        return f"{1 << self.masquerade_bit:#x}"


class _Words(NamedTuple):
    """How a family's constants are spelled."""

    host: str
    loopback: str
    mask: str
    reject: str


_WORDS: Mapping[str, _Words] = {
    "ip": _Words("/32", "127.0.0.0/8", "255.255.255.255", "icmp-port-unreachable"),
    "ip6": _Words("/128", "::1/128", ":".join(["ffff"] * 8), "icmp6-port-unreachable"),
}

Line = tuple[str, str, str]  # table, chain, rule


class Spelled(msgspec.Struct, frozen=True):
    """A Service port in rules: its own chains, and its lines in the chains that all Services share."""

    chains: frozenset[Chain]
    lines: tuple[Line, ...]


def settings_on(node: Node, said: Told, family: Family = "ip") -> Settings:
    """What the kube-proxy of a node makes of it."""
    return Settings(
        kubeproxy.detector(said, node, family),
        kubeproxy.masquerade_bit(said.config.iptables.masqueradeBit),
        said.config.iptables.masqueradeAll,
        localhost_node_ports=kubeproxy.localhost_node_ports(said, family),
        node_port_addresses=kubeproxy.node_port_addresses(said, node, family),
        conntrack_tcp_be_liberal=said.config.conntrack.tcpBeLiberal,
        family=family,
    )


def node_chains(every: Iterable[Joined], where: Place, told: Settings) -> frozenset[Chain]:
    """Every chain kube-proxy has on this node, without the built-in ones (see `JUMPS`); nodes share what is joined."""
    joined = tuple(every)
    large = sum(services.candidates(item, told.family) for item in joined) > LARGE
    spelled = [_kept(item, where, told, large) for item in joined]
    return frozenset().union(_shared(spelled, told), *(item.chains for item in spelled))


def _kept(joined: Joined, where: Place, told: Settings, large: bool) -> Spelled:
    """All ports of a Service together: looked up once, for most Services need nothing new."""
    key = (where, told, large)
    kept = joined.kept.get(key)
    if kept is None:
        ports = services.ports(joined, told.family)
        parts = [_kept_port(joined, services.on_node(port, where), told, large) for port in ports]
        kept = joined.kept[key] = parts[0] if len(parts) == 1 else _together(parts)
    assert isinstance(kept, Spelled)
    return kept


def _together(parts: list[Spelled]) -> Spelled:
    every = frozenset[Chain]().union(*(part.chains for part in parts))
    return Spelled(every, tuple(line for part in parts for line in part.lines))


def _kept_port(joined: Joined, info: ServicePortInfo, told: Settings, large: bool) -> Spelled:
    """The same for all nodes that see the port alike."""
    key = (info, told, large)
    kept = joined.kept.get(key)
    if kept is None:
        kept = joined.kept[key] = spell(info, told, large=large)
    assert isinstance(kept, Spelled)
    return kept


# --- one rule ---------------------------------------------------------------------------------------------------------


def _rule(
    *matches: str,
    s: str = "",
    d: str = "",
    i: str = "",
    p: str = "",
    comment: str = "",
    j: str = "",
) -> str:
    """A rule in iptables-save's order: addresses, interface, protocol, matches as given, target. `! x` negates."""
    heads = (("-s", s), ("-d", d), ("-i", i), ("-p", p))
    words = [
        f"! {option} {value[2:]}" if value.startswith("! ") else f"{option} {value}" for option, value in heads if value
    ]
    words += [f'-m comment --comment "{comment}"'] if comment else []
    words += [match for match in matches if match]
    return " ".join([*words, f"-j {j}"] if j else words)


def _port(protocol: str, port: int) -> str:
    return f"-m {protocol} --dport {port}"


def _host(address: str) -> str:
    return address + ("/128" if ":" in address else "/32")


# --- the chains all Services share ------------------------------------------------------------------------------------


def _shared(spelled: Iterable[Spelled], told: Settings) -> Iterable[Chain]:
    rules: dict[tuple[str, str], list[str]] = {key: [] for key in _EMPTY}
    for item in spelled:
        for table, chain, rule in item.lines:
            rules[table, chain].append(rule)
    rules["nat", "KUBE-SERVICES"] += _to_node_ports(told)
    rules["nat", "KUBE-MARK-MASQ"] = [f"-j MARK --set-xmark {told.mark}/{told.mark}"]
    rules["nat", "KUBE-POSTROUTING"] = _postrouting(told)
    rules["filter", "KUBE-FORWARD"] = _forward(told)
    rules["filter", "KUBE-FIREWALL"] = _firewall(told)
    return [Chain(table, name, tuple(lines), family=told.family) for (table, name), lines in rules.items()]


_EMPTY = (
    ("filter", "KUBE-SERVICES"), ("filter", "KUBE-EXTERNAL-SERVICES"), ("filter", "KUBE-NODEPORTS"),
    ("filter", "KUBE-PROXY-FIREWALL"), ("filter", "KUBE-PROXY-CANARY"),
    ("nat", "KUBE-SERVICES"), ("nat", "KUBE-NODEPORTS"), ("nat", "KUBE-PROXY-CANARY"), ("mangle", "KUBE-PROXY-CANARY"),
)  # fmt: skip


def _to_node_ports(told: Settings) -> list[str]:
    """The last rules of nat KUBE-SERVICES, so that a clusterIP or externalIP that is a node's address wins."""
    comment = "kubernetes service nodeports; NOTE: this must be the last rule in this chain"
    loopback = told.localhost_node_ports and told.family == "ip"
    if told.node_port_addresses is None:
        outside = "" if loopback else f"! {_WORDS[told.family].loopback}"
        return [_rule("-m addrtype --dst-type LOCAL", d=outside, comment=comment, j="KUBE-NODEPORTS")]
    return [
        _rule(d=_host(address), comment=comment, j="KUBE-NODEPORTS")
        for address in told.node_port_addresses
        if loopback or not address.startswith(("127.", "::1"))
    ]


def _postrouting(told: Settings) -> list[str]:
    """Masquerade what is marked; the mark is cleared first, so that a second pass (an overlay) does not do it again."""
    return [
        f"-m mark ! --mark {told.mark}/{told.mark} -j RETURN",
        f"-j MARK --set-xmark {told.mark}/0x0",
        _rule(comment="kubernetes service traffic requiring SNAT", j="MASQUERADE --random-fully"),
    ]


def _forward(told: Settings) -> list[str]:
    accept = [
        _rule(f"-m mark --mark {told.mark}/{told.mark}", comment="kubernetes forwarding rules", j="ACCEPT"),
        _rule("-m conntrack --ctstate RELATED,ESTABLISHED", comment="kubernetes forwarding conntrack rule", j="ACCEPT"),
    ]
    return accept if told.conntrack_tcp_be_liberal else ["-m conntrack --ctstate INVALID -j DROP", *accept]


def _firewall(told: Settings) -> list[str]:
    """Loopback node ports need route_localnet=1; nobody outside may use that to reach 127.0.0.0/8."""
    if told.family != "ip" or not told.localhost_node_ports:
        return []
    inside = _WORDS[told.family].loopback
    match = "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"
    return [_rule(match, s=f"! {inside}", d=inside, comment="block incoming localnet connections", j="DROP")]


# --- one Service port -------------------------------------------------------------------------------------------------


class _Names(NamedTuple):
    """The chains a Service port may have; the four share one hash."""

    svc: str
    svl: str
    ext: str
    fw: str


def _names(info: ServicePortInfo) -> _Names:
    tail = names.kube_chain("SVC", info.name, info.protocol).rpartition("-")[2]
    return _Names(*(f"KUBE-{prefix}-{tail}" for prefix in ("SVC", "SVL", "EXT", "FW")))


def _seps(info: ServicePortInfo) -> dict[Target, str]:
    return {target: names.kube_sep(info.name, info.protocol, str(target)) for target in info.targets}


def spell(info: ServicePortInfo, told: Settings, *, large: bool = False) -> Spelled:
    """One Service port in rules. `large`: endpoint rules carry no comments (kube-proxy's large-cluster mode)."""
    own, seps = _names(info), _seps(info)
    rules: dict[str, list[str]] = {}
    if info.cluster:
        rules[own.svc] = _choice(info, {target: seps[target] for target in info.cluster}, large)
    if info.local:
        rules[own.svl] = _choice(info, {target: seps[target] for target in info.local}, large)
    if info.has_internal:
        inner = own.svl if info.internal_local else own.svc
        rules[inner] = _masquerade(info, told) + rules[inner]
    if info.has_endpoints and info.external:
        rules[own.ext] = _external(info, own, told)
    if info.firewalled:
        rules[own.fw] = _ranges(info, own)
    for target, sep in seps.items():
        rules[sep] = _endpoint(info, target, sep, large)
    made = frozenset(Chain("nat", name, tuple(lines), family=told.family) for name, lines in rules.items())
    return Spelled(made, (*_internal_lines(info, own), *_external_lines(info, own)))


def _masquerade(info: ServicePortInfo, told: Settings) -> list[str]:
    """What is not from a local pod gets the node's address, so that the answer comes back this way."""
    detector = told.detector
    if not detector and not told.masquerade_all:
        return []
    source = f"! {detector.source}" if detector.source and not told.masquerade_all else ""
    interface = f"! {detector.interface}" if detector.interface and not told.masquerade_all else ""
    return [
        _rule(
            _port(info.protocol, info.port),
            s=source,
            d=_host(info.cluster_ip),
            i=interface,
            p=info.protocol,
            comment=f"{info.name} cluster IP",
            j="KUBE-MARK-MASQ",
        )
    ]


def _choice(info: ServicePortInfo, seps: dict[Target, str], large: bool) -> list[str]:
    """Affinity first, then one of n at random: rule i takes 1/(n-i) of what reaches it, which makes them equal."""
    lines = []
    if info.affinity_seconds:
        for target, sep in seps.items():
            recent = f"--rcheck --seconds {info.affinity_seconds} --reap"
            lines.append(_rule(_recent(info, sep, recent), comment=_arrow(info, target, large), j=sep))
    for index, (target, sep) in enumerate(seps.items()):
        lines.append(_rule(services.statistic(len(seps) - index), comment=_arrow(info, target, large), j=sep))
    return lines


def _arrow(info: ServicePortInfo, target: Target, large: bool) -> str:
    return "" if large else f"{info.name} -> {target}"


def _recent(info: ServicePortInfo, sep: str, what: str) -> str:
    return f"-m recent {what} --name {sep} --mask {_WORDS[info.family].mask} --rsource"


def _endpoint(info: ServicePortInfo, target: Target, sep: str, large: bool) -> list[str]:
    """Hairpin: what comes from the endpoint itself must be masqueraded, or it would answer itself directly."""
    comment = "" if large else info.name
    remember = _recent(info, sep, "--set") if info.affinity_seconds else ""
    return [
        _rule(s=_host(target.ip), comment=comment, j="KUBE-MARK-MASQ"),
        _rule(remember, f"-m {info.protocol}", p=info.protocol, comment=comment, j=f"DNAT --to-destination {target}"),
    ]


def _external(info: ServicePortInfo, own: _Names, told: Settings) -> list[str]:
    """Where traffic to node ports, external and load balancer addresses enters."""
    if not info.external_local:
        masquerade = f"masquerade traffic for {info.name} external destinations"
        return [_rule(comment=masquerade, j="KUBE-MARK-MASQ"), f"-j {own.svc}"]
    from_node = "-m addrtype --src-type LOCAL"
    lines = [
        _rule(from_node, comment=f"masquerade LOCAL traffic for {info.name} external destinations", j="KUBE-MARK-MASQ"),
        _rule(from_node, comment=f"route LOCAL traffic for {info.name} external destinations", j=own.svc),
    ]
    if told.detector:
        comment = f"pod traffic for {info.name} external destinations"
        detector = told.detector
        lines.insert(0, _rule(s=detector.source, i=detector.interface, comment=comment, j=own.svc))
    return [*lines, f"-j {own.svl}"] if info.has_external else lines


def _ranges(info: ServicePortInfo, own: _Names) -> list[str]:
    """The load balancer's firewall. A node inside a range may loop back with the balancer's own address as source."""
    sources = [*info.source_ranges]
    if info.node_in_ranges:
        sources += [_host(vip) for vip in info.load_balancer_vips]
    comment = f"{info.name} loadbalancer IP"
    rest = f"other traffic to {info.name} will be dropped by KUBE-PROXY-FIREWALL"
    return [*(_rule(s=source, comment=comment, j=own.ext) for source in sources), _rule(comment=rest)]


# --- its lines in the shared chains -----------------------------------------------------------------------------------


def _internal_lines(info: ServicePortInfo, own: _Names) -> list[Line]:
    if info.has_internal:
        chain = own.svl if info.internal_local else own.svc
        return [("nat", "KUBE-SERVICES", _to(info, info.cluster_ip, "cluster IP", chain))]
    return [("filter", "KUBE-SERVICES", _to(info, info.cluster_ip, *_missing(info)))]


def _missing(info: ServicePortInfo) -> tuple[str, str]:
    """Comment and target where an endpoint is missing: refused when there is none anywhere, dropped when none here."""
    if info.has_endpoints:
        return "has no local endpoints", "DROP"
    return "has no endpoints", f"REJECT --reject-with {_WORDS[info.family].reject}"


def _to(info: ServicePortInfo, address: str, comment: str, target: str) -> str:
    port = _port(info.protocol, info.port)
    return _rule(port, d=_host(address), p=info.protocol, comment=f"{info.name} {comment}", j=target)


def _external_lines(info: ServicePortInfo, own: _Names) -> list[Line]:
    lines: list[Line] = []
    if info.has_endpoints:
        balanced = own.fw if info.firewalled else own.ext
        lines += [("nat", "KUBE-SERVICES", _to(info, ip, "external IP", own.ext)) for ip in info.external_ips]
        lines += [
            ("nat", "KUBE-SERVICES", _to(info, ip, "loadbalancer IP", balanced)) for ip in info.load_balancer_vips
        ]
        if info.node_port:
            port = _port(info.protocol, info.node_port)
            lines.append(("nat", "KUBE-NODEPORTS", _rule(port, p=info.protocol, comment=info.name, j=own.ext)))
    if info.firewalled:
        comment = f"traffic not accepted by {own.fw}"
        lines += [("filter", "KUBE-PROXY-FIREWALL", _to(info, ip, comment, "DROP")) for ip in info.load_balancer_vips]
    if not info.has_external:
        lines += _external_missing(info)
    if info.health_check_node_port:
        port = _port("tcp", info.health_check_node_port)
        comment = f"{info.name} health check node port"
        lines.append(("filter", "KUBE-NODEPORTS", _rule(port, p="tcp", comment=comment, j="ACCEPT")))
    return lines


def _external_missing(info: ServicePortInfo) -> list[Line]:
    comment, target = _missing(info)
    chain = "KUBE-EXTERNAL-SERVICES"
    addresses = [*info.external_ips, *info.load_balancer_vips]
    lines: list[Line] = [("filter", chain, _to(info, address, comment, target)) for address in addresses]
    if info.node_port:
        matches = ("-m addrtype --dst-type LOCAL", _port(info.protocol, info.node_port))
        rule = _rule(*matches, p=info.protocol, comment=f"{info.name} {comment}", j=target)
        lines.append(("filter", chain, rule))
    return lines
