"""What the objects promise to one packet: who may answer it, or that nobody shall. Pure.

The same facts as `expect` has, asked for one source and one address instead of all: for a verdict on a packet that
somebody chose. None where the objects promise nothing (an address that is nobody's). NetworkPolicies do not count here.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Literal

import msgspec

from nsnet import model, names
from nsnet.model import EndpointSlice, Objects, Pod, Service, ServicePort, family_of
from nsnet.trace import Packet
from nsnet.verify import balanced, hostports
from nsnet.verify import world as worlds
from nsnet.verify.world import Backend, Place, World


class Intent(msgspec.Struct, frozen=True):
    """`places` are the labels (`pod/default/web-0`) that may answer, by their namespaces and nodes; `words` say it.

    `service`: by which Service; `seen_as`: the address that the receiver shall see, where it shall see a certain one.
    """

    want: Literal["reach", "refused", "nothing"]
    words: str
    places: frozenset[str] = frozenset()
    netns: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()
    service: str = ""
    seen_as: str = ""


def intended(objects: Objects, netns: str, packet: Packet) -> Intent | None:
    """What shall become of the first packet of a connection that a process in `netns` opens."""
    return model.once(objects, _intended, netns, packet)


def _intended(objects: Objects, netns: str, packet: Packet) -> Intent | None:
    world = worlds.world(_concerned(objects, netns, packet), family_of(packet.dst))
    places = (*world.pods, *world.nodes, *world.hosts)
    source = next((place for place in places if place.netns == netns), None)
    if source is None:
        return None
    service = _asked(world, packet, lambda one: (one.spec.clusterIP, *(one.spec.externalIPs or ())))
    if service is not None:
        return _to_service(world, source, *service)
    outside = _asked(world, packet, model.balanced_addresses)
    if outside is not None:
        return _to_balancer(world, source, *outside)
    node_port = _node_port(world, packet)
    if node_port is not None:
        return _to_node_port(world, source, *node_port)
    guest = hostports.behind(world, objects, source, packet.dst, packet.dport, packet.protocol)
    if guest is not None:
        return _reach((guest,))
    owner = next((place for place in places if place.address == packet.dst), None)
    if owner is None:
        return None
    if source.kind == "host" and owner.kind == "pod":
        return Intent("nothing", f"{_short(owner)} shall be out of reach of {source.label}")
    found = _reach((owner,))
    both = source.kind == owner.kind == "pod" and source != owner
    return msgspec.structs.replace(found, seen_as=_own(source, packet.dst)) if both else found


_MANY = ("Service", "EndpointSlice", "Pod", "Event")


def _concerned(objects: Objects, netns: str, packet: Packet) -> Objects:
    """Of the kinds of which there are thousands those that can count: a world of them is made in no time."""
    services = [one for one in model.of(objects, Service) if _is_asked(one, packet)]
    named = {(one.metadata.namespace, one.metadata.name) for one in services}
    slices = [one for one in model.of(objects, EndpointSlice) if worlds.service_of(one) in named]
    ends = (endpoint.addresses for one in slices for endpoint in one.endpoints or ())
    addresses = {packet.dst, *chain.from_iterable(ends)}
    own = model.cluster_of(objects).metadata.name
    pods = [
        pod
        for pod in model.of(objects, Pod)
        if not addresses.isdisjoint(model.pod_ips(pod))
        or pod.spec.hostNetwork
        or names.pod_netns(own, pod.metadata.namespace, pod.metadata.name) == netns
        or any(port.hostPort for port in model.container_ports(pod))
    ]
    few = {key: obj for key, obj in objects.items() if key.kind not in _MANY}
    return few | model.by_key([*services, *slices, *pods])


def _is_asked(service: Service, packet: Packet) -> bool:
    spec = service.spec
    addresses = (*model.cluster_ips(spec), *(spec.externalIPs or ()), *model.balanced_addresses(service))
    return packet.dst in addresses or any(port.nodePort == packet.dport for port in spec.ports or () if port.nodePort)


def _own(source: Place, other: str) -> str:
    """The source's address of that family; none where the place has only another."""
    return source.address if (":" in source.address) == (":" in other) else ""


