"""What Kubernetes accepts of Services and their endpoints, and what then does not do what its author may think.

Nobody refuses these objects in a real cluster either: kube-proxy passes over them, and the traffic goes elsewhere.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from nsnet.control import ipfamilies, topology
from nsnet.control.endpoints import MANAGED, MIRROR
from nsnet.control.table import Table, of
from nsnet.model import LACKS, SERVICE_NAME, Cluster, Endpoints, EndpointSlice, Key, Node, Object, Service, ServicePort

Said = tuple[Object, str, str, str]
FAMILIES = {"IPv4": 4, "IPv6": 6}


def said(table: Table, cluster: Cluster) -> Iterator[Said]:
    """(object, reason, message, type) of every event."""
    if LACKS in cluster.metadata.annotations:
        message = "this kernel has no sctp match (CONFIG_NETFILTER_XT_MATCH_SCTP): rules for SCTP ports are left out"
        yield cluster, "NoSCTP", message, "Warning"
    services = of(table, Service)
    slices = _by_service(of(table, EndpointSlice))
    for key, service in services.items():
        for reason, message in _of_service(service, cluster):
            yield service, reason, message, "Warning"
        if topology.is_auto(service):
            yield from _topology(service, slices.get(key[1:], ()), of(table, Node))
    for service, message in _claimed_twice(services):
        yield service, "AddressConflict", message, "Warning"
    for key, endpoints in of(table, Endpoints).items():
        if Key("Service", *key[1:]) not in services:
            message = f"there is no Service {key.name} in namespace {key.namespace}: nobody uses these endpoints"
            yield endpoints, "NoService", message, "Warning"
    for (namespace, name), found in slices.items():
        owner = services.get(Key("Service", namespace, name))
        for item in found:
            if item.metadata.labels.get(MANAGED, MIRROR) == MIRROR:
                for reason, message in _of_slice(item, name, owner):
                    yield item, reason, message, "Warning"


Slices = Mapping[tuple[str, str], Sequence[EndpointSlice]]


def _by_service(slices: Mapping[Key, EndpointSlice]) -> Slices:
    found: defaultdict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
    for key, item in slices.items():
        found[key.namespace, item.metadata.labels.get(SERVICE_NAME, "")].append(item)
    return found


# --- a Service --------------------------------------------------------------------------------------------------------


def _of_service(service: Service, cluster: Cluster) -> Iterator[tuple[str, str]]:
    spec = service.spec
    for address in spec.externalIPs or ():
        for field, subnet in _ranges(cluster):
            parsed = ip_address(address)
            if parsed.version == subnet.version and parsed in subnet:
                yield "ExternalIPInCluster", f"externalIP {address} is inside {field} {subnet}: {_shadow(field)}"
    for message in ipfamilies.strangers(spec):
        yield "KubeProxyIncorrectIPVersion", message
    for port in spec.ports or ():
        if port.protocol == "SCTP" and cluster.networking.kubeProxyMode != "userspace":
            yield "NotServed", f"port {port.port}/SCTP: {_without_sctp(cluster)}"


def _without_sctp(cluster: Cluster) -> str:
    if LACKS in cluster.metadata.annotations and cluster.networking.kubeProxyMode == "iptables":
        return "this kernel has no sctp match (CONFIG_NETFILTER_XT_MATCH_SCTP): there are no rules for it"
    return "its rules are there, but stand-ins do not speak SCTP: none answers"


def _ranges(cluster: Cluster) -> Iterator[tuple[str, IPv4Network | IPv6Network]]:
    for field in ("podSubnet", "serviceSubnet"):
        for part in getattr(cluster.networking, field).split(","):
            yield field, ip_network(part.strip(), strict=False)


def _shadow(field: str) -> str:
    if field == "podSubnet":
        return "a pod that has it gets none of the Service's ports any more"
    return "a Service whose clusterIP it is shares it with this one"


def _claimed_twice(services: Mapping[Key, Service]) -> Iterator[tuple[Service, str]]:
    """External and load balancer addresses that two Services want on the same port: one of them gets nothing."""
    claimed: dict[tuple[str, str, int], Key] = {}
    for key in sorted(key for key, service in services.items() if _has_outer(service)):
        service = services[key]
        for address in _outer(service):
            for port in service.spec.ports or ():
                first = claimed.setdefault((address, port.protocol, port.port), key)
                if first != key:
                    where = f"{address}:{port.port}/{port.protocol}"
                    yield service, f"{where} belongs to {first} already: only one of the two gets its traffic"


def _has_outer(service: Service) -> bool:
    return bool(service.spec.externalIPs or service.status.loadBalancer.ingress)


def _outer(service: Service) -> Iterator[str]:
    yield from service.spec.externalIPs or ()
    yield from (item.ip for item in service.status.loadBalancer.ingress or () if item.ip)


def _topology(service: Service, slices: Sequence[EndpointSlice], nodes: Mapping[Key, Node]) -> Iterator[Said]:
    endpoints = [endpoint for item in slices for endpoint in item.endpoints or ()]
    why = topology.why_not(endpoints, topology.zones(nodes))
    if why and service.spec.selector:
        yield service, "TopologyAwareHintsDisabled", f"topology-mode Auto has no effect: {why}", "Warning"


# --- a slice ----------------------------------------------------------------------------------------------------------


def _of_slice(item: EndpointSlice, name: str, service: Service | None) -> Iterator[tuple[str, str]]:
    namespace = item.metadata.namespace
    if not name:
        yield "NoService", f"it has no label {SERVICE_NAME}: no Service uses it"
        return
    if service is None:
        yield "NoService", f"there is no Service {name} in namespace {namespace}: nobody uses this slice"
        return
    families = service.spec.ipFamilies or ()
    if item.addressType not in families:
        which = " and ".join(families) or "no family"
        yield (
            "WrongFamily",
            f"its addresses are {item.addressType}, and Service {name} has {which}: kube-proxy ignores it",
        )
        return
    known = {(port.name, port.protocol) for port in service.spec.ports or ()}
    for port in item.ports or ():
        if (port.name or "", port.protocol or "TCP") not in known and known:
            called = f'"{port.name}"' if port.name else "without a name"
            yield (
                "NoSuchPort",
                f"its port {called} {port.protocol or 'TCP'} is none of Service {name}'s ({_listed(service)})",
            )


def _listed(service: Service) -> str:
    return ", ".join(_named(port) for port in service.spec.ports or ())


def _named(port: ServicePort) -> str:
    return f"{port.name or port.port}/{port.protocol}"
