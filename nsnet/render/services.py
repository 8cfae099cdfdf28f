"""What a node must do for every Service port: said once, pure, in no mode's spelling.

A `ServicePortInfo` is what kube-proxy calls by that name (`pkg/proxy/serviceport.go`, `endpointslicecache.go`,
`topology.go`): one port of one Service with the endpoints that are usable from one node. The three modes only spell it.

Sources and their facts (Kubernetes 1.36):
- skipped: no clusterIP or `None`, ExternalName, label `service.kubernetes.io/service-proxy-name` (Services and slices);
  slices labelled `service.kubernetes.io/headless`, of type FQDN or of the other address family;
- a slice joins by label `kubernetes.io/service-name`, a port by *port name and protocol*; the number is the slice's;
- only `addresses[0]` counts; nil ready is ready, nil serving is serving, nil terminating is not terminating;
- endpoints are merged over all slices, one per `ip:port`, in **string** order (`10.0.0.10:80` before `10.0.0.2:80`).

What depends on the Service and its slices alone is computed once and kept in its `Joined` until one of them changes.
The table of those may be dropped at any time without any effect but speed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import msgspec

from nsnet import model, names
from nsnet.model import API_FAMILIES, SERVICE_NAME, ZONE, Endpoint, EndpointSlice, Family, Node, Objects, Service

AFFINITY_SECONDS = 10800  # the API's default for ClientIP

PROXY_NAME = "service.kubernetes.io/service-proxy-name"
HEADLESS = "service.kubernetes.io/headless"


class Target(msgspec.Struct, frozen=True, gc=False):
    """One endpoint's address; prints as `ip:port` (IPv6 `[ip]:port`)."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An endpoint of a port before any node has chosen; `zones` and `nodes` are its hints."""

    target: Target
    node: str = ""
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()

    @property
    def draining(self) -> bool:
        return self.serving and self.terminating