def _reach(places: Sequence[Place]) -> Intent:
    labels = [_short(place) for place in places]
    words = " or ".join(labels[:3]) + (f" or {len(labels) - 3} more" if len(labels) > 3 else "")
    return Intent(
        "reach",
        words,
        places=frozenset(labels),
        netns=frozenset(place.netns for place in places),
        nodes=frozenset(place.node for place in places),
    )


def _short(place: Place) -> str:
    return place.label.replace("pod/default/", "pod/")


Asked = tuple[Service, ServicePort]


def _asked(world: World, packet: Packet, addresses: Callable[[Service], Iterable[str]]) -> Asked | None:
    """The Service port that has one of these addresses."""
    return next(
        (
            (service, port)
            for service in world.services
            for port in service.spec.ports or ()
            if (port.port, port.protocol.lower()) == (packet.dport, packet.protocol)
            and packet.dst in addresses(service)
        ),
        None,
    )


def _node_port(world: World, packet: Packet) -> tuple[Service, ServicePort, Place] | None:
    node = next((place for place in world.nodes if place.address == packet.dst), None)
    if node is None or not packet.dport:
        return None
    return next(
        (
            (service, port, node)
            for service in world.services
            for port in service.spec.ports or ()
            if (port.nodePort, port.protocol.lower()) == (packet.dport, packet.protocol)
        ),
        None,
    )


def _to_service(world: World, source: Place, service: Service, port: ServicePort) -> Intent | None:
    if source.kind == "host":
        return Intent("nothing", f"{_title(service)} shall be out of reach of {source.label}")
    node = world.node(source.node)
    if node is None:
        return None
    candidates = worlds.backends(world, service, port)
    local = service.spec.internalTrafficPolicy == "Local"
    found = worlds.for_local(candidates, node) if local else worlds.for_cluster(candidates, node)
    return _of(world, service, candidates, found)


def _to_balancer(world: World, source: Place, service: Service, port: ServicePort) -> Intent:
    """From outside by one of the balancer's nodes; whoever has a node is served by that one, from all endpoints."""
    if not balanced.may_come(service, source):
        return Intent("nothing", f"{_title(service)} takes other sources only")
    candidates, home = worlds.backends(world, service, port), world.node(source.node)
    if home is not None:
        return _of(world, service, candidates, worlds.for_cluster(candidates, home))
    nodes = filter(None, map(world.node, model.balanced_nodes(service)))
    local = service.spec.externalTrafficPolicy == "Local"
    offered = (worlds.for_local(candidates, node) if local else worlds.for_cluster(candidates, node) for node in nodes)
    return _of(world, service, candidates, list(dict.fromkeys(chain.from_iterable(offered))))


def _to_node_port(world: World, source: Place, service: Service, port: ServicePort, node: Place) -> Intent:
    candidates = worlds.backends(world, service, port)
    inside = source.node == node.name or (source.kind == "pod" and not world.cluster.flannel.ipMasq)
    local = service.spec.externalTrafficPolicy == "Local" and not inside
    found = worlds.for_local(candidates, node) if local else worlds.for_cluster(candidates, node)
    return _of(world, service, candidates, found)


def _of(world: World, service: Service, candidates: Sequence[Backend], found: Sequence[Backend]) -> Intent:
    if found:
        owners = {place.address: place for place in (*world.guests, *world.nodes, *world.hosts, *world.pods)}
        known = [owners[backend.address] for backend in found if backend.address in owners]
        reach = _reach(known) if known else Intent("reach", f"an endpoint of {_title(service)}")
        return msgspec.structs.replace(reach, service=_title(service))
    if worlds.usable(candidates):
        return Intent("nothing", f"{_title(service)} has no endpoint that its policy allows here")
    return Intent("refused", f"{_title(service)} has no endpoint")


def _title(service: Service) -> str:
    return f"Service {service.metadata.namespace}/{service.metadata.name}"
