"""Services as the API server leaves them: defaults applied, clusterIP and node ports allocated.

Defaults: `pkg/apis/core/v1/defaults.go`, `pkg/registry/core/service/strategy.go`. Allocation: a hash of the Service's
name, then the next free one; like the API server it takes dynamic ones from the upper part of a range first (KEP-3070,
KEP-3668), so that addresses and ports chosen by hand, usually low ones, stay free. An allocated value is in the object
and stays there; what somebody wrote down wins over what would be given.

The same port number in TCP and UDP of one Service shares its node port; two Services never share a number, whatever
the protocol, as the API server has it. Which families a Service has: ipfamilies.py.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from nsnet.control import ipfamilies
from nsnet.control.addresses import NOWHERE, Range, number, ranges, subnet, supernet, text
from nsnet.control.table import Table, of
from nsnet.errors import ObjectError
from nsnet.model import (
    ClientIPConfig,
    Cluster,
    Family,
    Key,
    Networking,
    Service,
    ServicePort,
    ServiceSpec,
    SessionAffinityConfig,
    cluster_ips,
    family_of,
)

KUBERNETES = Key("Service", "default", "kubernetes")
AFFINITY = SessionAffinityConfig(ClientIPConfig(10800))
EXPOSED = ("NodePort", "LoadBalancer")


class _Settled(NamedTuple):
    """The last answer for a Service, and for which ranges: asked again, it is found by `is`."""

    service: Service
    networking: Networking


_settled: dict[Key, _Settled] = {}


def write(table: Table, cluster: Cluster) -> None:
    """All Services with defaults and allocations. Raises ObjectError for what is taken or out of its range."""
    services, networking = of(table, Service), cluster.networking
    fresh = [key for key, service in services.items() if not _is_settled(key, service, networking)]
    if not fresh and len(services) == len(_settled):
        return  # they are those of the last time, when nobody had what another has
    for key in fresh:
        services[key] = _defaults(key, services[key], networking)
    _settled.clear()
    _cluster_ips(services, cluster)
    _node_ports(services, cluster)
    _settled.update((key, _Settled(service, networking)) for key, service in services.items())


def _is_settled(key: Key, service: Service, networking: Networking) -> bool:
    last = _settled.get(key)
    return last is not None and last.service is service and last.networking is networking


# --- defaults ---------------------------------------------------------------------------------------------------------


def _defaults(key: Key, service: Service, networking: Networking) -> Service:
    spec = service.spec
    with_address = spec.type != "ExternalName"
    exposed = spec.type in EXPOSED or (spec.type == "ClusterIP" and bool(spec.externalIPs))
    ips = ipfamilies.said_ips(spec)
    new = msgspec.structs.replace(
        spec,
        ports=tuple(_port(port, spec.type) for port in spec.ports or ()),
        clusterIP=ips[0] if ips and with_address else "",
        clusterIPs=ips if with_address else (),
        ipFamilies=ipfamilies.chosen(key, spec, networking) if with_address else (),
        ipFamilyPolicy=(spec.ipFamilyPolicy or ipfamilies.SINGLE) if with_address else None,
        sessionAffinityConfig=_affinity(spec),
        internalTrafficPolicy=(spec.internalTrafficPolicy or "Cluster") if with_address else "",
        externalTrafficPolicy=(spec.externalTrafficPolicy or "Cluster") if exposed else "",
        allocateLoadBalancerNodePorts=_gives_ports(spec) if spec.type == "LoadBalancer" else None,
        healthCheckNodePort=spec.healthCheckNodePort if wants_health_check(spec) else None,
    )
    return service if new == spec else msgspec.structs.replace(service, spec=new)


def _port(port: ServicePort, kind: str) -> ServicePort:
    target = port.targetPort or port.port
    node_port = (port.nodePort or None) if kind in EXPOSED else None
    if target == port.targetPort and node_port == port.nodePort:
        return port
    return msgspec.structs.replace(port, targetPort=target, nodePort=node_port)


def _affinity(spec: ServiceSpec) -> SessionAffinityConfig | None:
    if spec.sessionAffinity != "ClientIP":
        return None
    said = spec.sessionAffinityConfig
    return said if said and said.clientIP and said.clientIP.timeoutSeconds else AFFINITY


def _gives_ports(spec: ServiceSpec) -> bool:
    return spec.allocateLoadBalancerNodePorts is not False


def wants_health_check(spec: ServiceSpec) -> bool:
    return spec.type == "LoadBalancer" and spec.externalTrafficPolicy == "Local"


# --- clusterIP --------------------------------------------------------------------------------------------------------


def has_cluster_ip(spec: ServiceSpec) -> bool:
    return spec.type != "ExternalName" and spec.clusterIP != "None"


def _cluster_ips(services: dict[Key, Service], cluster: Cluster) -> None:
    """An address of each of its families for every Service; what is in the object stays."""
    whole = ranges(cluster.networking.serviceSubnet)
    taken: dict[int, Key] = {whole[0].first + 1: KUBERNETES}
    missing: list[Key] = []
    for key, service in services.items():
        spec = service.spec
        if not has_cluster_ip(spec):
            continue
        for said in cluster_ips(spec):
            _claim(key, said, whole, taken, services)
        if len(cluster_ips(spec)) < len(spec.ipFamilies or ()):
            missing.append(key)
    for key in sorted(missing):
        spec = services[key].spec
        had, found = {family_of(said): said for said in cluster_ips(spec)}, []
        for family in ipfamilies.wanted(spec):
            address = had.get(family) or _free_address(key, _of_family(whole, family), taken, cluster)
            taken[number(address)] = key
            found.append(address)
        spec = msgspec.structs.replace(spec, clusterIP=found[0], clusterIPs=tuple(found))
        services[key] = msgspec.structs.replace(services[key], spec=spec)


def _of_family(whole: Iterable[Range], family: Family) -> Range:
    return next(one for one in whole if one.family == family)


def _claim(
    key: Key, said: str, whole: tuple[Range, ...], taken: dict[int, Key], services: Mapping[Key, Service]
) -> None:
    at = number(said)
    if not any(one.first < at < one.last for one in whole):
        listed = ",".join(map(str, whole))
        raise ObjectError(key, "spec.clusterIP", f"{said} is outside serviceSubnet {listed}", _proposal(at, services))
    holder = taken.setdefault(at, key)
    if holder == key:
        return
    if holder == KUBERNETES:
        hint = "the first address of serviceSubnet is its own: choose another"
        raise ObjectError(key, "spec.clusterIP", f"{said} belongs to {KUBERNETES}", hint)
    first, second = sorted((holder, key))
    raise ObjectError(
        second, "spec.clusterIP", f"{said} is taken by {first}", "choose another address, or leave it out"
    )


def _proposal(at: int, services: Mapping[Key, Service]) -> str:
    """The serviceSubnet that would have all addresses of this family that the Services ask for."""
    if at == NOWHERE:
        return "write an IP address, or leave it out"
    family = family_of(text(at))
    longest, shortest = {"ip": (16, 8), "ip6": (112, ipfamilies.LARGEST)}[family]
    asked = [said for service in services.values() for said in cluster_ips(service.spec)]
    every = [number(said) for said in asked if number(said) != NOWHERE and family_of(said) == family]
    found = supernet(every, longest, shortest) or subnet(f"{text(at)}/{longest}")
    return f"write networking: {{serviceSubnet: {found}}} in the Cluster document, or leave clusterIP out"


def _free_address(key: Key, whole: Range, taken: Mapping[int, Key], cluster: Cluster) -> str:
    """By the hash of the name: from the upper part of the range, where that is full from the lower one."""
    if key == KUBERNETES:
        return text(whole.first + 1)
    kept = min(max(16, whole.size // 16), 256)
    dns = number(cluster.networking.clusterDNS)
    for part in (range(whole.first + kept, whole.last), range(whole.first + 2, min(whole.first + kept, whole.last))):
        for address in probes(f"{key.namespace}/{key.name}", part):
            if address not in taken and address != dns:
                return text(address)
    hint = "choose a larger networking.serviceSubnet"
    raise ObjectError(key, "spec.clusterIP", f"no address is left in serviceSubnet {whole}", hint)


def probes(name: str, values: range) -> Iterator[int]:
    """All values, beginning at the place that the name's hash says."""
    if values:
        start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % len(values)
        yield from values[start:]
        yield from values[:start]