class ServicePortInfo(msgspec.Struct, frozen=True, cache_hash=True, kw_only=True):
    """One Service port as one node sees it. `name` is `ns/name:port` (`ns/name` without a port name)."""

    name: str
    protocol: str  # tcp, udp or sctp
    cluster_ip: str
    port: int
    family: Family = "ip"
    node_port: int = 0  # 0: none
    external_ips: tuple[str, ...] = ()
    load_balancer_vips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()  # CIDRs; empty: everybody
    health_check_node_port: int = 0
    affinity_seconds: int = 0  # 0: no session affinity
    internal_local: bool = False  # internalTrafficPolicy Local
    external_local: bool = False  # externalTrafficPolicy Local
    # From here on with this node's eyes:
    cluster: tuple[Target, ...] = ()  # usable under policy Cluster, in rule order
    local: tuple[Target, ...] = ()  # usable under policy Local, in rule order
    has_endpoints: bool = False  # any usable endpoint anywhere: REJECT or DROP where one is missing
    node_in_ranges: bool = False  # a source range contains this node's own primary address

    @property
    def external(self) -> bool:
        """Reachable from outside: has a node port, an external address or a load balancer's address."""
        return bool(self.node_port or self.load_balancer_vips or self.external_ips)

    @property
    def uses_cluster(self) -> bool:
        """Also under externalTrafficPolicy Local, for what pods and the node itself send (the short circuit)."""
        return not self.internal_local or self.external

    @property
    def uses_local(self) -> bool:
        return self.internal_local or (self.external_local and self.external)

    @property
    def has_internal(self) -> bool:
        """Has an endpoint for traffic to the clusterIP."""
        return bool(self.local) if self.internal_local else self.has_endpoints

    @property
    def has_external(self) -> bool:
        """Has an endpoint for traffic from outside."""
        return bool(self.local) if self.external_local else self.has_endpoints

    @property
    def firewalled(self) -> bool:
        """Its load balancer addresses take only what comes from `source_ranges`."""
        return bool(self.has_endpoints and self.load_balancer_vips and self.source_ranges)

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every endpoint a rule of this node can reach, in string order."""
        return tuple(sorted({*self.cluster, *self.local}, key=str))


class Port(msgspec.Struct, frozen=True):
    """A Service port and all its candidates; the same for every node."""

    info: ServicePortInfo
    candidates: tuple[Candidate, ...]
    per_node: bool  # does a node's place or name make a difference?


class Joined(msgspec.Struct, frozen=True, eq=False):
    """A Service with its slices, and what was computed from them; `kept` goes when one of them changes.

    `served`: kube-proxy looks after it.
    """

    service: Service
    slices: tuple[EndpointSlice, ...]
    served: bool
    kept: dict[Any, Any] = {}


class Place(msgspec.Struct, frozen=True, cache_hash=True):
    """What the rules depend on in a node: its name, zone and primary address of a family."""

    node: str
    zone: str = ""
    ip: str = ""


def place(node: Node, family: Family = "ip") -> Place:
    wanted = (address.address for address in node.status.addresses if address.type == "InternalIP")
    primary = next((text for text in wanted if _in_family(text, family)), "")
    return Place(node.metadata.name, node.metadata.labels.get(ZONE, ""), primary)


# --- Services and their slices ----------------------------------------------------------------------------------------

_KEPT: dict[tuple[str, str], Joined] = {}
_KEPT_MOST = 20_000


def join(objects: Objects) -> tuple[Joined, ...]:
    """Every Service a proxy looks after with its slices, by namespace and name.

    The same `Joined` (with what is kept in it) comes back as long as its objects are equal to those of the last call.
    """
    return model.once(objects, _looked_after)


def every(objects: Objects) -> tuple[Joined, ...]:
    """The same of all Services."""
    return model.once(objects, _every)


def chosen(objects: Objects, wanted: Callable[[Service], bool]) -> list[Joined]:
    """Those of `join` that are wanted; each is asked once as long as it does not change."""
    return [joined for joined in join(objects) if _is(joined, wanted)]


def _looked_after(objects: Objects) -> tuple[Joined, ...]:
    return tuple(joined for joined in every(objects) if joined.served)


def _every(objects: Objects) -> tuple[Joined, ...]:
    slices: defaultdict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
    for item in model.of(objects, EndpointSlice):
        meta = item.metadata
        slices[meta.namespace, meta.labels.get(SERVICE_NAME, "")].append(item)
    if len(_KEPT) > _KEPT_MOST:
        _KEPT.clear()
    return tuple(_joined(service, slices) for service in model.of(objects, Service))


def _joined(service: Service, slices: Mapping[tuple[str, str], list[EndpointSlice]]) -> Joined:
    key = (service.metadata.namespace, service.metadata.name)
    found = tuple(slices.get(key, ()))
    last = _KEPT.get(key)
    if last is None or (last.service is not service and last.service != service) or last.slices != found:
        last = _KEPT[key] = Joined(service, found, _is_served(service), {})
    return last


def _is(joined: Joined, wanted: Callable[[Service], bool]) -> bool:
    kept: bool | None = joined.kept.get(wanted)
    if kept is None:
        kept = joined.kept[wanted] = wanted(joined.service)
    return kept


def _is_served(service: Service) -> bool:
    return (
        service.spec.type != "ExternalName"
        and service.spec.clusterIP not in ("", "None")
        and PROXY_NAME not in service.metadata.labels
    )


def _is_for_proxies(item: EndpointSlice) -> bool:
    return PROXY_NAME not in item.metadata.labels and HEADLESS not in item.metadata.labels


def ports(joined: Joined, family: Family = "ip") -> tuple[Port, ...]:
    """The Service's ports with their candidates, by name and protocol; none when it has no address of the family."""
    kept = joined.kept.get(family)
    if kept is None:
        kept = joined.kept[family] = tuple(_ports(joined, family))
    assert isinstance(kept, tuple)
    return kept


def candidates(joined: Joined, family: Family = "ip") -> int:
    """How many endpoints its ports have together, usable or not."""
    key = (family, "candidates")
    kept = joined.kept.get(key)
    if kept is None:
        kept = joined.kept[key] = sum(len(port.candidates) for port in ports(joined, family))
    assert isinstance(kept, int)
    return kept


