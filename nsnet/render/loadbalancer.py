"""The balancer outside the cluster: the router between the underlay's networks owns the addresses of load balancers.

    client ── outside ── fabric.router ── nodes ─┬─ node1:30080
              198.51.100.7:80 ↗ DNAT, once per connection └─ node2:30080

Mode nodeport (the default): a connection to an address goes to `InternalIP:nodePort` of a node, whether or not that
node has a pod; kube-proxy there does the rest. The kernel chooses, as kube-proxy's rules let it choose an endpoint:

    nat     PREROUTING, OUTPUT ─→ LB-SERVICES ─address, port, allowed source─→ LB-SVC-… ─one of n─→ DNAT
            POSTROUTING ─→ LB-POSTROUTING: who shares a segment with the node must not be answered past the balancer
    filter  INPUT ─→ LB-INPUT: what was not sent on: refused, or dropped where its source is not in the ranges

The node sees the client's address unless `snat` is on, and answers by its default route, which is this router. A client
in a node's own network gets the router's address whatever `snat` says: the node would answer it directly, and the
client knows nothing of the node. With sessionAffinity ClientIP a hash of the source decides (xt_cluster), so that a
client stays with its node as long as the nodes are the same. Source ranges are kept here: kube-proxy asks them of the
address only, never of node ports.

Mode vip, as MetalLB with BGP: the router has a route to each address by every node (spread by ports, which
fib_multipath_hash_policy asks for), and kube-proxy's rules for the address take over. It needs no node ports. At an
address that no node announces the router refuses.

In both modes a machine whose network an address lies in finds it at the router; any other has its default route. Which
nodes are used stands in the Service's status (`control/loadbalancer.py`).

Sources: facts/LB.md; cloud-provider-kind `pkg/loadbalancer` (what is chosen, checked and refused), MetalLB's concepts.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import product

import msgspec

from nsnet import model, names
from nsnet.model import Objects
from nsnet.render import services
from nsnet.render.underlay import gateway_mac
from nsnet.render.view import View
from nsnet.state import Address, Chain, Neighbour, Route, Value

SEEDS = ("0x00000001", "0xdeadbeef")  # of member and group: any two that never change
MOST_HASHED = 32  # what xt_cluster can tell apart
REFUSE = {"tcp": "tcp-reset"}
UNREACHABLE = "icmp-port-unreachable"


class Backend(msgspec.Struct, frozen=True):
    """A node that connections go to; `dev` is the router's leg in its network."""

    node: str
    ip: str
    dev: str


class Front(msgspec.Struct, frozen=True):
    """One port at one address of the balancer; `ranges` empty: everybody may come."""

    name: str  # ns/name:port
    protocol: str
    address: str
    port: int
    node_port: int
    ranges: tuple[str, ...]
    sticky: bool
    backends: tuple[Backend, ...]

    @property
    def chain(self) -> str:
        return f"LB-SVC-{names.kube_chain('SVC', self.name, self.protocol).rpartition('-')[2]}"

    @property
    def targets(self) -> tuple[str, ...]:
        """Where its connections go, as `ip:port`; nowhere without a node port."""
        return tuple(f"{item.ip}:{self.node_port}" for item in self.backends) if self.node_port else ()


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    found = fronts(view.objects)
    if not found:
        return
    config = view.cluster.loadBalancer
    routes = _routes(found) if config.mode == "vip" else ()
    routed = {route.dst.partition("/")[0] for route in routes}
    own = [front for front in found if front.address not in routed]
    yield view.router, (*routes, *_addresses(own), *_chains(own, _segments(view), snat=config.snat))
    for address in sorted({front.address for front in found}):
        yield from _neighbours(view, address)


def fronts(objects: Objects) -> list[Front]:
    """Every port at every address, by Service, port name and protocol."""
    found = services.chosen(objects, is_balanced)
    if not found:
        return []
    nodes = {node.metadata.name: _backend(node) for node in model.of(objects, model.Node)}
    return [
        _front(port.info, address, tuple(nodes[name] for name in model.balanced_nodes(joined.service) if name in nodes))
        for joined in found
        for port, address in product(services.ports(joined), model.balanced_addresses(joined.service))
    ]


def is_balanced(service: model.Service) -> bool:
    """Does the balancer answer for an address of it?"""
    return bool(model.balanced_addresses(service))


def _backend(node: model.Node) -> Backend:
    return Backend(node.metadata.name, model.internal_ip(node), names.device(model.annotation(node, "nsnet/network")))


def _front(info: services.ServicePortInfo, address: str, backends: tuple[Backend, ...]) -> Front:
    return Front(
        name=info.name,
        protocol=info.protocol,
        address=services.normal(address),
        port=info.port,
        node_port=info.node_port,
        ranges=info.source_ranges,
        sticky=bool(info.affinity_seconds),
        backends=backends,
    )


# --- where the addresses are ------------------------------------------------------------------------------------------


def _addresses(own: Iterable[Front]) -> Iterator[Address]:
    """On `lo`: the router answers ARP for them on every leg."""
    return (Address("lo", f"{address}/32") for address in sorted({front.address for front in own}))


def _neighbours(view: View, address: str) -> Iterator[tuple[str, Iterable[Value]]]:
    """Who is on the address's segment finds it at the router; known neighbours are permanent entries."""
    for machine in view.machines:
        if machine.network.has(address):
            yield machine.netns, (Neighbour("eth0", address, gateway_mac(machine.network)),)


