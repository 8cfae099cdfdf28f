"""Who is where, and who may answer for a Service: what expectations are computed from. Pure.

This reads the same facts as `render` (KUBEPROXY.md: traffic policies, readiness, topology hints) and shares no code
with it, on purpose: an oracle that asked the rules' author would find the author right.

A world is of one address family: its places and Services have the addresses of that family and no others, and what has
none is not in it. So all that is expected of IPv4 is expected of IPv6 in the same words.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import NamedTuple

import msgspec

from nsnet import model, names
from nsnet.control import policy
from nsnet.model import (
    API_FAMILIES,
    SERVICE_NAME,
    ZONE,
    Cluster,
    EndpointSlice,
    Family,
    Node,
    Objects,
    Pod,
    Service,
    family_of,
)

NOT_PROXIED = ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where packets start or end. `label` is a TARGET (`pod/default/web-0`, `node/node1`, `host/client`).

    A pod's `name` is `namespace/pod`; a hostNetwork pod's place is its node's namespace and address. `ports` are those
    the pod server opened there; one that runs what its manifest says, or the cluster's DNS (`runs`), answers in its own
    words.
    """

    kind: str
    name: str
    netns: str
    address: str
    node: str = ""
    zone: str = ""
    own: bool = True
    runs: bool = False
    tcp: tuple[int, ...] = ()
    udp: tuple[int, ...] = ()
    every: frozenset[str] = frozenset()  # of a node: all its addresses

    @property
    def label(self) -> str:
        return f"{self.kind}/{self.name}"


class World(msgspec.Struct, frozen=True):
    """`pods` have their own network, `guests` use their node's."""

    cluster: Cluster
    nodes: tuple[Place, ...]
    pods: tuple[Place, ...]
    guests: tuple[Place, ...]
    hosts: tuple[Place, ...]
    services: tuple[Service, ...]
    slices: Mapping[tuple[str, str], tuple[EndpointSlice, ...]]
    plain: bool  # kube-proxy keeps a pod's address on its way to a ClusterIP
    policy: policy.Index
    userspace: bool = False  # kube-proxy's process stands between client and endpoint
    family: Family = "ip"

    def node(self, name: str) -> Place | None:
        return next((place for place in self.nodes if place.name == name), None)


def each(objects: Objects) -> list[World]:
    """One world per family of the cluster, its first family first."""
    return [world(objects, family) for family in model.families_of(model.cluster_of(objects))]


def world(objects: Objects, family: Family = "ip") -> World:
    """The world of objects as `control.complete` left them. Raises InputError where there is no Cluster."""
    cluster = model.cluster_of(objects)
    name = cluster.metadata.name
    nodes = tuple(place for node in model.of(objects, Node) if (place := _node(name, node, family)).address)
    services = tuple(model.of(objects, Service))
    dns = model.dns_service({model.key_of(service): service for service in services}, cluster)
    there = _pods(name, objects, services, {node.name for node in nodes}, dns, family)
    pods = tuple(pod for pod in there if pod.address)
    return World(
        cluster=cluster,
        nodes=nodes,
        pods=tuple(pod for pod in pods if pod.own),
        guests=tuple(pod for pod in pods if not pod.own),
        hosts=tuple(
            Place(kind="host", name=host.name, netns=names.host_netns(name, host.name), address=address)
            for host in cluster.hosts or ()
            if (address := _of_family((host.address, *host.addresses), family))
        ),
        services=tuple(of_family(service, family) for service in services if proxied(service, family))
        if family == "ip" or cluster.networking.kubeProxyMode != "userspace"  # which never had another family
        else (),
        slices=_slices(objects, family),
        plain=_is_plain(objects, cluster.networking.kubeProxyMode),
        policy=policy.index(objects),
        userspace=cluster.networking.kubeProxyMode == "userspace",
        family=family,
    )


def _is_plain(objects: Objects, mode: str) -> bool:
    """Is nothing masqueraded but what kube-proxy's defaults say?"""
    told = model.kube_proxy_of(objects)
    if told is None or mode == "userspace":
        return mode != "userspace"
    section = told.nftables if mode == "nftables" else told.iptables
    return told.detectLocalMode in ("", "ClusterCIDR") and not section.masqueradeAll


def _of_family(addresses: Iterable[str], family: Family) -> str:
    return next((address for address in addresses if address and family_of(address) == family), "")


def _node(cluster: str, node: Node, family: Family) -> Place:
    name = node.metadata.name
    return Place(
        kind="node",
        name=name,
        netns=names.node_netns(cluster, name),
        address=_of_family(model.internal_ips(node), family),
        node=name,
        zone=node.metadata.labels.get(ZONE, ""),
        every=frozenset(_every_address(node)),
    )


def _every_address(node: Node) -> Iterator[str]:
    """Its own, the bridge's (the first of its subnet) and flannel's device's (the subnet's own)."""
    yield from (item.address for item in node.status.addresses if item.type != "Hostname")
    for cidr in filter(None, node.spec.podCIDRs or (node.spec.podCIDR,)):
        yield from (str(ip_network(cidr)[number]) for number in (0, 1))


