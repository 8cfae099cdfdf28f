"""What NetworkPolicies make of expectations: what they forbid must be met by silence. Pure.

Policy is asked where packets are filtered: after a Service's translation of the destination, before any masquerade of
the source. Egress is filtered on the pod's own node, ingress on the node of the pod that shall answer; in between a
node may have put its own address in the place of the sender's (facts/NETPOL.md rules 16-18):

    from            by                     the answering pod's node sees
    a pod           a ClusterIP            the pod
    a node          anything               the node; through the tunnel its VTEP
    outside, pods   a node port, Cluster   the sender where that node has the pod itself, else that node
    outside         a node port, Local     the sender

So on the node that translated, the sender is still seen although the pod itself will see that node. Where objects alone
do not say whether kube-proxy masquerades (a KubeProxyConfiguration), both addresses are asked, and where the answers
differ either outcome is right.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from nsnet.control import policy
from nsnet.control.policy import Decision, End, Index, Side
from nsnet.verify.world import Backend, Place, World

Protocol = Literal["TCP", "UDP", "ICMP"]
DIRECT = frozenset({"pod-to-pod", "node-to-pod", "pod-to-node"})


class Way(NamedTuple):
    """How a Service is asked: `entry` is the node that translates; `local`: policy Local.

    `host_port`: not a Service's, but a pod's own port on its node, which no kube-proxy has a hand in.
    """

    source: Place
    entry: Place
    protocol: Protocol
    node_port: int = 0
    local: bool = False
    host_port: bool = False


class Share(NamedTuple):
    """The endpoints that may answer, and whether silence is right as well."""

    allowed: list[Backend]
    partly: bool


def none(world: World) -> bool:
    """Is nobody isolated? Then everything below has no effect."""
    return not world.policy.closed


def end_of(known: Index, place: Place) -> End:
    """A place as policy sees it: a hostNetwork pod is its node."""
    if place.kind == "host":
        return known.hosts[place.name]
    return known.pods[place.name] if place.kind == "pod" and place.own else known.nodes[place.node]


def forbidden(world: World, source: Place, target: Place, protocol: Protocol, port: int) -> bool:
    """Is it closed between two places, without a Service between them?"""
    known = world.policy
    there = end_of(known, target)
    return not policy.allows(
        known, policy.as_source(known, end_of(known, source), there), there, port, protocol
    )  # fmt: skip


def share(world: World, way: Way, found: Sequence[Backend]) -> Share | None:
    """What of the endpoints policy leaves.

    None where nobody knows: userspace mode's process takes a connection first and then tries one endpoint after the
    other, so that its client waits, is answered by another, or is cut off.
    """
    if none(world):
        return Share(list(found), partly=False)
    if unknown(world, way):
        return None
    verdicts = [(backend, {one.allowed for one in decisions(world, way, backend)}) for backend in found]
    allowed = [backend for backend, said in verdicts if True in said]
    partly = any(False in said for _, said in verdicts)
    return None if partly and _by_process(world, way) else Share(allowed, partly)


def unknown(world: World, way: Way) -> bool:
    """Is a pod closed on its way out, and a process of its node, on whatever port, its way to the Service?"""
    return _by_process(world, way) and way.source.kind == "pod" and ("Egress", way.source.name) in world.policy.closed


def shut(world: World, source: Place, pod: Place, protocol: Protocol, port: int, target: int) -> bool:
    """Does policy close a pod's host port `port`, which is `target` of its own, to somebody?"""
    node = world.node(pod.node)
    if none(world) or node is None:
        return False
    way = Way(source, node, protocol, port, local=True, host_port=True)
    backend = Backend(pod.address, target, pod.node, ready=True, draining=False, zones=(), nodes=())
    return not all(one.allowed for one in decisions(world, way, backend))


def leaves(world: World, way: Way, address: str, port: int) -> bool:
    """May the sender send to a Service that has no endpoint? Its address is then not translated, and is what counts."""
    return none(world) or _leaving(world, way, world.policy.at(address), port).allowed


def decisions(world: World, way: Way, backend: Backend) -> Iterator[Decision]:
    """One for every address that the answering pod's node may see; more than one only where objects do not tell."""
    known, there = world.policy, world.policy.at(backend.address)
    left = _leaving(world, way, there, backend.port)
    for seen in _seen(world, way, there):
        came = policy.ingress(known, seen, there, backend.port, way.protocol)
        yield Decision(seen, there, backend.port, way.protocol, left, came)


def _leaving(world: World, way: Way, there: End, port: int) -> Side:
    """Egress of a pod: to the endpoint where its own node translates, else to the other node and its port."""
    known, source = world.policy, end_of(world.policy, way.source)
    if source.node != way.entry.name:
        there, port = known.nodes[way.entry.name], way.node_port
    return policy.egress(known, source, there, port, way.protocol)


def _seen(world: World, way: Way, there: End) -> Iterator[End]:
    """The senders that the node of `there` may see."""
    known = world.policy
    entry = policy.as_source(known, known.nodes[way.entry.name], there)
    came = _came(world, way)
    if _by_process(world, way):
        yield entry
    elif there.node == entry.node:
        yield came  # filtered before it is masqueraded
    elif _is_masqueraded(way, came):
        yield entry
    else:
        yield from (came,) if world.plain else (came, entry)


def _came(world: World, way: Way) -> End:
    """The sender as it comes to the node that translates: flannel hides a pod behind its node on the way to others."""
    source = end_of(world.policy, way.source)
    if source.kind == "pod" and source.node != way.entry.name and world.cluster.flannel.ipMasq:
        return world.policy.nodes[source.node]
    return source


def _is_masqueraded(way: Way, came: End) -> bool:
    if came.kind == "pod":
        return bool(way.node_port) and not way.local
    local_node = came.kind == "node" and came.node == way.entry.name
    return local_node or not way.local or not way.node_port


def _by_process(world: World, way: Way) -> bool:
    return world.userspace and not way.host_port
