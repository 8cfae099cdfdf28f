"""What must be reachable through the balancer outside, and what must not: expectations of load balancers. Pure.

A host asks each address: pods of the nodes that the Service's status names may answer, all of them, fairly where their
shares are equal; who is not in the source ranges hears nothing; where there is no node or endpoint it is refused at
once. Under externalTrafficPolicy Local the client's own address arrives, unless it is on a segment with the nodes. A
node or pod that asks is served by its own node's rules, from all endpoints, as if it had used the clusterIP.

This reads the same facts as `render/loadbalancer.py` (facts/LB.md) and shares no code with it, on purpose.
"""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import msgspec

from nsnet import model
from nsnet.verify import chance
from nsnet.verify import world as worlds
from nsnet.verify.world import Backend, Place, World

if TYPE_CHECKING:
    from nsnet.verify.expect import Asker, Expectation, Port

GROUP = "loadbalancer"


def expectations(world: World, asker: "Asker", items: Iterator["Port"]) -> Iterator["Expectation"]:
    """For every port at every address of the balancer."""
    for turn, item in enumerate(items):
        for address in model.balanced_addresses(item.service):
            for host in world.hosts:
                yield from _from_outside(world, asker, item, address, host)
            if _is_vip(item, address):
                yield from _from_inside(world, asker, item, address, turn)


def _is_vip(item: "Port", address: str) -> bool:
    """Do nodes answer for the address themselves? Those of ipMode Proxy they leave to the balancer."""
    ingress = item.service.status.loadBalancer.ingress or ()
    return any(entry.ip == address and entry.ipMode in (None, "VIP") for entry in ingress)


def _from_outside(world: World, asker: "Asker", item: "Port", address: str, host: Place) -> Iterator["Expectation"]:
    config, spec = world.cluster.loadBalancer, item.service.spec
    local = spec.externalTrafficPolicy == "Local"
    nodes = [node for name in model.balanced_nodes(item.service) if (node := world.node(name)) is not None]
    shares = [_offered(item, node, local=local) for node in nodes]
    found = list(dict.fromkeys(backend for share in shares for backend in share))
    beside = config.mode == "nodeport" and (config.snat or _network(world, host) in {_network(world, n) for n in nodes})
    asked = asker.ask(
        host,
        item,
        found,
        address,
        item.port.port,
        rejecter=nodes[0] if nodes else host,
        group=GROUP,
        kept=local and world.plain and not beside,
    )
    for found_here in asked:
        one = _seen_by_any(found_here, nodes)
        if not _may_come(item, host) and not (world.userspace and config.mode == "vip" and nodes):
            yield msgspec.structs.replace(one, want="timeout")
        elif not nodes or (config.mode == "nodeport" and not item.port.nodePort):
            yield msgspec.structs.replace(one, want="refused", answers=frozenset(), seen="", seen_as=frozenset())
        else:
            yield _often(one, item, shares, routed=config.mode == "vip")


def _seen_by_any(one: "Expectation", nodes: list[Place]) -> "Expectation":
    """Userspace mode shows a node's address: here that of whichever was chosen."""
    every = frozenset(address for node in nodes for address in node.every)
    return msgspec.structs.replace(one, seen_as=every) if one.seen_as else one


def _often(one: "Expectation", item: "Port", shares: list[list[Backend]], *, routed: bool) -> "Expectation":
    """As many calls as it takes to see every pod, where all shares are equal; with affinity, the same one each time."""
    if len(one.answers) < 2 or one.partly or one.want != "ok":
        return one
    if item.service.spec.sessionAffinity == "ClientIP":
        return one if routed else msgspec.structs.replace(one, calls=15, sticky=True)
    everywhere = all(set(share) == set(shares[0]) for share in shares)
    even = len({len(share) for share in shares}) == 1 and sum(map(len, shares)) == len(one.answers)
    if not everywhere and not even:
        return one
    return msgspec.structs.replace(one, calls=chance.calls(len(one.answers)), spread=True)


def _from_inside(world: World, asker: "Asker", item: "Port", address: str, turn: int) -> Iterator["Expectation"]:
    local = item.service.spec.externalTrafficPolicy == "Local"
    for node in world.nodes:
        for source in (node, asker.pod_on(node, turn)):
            if source is None:
                continue
            found = worlds.for_cluster(item.candidates, node)
            kept = local and source.kind == "pod" and world.plain
            for one in asker.ask(source, item, found, address, item.port.port, rejecter=node, group=GROUP, kept=kept):
                allowed = world.userspace or _may_come(item, source) or _is_refused_first(world, one, source)
                yield one if allowed else msgspec.structs.replace(one, want="timeout")


def _is_refused_first(world: World, one: "Expectation", source: Place) -> bool:
    """In iptables mode no endpoint counts before the ranges do, but for the node itself, whose packet leaves it."""
    iptables = world.cluster.networking.kubeProxyMode == "iptables"
    return iptables and one.want == "refused" and not one.answers and source.kind == "pod"


def _offered(item: "Port", node: Place, *, local: bool) -> list[Backend]:
    return worlds.for_local(item.candidates, node) if local else worlds.for_cluster(item.candidates, node)


def _may_come(item: "Port", source: Place) -> bool:
    """Is its address in the Service's source ranges? One of length 0 lets everybody in."""
    ranges = [ip_network(text.strip(), strict=False) for text in item.service.spec.loadBalancerSourceRanges or ()]
    four = [network for network in ranges if network.version == 4]
    if not four or any(not network.prefixlen for network in four):
        return True
    return any(ip_address(source.address) in network for network in four)


def _network(world: World, place: Place) -> str:
    nodes = world.cluster.nodes if isinstance(world.cluster.nodes, tuple) else ()
    entries = nodes if place.kind == "node" else world.cluster.hosts or ()
    return next((entry.network for entry in entries if entry.name == place.name), "")
