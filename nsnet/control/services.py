"""Services as the API server leaves them: defaults applied, clusterIP and node ports allocated.

Defaults: `pkg/apis/core/v1/defaults.go`, `pkg/registry/core/service/strategy.go`. Allocation: a hash of the Service's
name, then the next free one; like the API server it takes dynamic ones from the upper part of a range first (KEP-3070,
KEP-3668), so that addresses and ports chosen by hand, usually low ones, stay free. An allocated value is in the object
and stays there; what somebody wrote down wins over what would be given.

The same port number in TCP and UDP of one Service shares its node port; two Services never share a number, whatever
the protocol, as the API server has it.
"""

import hashlib
from collections.abc import Iterator, Mapping

import msgspec

from nsnet.control.addresses import NOWHERE, Range, number, subnet, supernet, text
from nsnet.control.table import Table, of
from nsnet.errors import ObjectError
from nsnet.model import ClientIPConfig, Cluster, Key, Service, ServicePort, ServiceSpec, SessionAffinityConfig

KUBERNETES = Key("Service", "default", "kubernetes")
AFFINITY = SessionAffinityConfig(ClientIPConfig(10800))
EXPOSED = ("NodePort", "LoadBalancer")

_defaulted: dict[Key, Service] = {}  # the last answer for each Service: asked again, it is found by `is`


def write(table: Table, cluster: Cluster) -> None:
    """All Services with defaults and allocations. Raises ObjectError for what is taken or out of its range."""
    services = of(table, Service)
    for key, service in services.items():
        if _defaulted.get(key) is not service:
            services[key] = _defaults(key, service)
    _forget(services)
    _cluster_ips(services, cluster)
    _node_ports(services, cluster)
    _defaulted.update(services)


def _forget(services: Mapping[Key, Service]) -> None:
    for key in _defaulted.keys() - services.keys():
        del _defaulted[key]


# --- defaults ---------------------------------------------------------------------------------------------------------


def _defaults(key: Key, service: Service) -> Service:
    spec = service.spec
    _families(key, spec)
    with_address = spec.type != "ExternalName"
    exposed = spec.type in EXPOSED or (spec.type == "ClusterIP" and bool(spec.externalIPs))
    ips = (spec.clusterIP,) if spec.clusterIP else tuple((spec.clusterIPs or ())[:1])
    new = msgspec.structs.replace(
        spec,
        ports=tuple(_port(port, spec.type) for port in spec.ports or ()),
        clusterIP=ips[0] if ips and with_address else "",
        clusterIPs=ips if with_address else (),
        ipFamilies=("IPv4",) if with_address else (),
        ipFamilyPolicy=(spec.ipFamilyPolicy or "SingleStack") if with_address else None,
        sessionAffinityConfig=_affinity(spec),
        internalTrafficPolicy=(spec.internalTrafficPolicy or "Cluster") if with_address else "",
        externalTrafficPolicy=(spec.externalTrafficPolicy or "Cluster") if exposed else "",
        allocateLoadBalancerNodePorts=_gives_ports(spec) if spec.type == "LoadBalancer" else None,
        healthCheckNodePort=spec.healthCheckNodePort if wants_health_check(spec) else None,
    )
    return service if new == spec else msgspec.structs.replace(service, spec=new)


def _families(key: Key, spec: ServiceSpec) -> None:
    """IPv6 is not emulated yet: a Service that insists on it is refused, as an IPv4-only API server does."""
    if spec.ipFamilies and "IPv4" not in spec.ipFamilies:
        raise ObjectError(
            key, "spec.ipFamilies", "IPv6 is not configured on this cluster", "write IPv4, or leave it out"
        )
    if spec.ipFamilyPolicy == "RequireDualStack":
        hint = "write PreferDualStack, or leave it out"
        raise ObjectError(key, "spec.ipFamilyPolicy", "this cluster is not configured for dual-stack services", hint)


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
    whole = subnet(cluster.networking.serviceSubnet)
    taken: dict[int, Key] = {whole.first + 1: KUBERNETES}
    missing: list[Key] = []
    for key, service in services.items():
        said = service.spec.clusterIP
        if said and said != "None":
            _claim(key, said, whole, taken, services)
        elif said != "None" and service.spec.type != "ExternalName":
            missing.append(key)
    for key in sorted(missing):
        address = _free_address(key, whole, taken, cluster)
        taken[number(address)] = key
        spec = msgspec.structs.replace(services[key].spec, clusterIP=address, clusterIPs=(address,))
        services[key] = msgspec.structs.replace(services[key], spec=spec)


def _claim(key: Key, said: str, whole: Range, taken: dict[int, Key], services: Mapping[Key, Service]) -> None:
    at = number(said)
    if not whole.first < at < whole.last:
        raise ObjectError(key, "spec.clusterIP", f"{said} is outside serviceSubnet {whole}", _proposal(at, services))
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
    """The serviceSubnet that would have all addresses the Services ask for."""
    if at == NOWHERE:
        return "write an IPv4 address, or leave it out"
    asked = [number(service.spec.clusterIP) for service in services.values() if service.spec.clusterIP != "None"]
    every = [address for address in asked if address != NOWHERE]
    found = supernet(every, 16, 8) or subnet(f"{text(at)}/16")
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
            number = _shared(port, found) or ports.free(key, field, f"{name}:{port.port}/{port.name}")
            found[index] = msgspec.structs.replace(port, nodePort=number)
    check = spec.healthCheckNodePort
    if wants_health_check(spec) and not check:
        check = ports.free(key, "spec.healthCheckNodePort", f"{name}#health")
    new = msgspec.structs.replace(spec, ports=tuple(found), healthCheckNodePort=check)
    return msgspec.structs.replace(service, spec=new)


def _shared(port: ServicePort, ports: list[ServicePort]) -> int:
    """The node port of the same port number in another protocol, where that is free for this one."""
    own = {other.nodePort for other in ports if other.protocol == port.protocol}
    same = (other.nodePort for other in ports if other.port == port.port and other.protocol != port.protocol)
    return next((number for number in same if number and number not in own), 0)