# --- node ports -------------------------------------------------------------------------------------------------------


class _Ports:
    """Node port numbers while they are given out."""

    def __init__(self, cluster: Cluster) -> None:
        low, _, high = cluster.networking.nodePortRange.partition("-")
        self.said = cluster.networking.nodePortRange
        self.range = range(int(low), int(high) + 1)
        self.taken: dict[int, Key] = {}

    def claim(self, key: Key, field: str, port: int) -> None:
        if port not in self.range:
            hint = "choose one of the range, or change networking.nodePortRange"
            raise ObjectError(key, field, f"{port} is outside nodePortRange {self.said}", hint)
        holder = self.taken.setdefault(port, key)
        if holder != key:
            raise ObjectError(key, field, f"{port} is taken by {holder}", "choose another port, or leave it out")

    def free(self, key: Key, field: str, name: str) -> int:
        kept = min(max(16, len(self.range) // 32), 128)
        for part in (self.range[kept:], self.range[:kept]):
            for port in probes(name, part):
                if port not in self.taken:
                    self.taken[port] = key
                    return port
        raise ObjectError(key, field, f"no port is left in nodePortRange {self.said}", "choose a larger nodePortRange")


def _node_ports(services: dict[Key, Service], cluster: Cluster) -> None:
    exposed = {key: service for key, service in services.items() if service.spec.type in EXPOSED}
    if not exposed:
        return
    ports = _Ports(cluster)
    for key in sorted(exposed):
        for field, port in _said(exposed[key].spec):
            ports.claim(key, field, port)
    for key in sorted(exposed):
        if _lacks(exposed[key].spec):
            services[key] = _given(key, exposed[key], ports)


def _said(spec: ServiceSpec) -> Iterator[tuple[str, int]]:
    for index, port in enumerate(spec.ports or ()):
        if port.nodePort:
            yield f"spec.ports[{index}].nodePort", port.nodePort
    if spec.healthCheckNodePort:
        yield "spec.healthCheckNodePort", spec.healthCheckNodePort


def wants_node_ports(spec: ServiceSpec) -> bool:
    return spec.type in EXPOSED and spec.allocateLoadBalancerNodePorts is not False


def _lacks(spec: ServiceSpec) -> bool:
    if wants_health_check(spec) and not spec.healthCheckNodePort:
        return True
    return wants_node_ports(spec) and any(not port.nodePort for port in spec.ports or ())


def _given(key: Key, service: Service, ports: _Ports) -> Service:
    """The Service with every node port it lacks."""
    spec, name = service.spec, f"{key.namespace}/{key.name}"
    found = list(spec.ports or ())
    for index, port in enumerate(found):
        if wants_node_ports(spec) and not port.nodePort:
            field = f"spec.ports[{index}].nodePort"
            free = _shared(port, found) or ports.free(key, field, f"{name}:{port.port}/{port.name}")
            found[index] = msgspec.structs.replace(port, nodePort=free)
    check = spec.healthCheckNodePort
    if wants_health_check(spec) and not check:
        check = ports.free(key, "spec.healthCheckNodePort", f"{name}#health")
    new = msgspec.structs.replace(spec, ports=tuple(found), healthCheckNodePort=check)
    return msgspec.structs.replace(service, spec=new)


def _shared(port: ServicePort, ports: list[ServicePort]) -> int:
    """The node port of the same port number in another protocol, where that is free for this one."""
    own = {other.nodePort for other in ports if other.protocol == port.protocol}
    same = (other.nodePort for other in ports if other.port == port.port and other.protocol != port.protocol)
    return next((free for free in same if free and free not in own), 0)
