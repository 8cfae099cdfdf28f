"""Who must reach a pod by its hostPort, and whom the pod sees then: for `expect`. Pure.

The portmap plugin masquerades what comes from the node's own pods and from 127.0.0.1 (it leaves by the bridge, so the
pod sees the bridge's address) and nothing else: outside clients are seen as they are, pods of other nodes as flannel
sends them. A hostIP serves that address alone.
"""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Literal, NamedTuple

from nsnet import model
from nsnet.model import ContainerPort, Key, Objects
from nsnet.verify.world import Place, World

LOOPBACK = "127.0.0.1"
EVERY = ("", "0.0.0.0")  # noqa: S104 - compared


class Question(NamedTuple):
    """`source` asks `address`:`port`, where `pod` must answer and see `seen` (empty: the sender), or nobody."""

    source: Place
    pod: Place
    protocol: Literal["TCP", "UDP"]
    address: str
    port: int
    seen: str = ""
    closed: bool = False
    target: int = 0  # the pod's own port


def questions(world: World, objects: Objects) -> Iterator[Question]:
    """For each hostPort: every host and node, a pod of the same node and one of another."""
    taken = {(pod.node, port) for pod in world.guests for port in pod.tcp}
    for pod in world.pods:
        for item in _ports(objects, pod):
            node = world.node(pod.node)
            if node is not None and item.protocol in {"TCP", "UDP"} and _listens(pod, item):
                yield from _asked(world, objects, node, pod, item)
                if item.hostIP == LOOPBACK and item.protocol == "TCP" and (node.name, item.hostPort) not in taken:
                    yield from _not_outside(world, objects, node, pod, item)


def behind(world: World, objects: Objects, source: Place, address: str, port: int, protocol: str) -> Place | None:
    """The pod that this hostPort leads `source` to; loopback is the asking node's own."""
    node = world.node(source.name) if address == LOOPBACK and source.kind == "node" else None
    node = node or next((one for one in world.nodes if one.address == address), None)
    if node is None or not port:
        return None
    hosted = ((pod, item) for pod in world.pods if pod.node == node.name for item in _ports(objects, pod))
    same = ((pod, item) for pod, item in hosted if (item.hostPort, item.protocol.lower()) == (port, protocol))
    return next((pod for pod, item in same if item.hostIP in (*EVERY, address)), None)


def _obj(objects: Objects, pod: Place) -> model.Pod:
    namespace, _, name = pod.name.partition("/")
    found = objects[Key("Pod", namespace, name)]
    assert isinstance(found, model.Pod)
    return found


def _ports(objects: Objects, pod: Place) -> Iterator[ContainerPort]:
    return (item for item in model.container_ports(_obj(objects, pod)) if item.hostPort)


def _listens(pod: Place, item: ContainerPort) -> bool:
    """UDP of a program of the manifest's own says what it likes."""
    return item.containerPort in (pod.tcp if item.protocol == "TCP" else () if pod.runs else pod.udp)


def _asked(world: World, objects: Objects, node: Place, pod: Place, item: ContainerPort) -> Iterator[Question]:
    bridge = _bridge(objects, node)
    protocol: Literal["TCP", "UDP"] = "TCP" if item.protocol == "TCP" else "UDP"
    if item.hostIP in (*EVERY, LOOPBACK):
        yield Question(node, pod, protocol, LOOPBACK, item.hostPort or 0, bridge, target=item.containerPort)
    if item.hostIP in (*EVERY, node.address):
        for source in (*world.hosts, *world.nodes, *_some_pods(world, pod)):
            seen = bridge if source.node == node.name and source.kind == "pod" else _as_flannel_sends(world, source)
            yield Question(source, pod, protocol, node.address, item.hostPort or 0, seen, target=item.containerPort)


def _some_pods(world: World, pod: Place) -> Iterator[Place]:
    """The pod itself, and one of another node."""
    yield pod
    yield from [other for other in world.pods if other.node != pod.node][:1]


def _as_flannel_sends(world: World, source: Place) -> str:
    home = world.node(source.node) if source.kind == "pod" else None
    return home.address if home is not None and world.cluster.flannel.ipMasq else ""


def _bridge(objects: Objects, node: Place) -> str:
    found = objects[Key("Node", "", node.name)]
    assert isinstance(found, model.Node)
    return str(ip_network(found.spec.podCIDR)[1]) if ":" not in found.spec.podCIDR else ""


def _not_outside(world: World, objects: Objects, node: Place, pod: Place, item: ContainerPort) -> Iterator[Question]:
    """A hostPort of loopback is shut for all others, unless another pod has that port on the node's own address."""
    others = (other for other in world.pods if other.node == node.name and other != pod)
    same = (each for other in others for each in _ports(objects, other) if each.hostPort == item.hostPort)
    if not any(each.hostIP != LOOPBACK and each.protocol == "TCP" for each in same):
        for host in world.hosts[:1]:
            yield Question(host, pod, "TCP", node.address, item.hostPort or 0, closed=True)