def on_node(port: Port, where: Place) -> ServicePortInfo:
    """The port with the endpoints that are usable from this node. The same object for all nodes if none differs."""
    if not port.per_node:
        return port.info
    return _seen_from(port.info, port.candidates, where)


# --- one Service ------------------------------------------------------------------------------------------------------


def _ports(joined: Joined, family: Family) -> Iterator[Port]:
    service = joined.service
    address = _cluster_ip(service, family)
    if not address:
        return
    slices = [item for item in joined.slices if item.addressType == API_FAMILIES[family] and _is_for_proxies(item)]
    spec_ports = service.spec.ports or ()
    for port in sorted(spec_ports, key=lambda item: (item.name, item.protocol)):
        info = _info(service, port, address, family)
        candidates = _merged(_candidates(slices, port, family))
        per_node = _differs_by_node(info, candidates)
        yield Port(info if per_node else _seen_from(info, candidates, Place("")), candidates, per_node)


def _cluster_ip(service: Service, family: Family) -> str:
    every = service.spec.clusterIPs or (service.spec.clusterIP,)
    return next((normal(text) for text in every if _in_family(text, family)), "")


def _info(service: Service, port: model.ServicePort, address: str, family: Family) -> ServicePortInfo:
    spec = service.spec
    external_local = spec.externalTrafficPolicy == "Local"
    checked = spec.type == "LoadBalancer" and external_local
    return ServicePortInfo(
        name=names.service_port(service.metadata.namespace, service.metadata.name, port.name),
        protocol=port.protocol.lower(),
        cluster_ip=address,
        port=port.port,
        family=family,
        node_port=port.nodePort or 0,
        external_ips=_addresses(spec.externalIPs or (), family),
        load_balancer_vips=_addresses(_vips(service), family),
        source_ranges=_ranges(spec.loadBalancerSourceRanges or (), family),
        health_check_node_port=(spec.healthCheckNodePort or 0) if checked else 0,
        affinity_seconds=_affinity(spec),
        internal_local=spec.internalTrafficPolicy == "Local",
        # On a pure ClusterIP Service the field means nothing.
        external_local=external_local and (spec.type in {"NodePort", "LoadBalancer"} or bool(spec.externalIPs)),
    )


def _vips(service: Service) -> list[str]:
    """Load balancer addresses the node answers for itself; those of mode Proxy are left to the balancer."""
    ingress = service.status.loadBalancer.ingress or ()
    return [item.ip for item in ingress if item.ip and item.ipMode in (None, "VIP")]


def _affinity(spec: model.ServiceSpec) -> int:
    if spec.sessionAffinity != "ClientIP":
        return 0
    config = spec.sessionAffinityConfig
    seconds = config.clientIP.timeoutSeconds if config and config.clientIP else None
    return seconds or AFFINITY_SECONDS


def _candidates(slices: list[EndpointSlice], port: model.ServicePort, family: Family) -> Iterator[Candidate]:
    for item in slices:
        for candidate_port in item.ports or ():
            said = (candidate_port.name or "", candidate_port.protocol or "TCP")
            if said == (port.name, port.protocol) and candidate_port.port:
                for endpoint in item.endpoints or ():
                    if endpoint.addresses and _in_family(endpoint.addresses[0], family):
                        yield _candidate(endpoint, candidate_port.port)


def _candidate(endpoint: Endpoint, port: int) -> Candidate:
    says = endpoint.conditions or model.EndpointConditions()
    hints = endpoint.hints or model.EndpointHints()
    return Candidate(
        Target(normal(endpoint.addresses[0]), port),
        node=endpoint.nodeName or "",
        ready=says.ready is not False,
        serving=says.serving is not False,
        terminating=says.terminating is True,
        zones=tuple(hint.name for hint in hints.forZones or ()),
        nodes=tuple(hint.name for hint in hints.forNodes or ()),
    )