def _segments(view: View) -> tuple[str, ...]:
    """The networks in which nodes are."""
    legs = (leg for node in view.nodes for leg in node.machine.network.legs)
    return tuple(dict.fromkeys(leg.subnet for leg in legs if leg.family == "ip"))


def _routes(found: Iterable[Front]) -> tuple[Route, ...]:
    """Mode vip: a route to each address that some node takes; several next hops make it ECMP."""
    hops = {front.address: front.backends for front in found}
    return tuple(_route(address, backends) for address, backends in sorted(hops.items()) if backends)


def _route(address: str, backends: tuple[Backend, ...]) -> Route:
    if len(backends) == 1:
        return Route(f"{address}/32", backends[0].dev, via=backends[0].ip, proto="bgp")
    return Route(f"{address}/32", proto="bgp", nexthops=tuple((item.ip, item.dev) for item in backends))


# --- chains -----------------------------------------------------------------------------------------------------------


def _chains(own: list[Front], segments: tuple[str, ...], *, snat: bool) -> Iterator[Chain]:
    if not own:
        return
    comment = '-m comment --comment "load balancer'
    new = f'-m conntrack --ctstate NEW {comment}: what was not sent on" -j LB-INPUT'
    yield Chain("filter", "INPUT", (new,), policy="ACCEPT")
    yield Chain("filter", "LB-INPUT", tuple(_refusals(own)))
    sent = {front.chain: front for front in own if front.targets}
    if not sent:
        return
    for hook in ("PREROUTING", "OUTPUT"):
        yield Chain("nat", hook, (f'{comment} addresses" -j LB-SERVICES',), policy="ACCEPT")
    yield Chain("nat", "POSTROUTING", (f'{comment}: whose source changes" -j LB-POSTROUTING',), policy="ACCEPT")
    yield Chain("nat", "LB-SERVICES", tuple(rule for front in own if front.targets for rule in _entries(front)))
    yield Chain("nat", "LB-POSTROUTING", tuple(_sources(segments, snat=snat)))
    yield from (Chain("nat", name, tuple(_choice(front))) for name, front in sent.items())


def _to(front: Front, comment: str, target: str, source: str = "") -> str:
    """A rule for what comes to the front."""
    head = f"-s {source} " if source else ""
    port = f"-m {front.protocol} --dport {front.port}"
    return f'{head}-d {front.address}/32 -p {front.protocol} -m comment --comment "{comment}" {port} -j {target}'


def _entries(front: Front) -> Iterator[str]:
    for source in front.ranges or ("",):
        yield _to(front, f"{front.name} at the load balancer", front.chain, source)


def _choice(front: Front) -> Iterator[str]:
    """One node per connection. Rule i of n takes 1/(n-i) of what reaches it; or the client's hash says which."""
    shares = _hashed(len(front.targets)) if front.sticky else _random(len(front.targets))
    for backend, target, share in zip(front.backends, front.targets, shares, strict=True):
        comment = f'-m comment --comment "{front.name} -> {backend.node}"'
        yield f"-p {front.protocol} {comment} {share}-j DNAT --to-destination {target}"


def _random(count: int) -> Iterator[str]:
    for left in range(count, 0, -1):
        yield f"{services.statistic(left)} ".lstrip()


def _hashed(count: int) -> Iterator[str]:
    """xt_cluster knows 32 parts at most: with more nodes one hash says the group, and another which of the group."""
    groups = -(-count // MOST_HASHED)
    sizes = [count // groups + (number < count % groups) for number in range(groups)]
    for group, size in enumerate(sizes):
        for member in range(size):
            yield _part(group, groups, SEEDS[1]) + _part(member, size, SEEDS[0])


def _part(number: int, total: int, seed: str) -> str:
    if total == 1:
        return ""
    mask = f"--cluster-local-nodemask {1 << number:#010x}"
    return f"-m cluster {mask} --cluster-total-nodes {total} --cluster-hash-seed {seed} "


def _sources(segments: tuple[str, ...], *, snat: bool) -> Iterator[str]:
    sent, target = "-m conntrack --ctstate DNAT", "-j MASQUERADE --random-fully"
    if snat:
        yield f'-m comment --comment "load balancer: snat is on" {sent} {target}'
        return
    for segment in segments:
        why = "load balancer: on one segment with the node, which would answer past it"
        yield f'-s {segment} -d {segment} -m comment --comment "{why}" {sent} {target}'
    own = '-m comment --comment "load balancer: its own connections" -m addrtype --src-type LOCAL'
    yield f"{own} {sent} {target}"


def _refusals(own: list[Front]) -> Iterator[str]:
    """What reaches the router itself was not sent on. Who is not in the ranges hears nothing; all else is refused."""
    by_address: defaultdict[str, list[Front]] = defaultdict(list)
    for front in own:
        by_address[front.address].append(front)
    for address, found in sorted(by_address.items()):
        for front in found:
            yield from _missing(front)
        for protocol in ("tcp", "udp"):
            words = f'-m comment --comment "no Service has this port here" -j {_reject(protocol)}'
            yield f"-d {address}/32 -p {protocol} {words}"


def _missing(front: Front) -> Iterator[str]:
    if not front.targets:
        why = "no node to send to" if front.node_port or not front.backends else "no node port"
        for source in front.ranges or ("",):
            yield _to(front, f"{front.name} has {why}", _reject(front.protocol), source)
    if front.ranges:
        yield _to(front, f"{front.name} takes other sources only", "DROP")


def _reject(protocol: str) -> str:
    return f"REJECT --reject-with {REFUSE.get(protocol, UNREACHABLE)}"