def _pods(
    cluster: str, objects: Objects, services: Sequence[Service], nodes: set[str], dns: Service | None, family: Family
) -> Iterator[Place]:
    """Pods that stand in the network: placed, with an address, not ended."""
    by_namespace: dict[str, list[Service]] = {}
    for service in services:
        by_namespace.setdefault(service.metadata.namespace, []).append(service)
    for pod in model.of(objects, Pod):
        if pod.spec.nodeName in nodes and pod.status.podIP and pod.status.phase not in model.ENDED:
            yield _pod(cluster, pod, by_namespace.get(pod.metadata.namespace, []), dns, family)


def _pod(cluster: str, pod: Pod, services: list[Service], dns: Service | None, family: Family) -> Place:
    meta, own = pod.metadata, not pod.spec.hostNetwork
    ports = model.served_ports(pod, services)
    return Place(
        kind="pod",
        name=f"{meta.namespace}/{meta.name}",
        netns=names.pod_netns(cluster, meta.namespace, meta.name)
        if own
        else names.node_netns(cluster, pod.spec.nodeName),
        address=_of_family(model.pod_ips(pod), family),
        node=pod.spec.nodeName,
        own=own,
        runs=model.annotation(pod, "nsnet/run") == "true" or model.serves_dns(pod, dns) or model.runs_proxy(pod),
        tcp=tuple(sorted(port for protocol, port in ports if protocol == "TCP")),
        udp=tuple(sorted(port for protocol, port in ports if protocol == "UDP")),
    )


def proxied(service: Service, family: Family = "ip") -> bool:
    """Does kube-proxy do anything for it, in this family?"""
    there = bool(_of_family(model.cluster_ips(service.spec), family))
    return there and not any(label in service.metadata.labels for label in NOT_PROXIED)


def of_family(service: Service, family: Family) -> Service:
    """The Service with the one clusterIP it has of this family."""
    address = _of_family(model.cluster_ips(service.spec), family)
    if address == service.spec.clusterIP:
        return service
    return msgspec.structs.replace(service, spec=msgspec.structs.replace(service.spec, clusterIP=address))


def _slices(objects: Objects, family: Family) -> dict[tuple[str, str], tuple[EndpointSlice, ...]]:
    found: dict[tuple[str, str], list[EndpointSlice]] = {}
    for item in model.of(objects, EndpointSlice):
        labels = item.metadata.labels
        if item.addressType == API_FAMILIES[family] and not any(label in labels for label in NOT_PROXIED):
            found.setdefault(service_of(item), []).append(item)
    return {key: tuple(items) for key, items in found.items()}


def service_of(item: EndpointSlice) -> tuple[str, str]:
    """Namespace and name of the Service whose endpoints these are."""
    return item.metadata.namespace, item.metadata.labels.get(SERVICE_NAME, "")


# --- who may answer ---------------------------------------------------------------------------------------------------


class Backend(NamedTuple):
    """One endpoint of a Service port."""

    address: str
    port: int
    node: str
    ready: bool
    draining: bool  # serving and terminating
    zones: tuple[str, ...]
    nodes: tuple[str, ...]


def backends(world: World, service: Service, port: model.ServicePort) -> list[Backend]:
    """All endpoints of the port, usable or not, one per address and port."""
    found: dict[tuple[str, int], Backend] = {}
    for item in world.slices.get((service.metadata.namespace, service.metadata.name), ()):
        numbers = [
            each.port
            for each in item.ports or ()
            if (each.name or "") == port.name and (each.protocol or "TCP") == port.protocol and each.port
        ]
        for backend in (_backend(endpoint, number) for endpoint in item.endpoints or () for number in numbers):
            known = found.get((backend.address, backend.port))
            if known is None or not known.ready:
                found[backend.address, backend.port] = backend
    return list(found.values())


def _backend(endpoint: model.Endpoint, port: int) -> Backend:
    conditions = endpoint.conditions or model.EndpointConditions()
    hints = endpoint.hints or model.EndpointHints()
    return Backend(
        address=endpoint.addresses[0],
        port=port,
        node=endpoint.nodeName or "",
        ready=conditions.ready is not False,
        draining=conditions.serving is not False and bool(conditions.terminating),
        zones=tuple(zone.name for zone in hints.forZones or ()),
        nodes=tuple(node.name for node in hints.forNodes or ()),
    )


def usable(candidates: Iterable[Backend]) -> list[Backend]:
    """All that are ready; where none is, those that still serve while they terminate."""
    found = list(candidates)
    return [item for item in found if item.ready] or [item for item in found if item.draining]


def for_cluster(candidates: Sequence[Backend], node: Place) -> list[Backend]:
    """Policy Cluster from `node`: usable ones, narrowed by hints if every ready one has them and one is ours."""
    ready = [item for item in candidates if item.ready]
    if ready and all(item.nodes for item in ready) and any(node.name in item.nodes for item in ready):
        return [item for item in ready if node.name in item.nodes]
    if node.zone and ready and all(item.zones for item in ready) and any(node.zone in item.zones for item in ready):
        return [item for item in ready if node.zone in item.zones]
    return usable(candidates)


def for_local(candidates: Sequence[Backend], node: Place) -> list[Backend]:
    """Policy Local as seen from `node`."""
    return usable(item for item in candidates if item.node == node.name)