def _merged(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """One per `ip:port`, in string order; of two the one that is not terminating."""
    merged: dict[str, Candidate] = {}
    for candidate in candidates:
        text = str(candidate.target)
        if text not in merged or (merged[text].terminating and not candidate.terminating):
            merged[text] = candidate
    return tuple(merged[text] for text in sorted(merged))


# --- one node ---------------------------------------------------------------------------------------------------------


def _differs_by_node(info: ServicePortInfo, candidates: tuple[Candidate, ...]) -> bool:
    hinted = any(candidate.zones or candidate.nodes for candidate in candidates)
    return info.uses_local or hinted or bool(info.source_ranges or info.health_check_node_port)


def _seen_from(info: ServicePortInfo, candidates: tuple[Candidate, ...], where: Place) -> ServicePortInfo:
    """kube-proxy's CategorizeEndpoints: per policy all that are ready, else those serving and terminating."""
    local = [candidate for candidate in candidates if candidate.node == where.node]
    return msgspec.structs.replace(
        info,
        cluster=_usable(_near(candidates, where)) if info.uses_cluster else (),
        local=_usable(local) if info.uses_local else (),
        has_endpoints=bool(_usable(candidates)),
        node_in_ranges=any(_within(where.ip, cidr) for cidr in info.source_ranges),
    )


def _usable(candidates: Iterable[Candidate]) -> tuple[Target, ...]:
    every = tuple(candidates)
    ready = tuple(candidate.target for candidate in every if candidate.ready)
    return ready or tuple(candidate.target for candidate in every if candidate.draining)


def _near(candidates: tuple[Candidate, ...], where: Place) -> tuple[Candidate, ...]:
    """Topology hints: they count only when every ready endpoint has one and one of them names this place."""
    ready = tuple(candidate for candidate in candidates if candidate.ready)
    for hints, here in ((_nodes, where.node), (_zones, where.zone)):
        near = tuple(candidate for candidate in ready if here in hints(candidate))
        if here and near and all(hints(candidate) for candidate in ready):
            return near
    return candidates


def _nodes(candidate: Candidate) -> tuple[str, ...]:
    return candidate.nodes


def _zones(candidate: Candidate) -> tuple[str, ...]:
    return candidate.zones


# --- addresses --------------------------------------------------------------------------------------------------------


def normal(address: str) -> str:
    """The address as the kernel prints it; leading zeros are decimal, as Kubernetes reads them (`172.30.0.041`)."""
    if ":" in address:
        return str(ip_address(address))
    return ".".join(str(int(part)) for part in address.split("."))


def _in_family(address: str, family: Family) -> bool:
    return bool(address) and address != "None" and (":" in address) == (family == "ip6")


def _addresses(texts: Iterable[str], family: Family) -> tuple[str, ...]:
    return tuple(normal(text) for text in texts if _in_family(text, family))


def _ranges(texts: Iterable[str], family: Family) -> tuple[str, ...]:
    """CIDRs of the family; a zero-length prefix anywhere lets everybody in, so the list is empty then."""
    networks = [_network(text.strip()) for text in texts if _in_family(text.strip(), family)]
    if any(network.prefixlen == 0 for network in networks):
        return ()
    return tuple(str(network) for network in networks)


def _network(cidr: str) -> IPv4Network | IPv6Network:
    address, _, length = cidr.partition("/")
    return ip_network(f"{normal(address)}/{length}" if length else normal(address), strict=False)


def _within(address: str, cidr: str) -> bool:
    return bool(address) and ip_address(address) in ip_network(cidr)


def statistic(left: int) -> str:
    """The iptables match that takes 1/`left` of what reaches it, as iptables-save prints it; nothing for all of it.

    kube-proxy writes 1/n with ten decimals, the kernel keeps 1/2^31ths, iptables-save prints eleven decimals.
    """
    if left == 1:
        return ""
    kept = round(0x80000000 * float(f"{1 / left:.10f}")) / 0x80000000
    return f"-m statistic --mode random --probability {kept:.11f}"
