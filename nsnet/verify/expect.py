"""What must be reachable, and from where it must not be: expectations computed from completed objects. Pure.

Kubernetes' own three rules (pod to pod without NAT, node to pod without NAT, a pod's address is what others see),
localhost inside a pod, and every Service port from every node, from a pod on every node and from outside as its type
allows; every Service's name, and what pods are told of Services in their environment.

Where upstream itself hides an address, the expectation says so: flannel masquerades what pods send to *other* nodes'
addresses (its rule `-s CLUSTER ! -d 224.0.0.0/4`), kube-proxy what nodes send to a ClusterIP and what comes by a
NodePort.

ICMP errors are rationed by the kernel (six at once to one destination, then one a second: net/ipv4/icmp.c), and
kube-proxy's REJECT is such an error. So only so many refusals are asked of one rejecter by one source; the others of a
long list of Services without endpoints are asked by other pods, or not at all.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from nsnet import model
from nsnet.control import environment
from nsnet.errors import InputError
from nsnet.kernel.probe import Learned
from nsnet.model import Objects, Service, ServicePort
from nsnet.state import socket_address
from nsnet.verify import balanced, chance, hostports, http, names, policy, sample, userspace
from nsnet.verify import world as worlds
from nsnet.verify.world import Backend, Place, World

Want = Literal["ok", "refused", "timeout", "unreachable", "closed", "blocked"]
Ask = Literal["identity", "http", "connect", "line", "ping", "dns", "request"]

SENDER = "sender"  # the server must see the very address that the asking socket has
PROTOCOLS: tuple[Literal["UDP"], Literal["TCP"]] = ("UDP", "TCP")
STICKY_CALLS = 15  # upstream's e2e: as many equal answers in a row
FULL_NODES = 4  # up to so many nodes every source asks every node's port, and every node's spread is tested
REFUSALS = {"near": 40, "far": 5}  # what one rejecter is asked by one source on its own node namespace, or elsewhere

LOOPBACK: Mapping[model.Family, str] = {"ip": "127.0.0.1", "ip6": "::1"}

IDENTITY = b"GET /nsnet HTTP/1.1\r\nHost: %s\r\n%sConnection: close\r\n\r\n"
WHOAMI = b"whoami\n"


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence about the network.

    `answers` are the pods (`namespace/pod`) that may answer; empty: anybody. `seen` is the address the one who answers
    must see (SENDER: the asker's own; empty: no matter), except for the answerers in `hidden`. `spread`: the answers of
    all `calls` must look like a fair choice among `answers`; `sticky`: they must be one and the same.
    `seen_as`: any of these addresses will do. `want` unreachable is also met by silence: routers ration their errors;
    `closed` is a connection that is taken and then closed, or reset, without a word.
    `blocked`: a NetworkPolicy forbids it, by silence or by a refusal. `partly`: policies forbid some of those who may
    be chosen, so that either is right. `filler`: so many bytes more are asked with, more than a packet holds.
    """

    group: str
    source: str
    netns: str
    target: str
    protocol: Literal["TCP", "UDP", "ICMP"]
    address: str
    port: int = 0
    want: Want = "ok"
    ask: Ask = "identity"
    answers: frozenset[str] = frozenset()
    seen: str = ""
    seen_as: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()
    calls: int = 1
    spread: bool = False
    sticky: bool = False
    partly: bool = False
    filler: int = 0
    path: str = "/"
    title: str = ""
    learns: tuple[Learned, ...] = ()
    question: names.Question | None = None
    request: http.Request | None = None

    @property
    def name(self) -> str:
        """`pod-to-pod: pod/default/a → pod/default/b TCP 10.244.2.3:80`; the topology's own checks have their own."""
        where = self.address if self.protocol == "ICMP" else socket_address(self.address, self.port)
        return f"{self.group}: {self.title or f'{self.source} → {self.target} {self.protocol} {where}'}"

    @property
    def family(self) -> model.Family:
        """Of the record that is asked for."""
        return self.question.family if self.question else "ip"

    @property
    def payload(self) -> bytes:
        match self.ask:
            case "identity":
                filler = b"X-Filler: %s\r\n" % (b"x" * self.filler) if self.filler else b""
                return WHOAMI if self.protocol == "UDP" else IDENTITY % (_in_url(self.address).encode(), filler)
            case "http":
                return b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (
                    self.path.encode(),
                    self.target.encode(),
                )
            case "line":
                return b"hostname\n"
            case "dns":
                return names.packed(self.target, stream=self.protocol == "TCP", family=self.family)
            case "request":
                return self.request.payload if self.request else b""
        return b""

    def __str__(self) -> str:
        return f"{self.name}: {describe(self)}"


_WANTS = {
    "refused": "refused",
    "timeout": "no answer",
    "unreachable": "out of reach",
    "closed": "the connection is taken and closed",
    "blocked": "blocked by policy",
}


def describe(item: Expectation) -> str:
    """What is expected, in words: `web-0|web-1 answer, spread fairly over 39 calls`."""
    if item.want != "ok":
        return _WANTS[item.want]
    if item.question is not None:
        return str(item.question)
    if item.request is not None:
        return str(item.request)
    who = " or ".join(sorted(item.answers)[:4]) + (f" … ({len(item.answers)})" if len(item.answers) > 4 else "")
    words = f"{who} answers" if who else "an answer"
    if item.seen:
        words += f" and sees {'the sender' if item.seen == SENDER else item.seen}"
    if item.seen_as:
        words += " and sees the node"
    if item.filler:
        words += ", asked in packets of full size"
    if item.spread:
        words += f", all of them, fairly over {item.calls} calls"
    if item.sticky:
        words += f", always the same in {item.calls} calls"
    return f"{words}; no answer where policy forbids the chosen one" if item.partly else words


def expectations(objects: Objects, *, all_pairs: bool = False, seed: int = 0) -> list[Expectation]:
    """Everything that follows from the objects (as `control.complete` left them).

    Above `sample.ALL_PAIRS_UP_TO` pods a sample, the same for the same seed, unless `all_pairs`.
    """
    return [
        item for world in worlds.each(objects) for item in _of_family(world, objects, all_pairs=all_pairs, seed=seed)
    ]


def _of_family(world: World, objects: Objects, *, all_pairs: bool, seed: int) -> list[Expectation]:
    places = {key: place for place in (*world.nodes, *world.pods) for key in (place.netns, place.address)}
    parts = (
        _pods(world, all_pairs, seed),
        _full_size(world),
        _nodes(world, all_pairs),
        _localhost(world),
        _services(world, all_pairs),
        _host_ports(world, objects),
        balanced.expectations(world, Asker(world), _items(world)),
        _names(world, objects, all_pairs),
        _environment(world, objects),
        _outside(world),
        _ingress(world, objects),
    )
    found = [item for part in parts for item in part]
    return found if policy.none(world) else [_permitted(world, places, item) for item in found]


def _permitted(world: World, places: Mapping[str, Place], item: Expectation) -> Expectation:
    """What goes from one place to another without a Service, as NetworkPolicies leave it."""
    if item.group not in policy.DIRECT or item.want != "ok":
        return item
    source, target = places[item.netns], places[item.address]
    if not policy.forbidden(world, source, target, item.protocol, item.port):
        return item
    return _blocked(item)


def _blocked(item: Expectation) -> Expectation:
    return msgspec.structs.replace(item, want="blocked", answers=frozenset(), seen="")


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def only(found: Sequence[Expectation], pattern: str) -> list[Expectation]:
    """Those whose name the regular expression finds. Raises InputError when it is none, or finds nothing."""
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"--only {pattern}: {error}", "it is a Python regular expression, searched in names"
        ) from error
    kept = [item for item in found if wanted.search(item.name)]
    if not kept:
        raise InputError(f"--only {pattern}: no expectation has such a name", "`nsnet verify --list` prints them all")
    return kept


# --- one source, one target -------------------------------------------------------------------------------------------


def _ping(group: str, source: Place, target: Place, learns: tuple[Learned, ...] = ()) -> Expectation:
    return Expectation(
        group=group,
        source=source.label,
        netns=source.netns,
        target=target.label,
        protocol="ICMP",
        address=target.address,
        ask="ping",
        learns=learns,
    )


def _port(
    group: str,
    source: Place,
    target: Place,
    protocol: Literal["TCP", "UDP"],
    port: int,
    seen: str,
    *,
    address: str = "",
    learns: tuple[Learned, ...] = (),
) -> Expectation:
    return Expectation(
        group=group,
        source=source.label,
        netns=source.netns,
        target=target.label,
        protocol=protocol,
        address=address or target.address,
        port=port,
        ask="connect" if target.runs else "identity",
        answers=frozenset() if target.runs else frozenset((target.name,)),
        seen="" if target.runs else seen,
        learns=learns,
    )


def _ports(target: Place, turn: int | None = None) -> Iterator[tuple[Literal["TCP", "UDP"], int]]:
    """The ports to ask: all, or the `turn`-th of each protocol. What a manifest's own process does with UDP is open."""
    for protocol, ports in (("TCP", target.tcp), ("UDP", () if target.runs else target.udp)):
        chosen = ports if turn is None or not ports else (ports[turn % len(ports)],)
        for port in chosen:
            yield ("TCP" if protocol == "TCP" else "UDP"), port


def learned(one: Place, other: Place) -> tuple[Learned, ...]:
    """What two pods on one bridge learn of each other; everybody else's neighbours are permanent entries."""
    if one.own and other.own and one.kind == other.kind == "pod" and one.node == other.node and one != other:
        return Learned(one.netns, other.address), Learned(other.netns, one.address)
    return ()


# --- pods and nodes ---------------------------------------------------------------------------------------------------


def _pods(world: World, everything: bool, seed: int) -> Iterator[Expectation]:
    """Every pair: ICMP, and one port per protocol, in turns."""
    turns: Counter[str] = Counter()
    for source, target in sample.pairs(world.pods, lambda pod: pod.node, everything=everything, seed=seed):
        learns = learned(source, target)
        yield _ping("pod-to-pod", source, target, learns)
        for protocol, port in _ports(target, turns[target.name]):
            yield _port("pod-to-pod", source, target, protocol, port, SENDER, learns=learns)
        turns[target.name] += 1


def _full_size(world: World) -> Iterator[Expectation]:
    """Of every pair of nodes (a node with itself, too) one pair of pods: a small packet says nothing about large ones.

    A request of more than one packet over TCP, as large as both ends believe in. Where that is too much for somebody on
    the way who says so, TCP sends less and it passes; where nobody says so, small packets alone arrive.
    """
    filler = 2 * max((network.mtu for network in world.cluster.underlay.networks), default=1500)
    for source, target in sample.node_pairs([pod for pod in world.pods if pod.tcp], lambda pod: pod.node):
        if not target.runs and not policy.forbidden(world, source, target, "TCP", target.tcp[0]):
            found = _port("full-size", source, target, "TCP", target.tcp[0], SENDER, learns=learned(source, target))
            yield msgspec.structs.replace(found, filler=filler)


def _nodes(world: World, everything: bool) -> Iterator[Expectation]:
    """Nodes and pods, both ways (many pods: the own node and two others), and nodes among themselves."""
    many = not everything and len(world.pods) > sample.ALL_PAIRS_UP_TO
    for index, pod in enumerate(world.pods):
        nodes = [node for node in world.nodes if node.name == pod.node]
        others = [node for node in world.nodes if node.name != pod.node]
        nodes += sample.rotated(others, index, 2) if many else others
        yield from _nodes_to_pod(nodes, pod, index)
        yield from _pod_to_nodes(world, pod, nodes, index)
    for source in world.nodes:
        for target in world.nodes:
            if source != target:
                yield _ping("node-to-node", source, target)
        for guest in world.guests:
            for protocol, port in _ports(guest):
                yield _port("node-to-node", source, guest, protocol, port, SENDER)


def _nodes_to_pod(nodes: Sequence[Place], pod: Place, turn: int) -> Iterator[Expectation]:
    """The pod's own node asks all its ports, so that every port is asked from elsewhere at least once."""
    for node in nodes:
        yield _ping("node-to-pod", node, pod)
        for protocol, port in _ports(pod, None if node.name == pod.node else turn):
            yield _port("node-to-pod", node, pod, protocol, port, SENDER)


def _pod_to_nodes(world: World, pod: Place, nodes: Sequence[Place], turn: int) -> Iterator[Expectation]:
    asked = {node.name for node in nodes}
    for node in nodes:
        yield _ping("pod-to-node", pod, node)
    for guest in world.guests:
        if guest.node in asked:
            for protocol, port in _ports(guest, turn):
                yield _port("pod-to-node", pod, guest, protocol, port, _as_seen_by_node(world, pod, guest.node))


def _as_seen_by_node(world: World, pod: Place, node: str) -> str:
    """A pod's address as a node's own address sees it: flannel masquerades what leaves for other nodes."""
    home = world.node(pod.node)
    if node == pod.node or not world.cluster.flannel.ipMasq or home is None:
        return SENDER
    return home.address


def _localhost(world: World) -> Iterator[Expectation]:
    """Containers of a pod share its loopback; a hostNetwork pod's is its node's."""
    loopback = LOOPBACK[world.family]
    for pod in (*world.pods, *world.guests):
        for protocol, port in _ports(pod):
            yield _port("localhost", pod, pod, protocol, port, loopback, address=loopback)


# --- Services ---------------------------------------------------------------------------------------------------------


class Port(msgspec.Struct, frozen=True):
    """A Service port with its endpoints."""

    service: Service
    port: ServicePort
    protocol: Literal["TCP", "UDP"]
    candidates: tuple[Backend, ...]

    @classmethod
    def of(cls, world: World, service: Service, port: ServicePort) -> "Port":
        candidates = tuple(worlds.backends(world, service, port))
        protocol: Literal["TCP", "UDP"] = "TCP" if port.protocol == "TCP" else "UDP"
        if world.userspace:
            return cls(userspace.plainly(service), port, protocol, userspace.asked(candidates))
        return cls(service, port, protocol, candidates)

    @property
    def label(self) -> str:
        meta = self.service.metadata
        return f"svc/{meta.namespace}/{meta.name}" + (f":{self.port.name}" if self.port.name else "")


class Asker:
    """Makes Service expectations; knows who serves an address, and counts refusals."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.servers: dict[tuple[str, str, int], Place] = {}
        self.owners = {pod.address: pod for pod in world.pods}
        self.on_node: dict[str, list[Place]] = {}
        for pod in world.pods:
            self.on_node.setdefault(pod.node, []).append(pod)
        for pod in (*world.guests, *world.pods):
            for protocol, port in (*(("TCP", port) for port in pod.tcp), *(("UDP", port) for port in pod.udp)):
                self.servers.setdefault((pod.address, protocol, port), pod)

    def ask(
        self,
        source: Place,
        item: Port,
        found: list[Backend],
        address: str,
        port: int,
        *,
        rejecter: Place,
        group: str,
        kept: bool = False,
    ) -> Iterator[Expectation]:
        """What `source` must get from `address`:`port` where `found` are the endpoints that apply to it.

        `kept`: the source's address reaches the endpoint unchanged. Nothing where nobody knows who would answer.
        """
        base = Expectation(
            group=group,
            source=source.label,
            netns=source.netns,
            target=item.label,
            protocol=item.protocol,
            address=address,
            port=port,
        )
        way = self.way(source, item, rejecter, address, port)
        if policy.unknown(self.world, way):
            return
        if not found and not policy.leaves(self.world, way, address, port):
            yield msgspec.structs.replace(base, want="blocked")
            return
        if not found:
            yield from self.without(base, source, rejecter, dropped=bool(worlds.usable(item.candidates)))
            return
        shared = policy.share(self.world, way, found)
        if shared is None:
            return
        if not shared.allowed:
            yield msgspec.structs.replace(base, want="blocked")
            return
        found, base = shared.allowed, msgspec.structs.replace(base, partly=shared.partly)
        servers = [self.servers.get((backend.address, item.protocol, backend.port)) for backend in found]
        known = [server for server in servers if server is not None]
        if not known and not base.partly and all(backend.address in self.owners for backend in found):
            wanted: Want = self.nobody(item.protocol) if self.world.userspace else "refused"
            yield msgspec.structs.replace(base, want=wanted)  # pods, and none of them listens
        if len(known) < len(found) or (item.protocol == "UDP" and any(server.runs for server in known)):
            return
        speaks = not any(server.runs for server in known)
        yield msgspec.structs.replace(
            base,
            ask="identity" if speaks else "connect",
            answers=frozenset(server.name for server in known) if speaks else frozenset(),
            seen=SENDER if kept and speaks else "",
            seen_as=rejecter.every if self.world.userspace and speaks else frozenset(),
            hidden=frozenset(server.name for server in known if not server.own or server == source),
            learns=tuple(entry for server in known for entry in learned(source, server)),
        )

    def way(self, source: Place, item: Port, entry: Place, address: str, port: int) -> policy.Way:
        outer = address != item.service.spec.clusterIP
        local = outer and item.service.spec.externalTrafficPolicy == "Local"
        return policy.Way(source, entry, item.protocol, port if outer else 0, local)

    def nobody(self, protocol: str) -> Want:
        """What a client finds whom the userspace process has nobody for."""
        return "closed" if protocol == "TCP" else "timeout"

    def without(self, base: Expectation, source: Place, rejecter: Place, *, dropped: bool) -> Iterator[Expectation]:
        if self.world.userspace:
            yield msgspec.structs.replace(base, want=self.nobody(base.protocol))
            return
        if dropped:  # endpoints elsewhere, none that this policy allows
            yield msgspec.structs.replace(base, want="timeout")
            return
        near = source.netns == rejecter.netns
        behind = source.node if source.kind == "pod" and source.node != rejecter.name else source.netns
        key = (rejecter.netns, behind)
        if self.refusals[key] < REFUSALS["near" if near else "far"]:
            self.refusals[key] += 1
            yield msgspec.structs.replace(base, want="refused")

    def pod_on(self, node: Place, turn: int, backends: Sequence[Backend] = ()) -> Place | None:
        """A pod of the node, another each turn; one of the endpoints if there is one (it may be sent to itself)."""
        pods = self.on_node.get(node.name, [])
        addresses = {backend.address for backend in backends}
        preferred = [pod for pod in pods if pod.address in addresses] or pods
        return preferred[turn % len(preferred)] if preferred else None


def _services(world: World, everything: bool) -> Iterator[Expectation]:
    asker = Asker(world)
    few = everything or len(world.nodes) <= FULL_NODES
    for turn, item in enumerate(_items(world)):
        yield from _cluster_ip(asker, item, turn)
        yield from _many_calls(asker, item, turn, few)
        if item.port.nodePort:
            yield from _node_port(asker, item, turn, few)


def _items(world: World) -> Iterator[Port]:
    for service in world.services:
        for port in service.spec.ports or ():
            if port.protocol in {"TCP", "UDP"}:
                yield Port.of(world, service, port)


def _internal(item: Port, node: Place) -> list[Backend]:
    """The endpoints that `node`'s rules offer for the ClusterIP."""
    local = item.service.spec.internalTrafficPolicy == "Local"
    return worlds.for_local(item.candidates, node) if local else worlds.for_cluster(item.candidates, node)


def _external(item: Port, node: Place, source: Place, world: World) -> list[Backend]:
    """The endpoints that `node`'s rules offer for its NodePort to `source`.

    externalTrafficPolicy Local binds only those from outside: the node itself and its pods reach all endpoints, as do
    pods of other nodes where flannel does not hide them behind their node.
    """
    if item.service.spec.externalTrafficPolicy != "Local":
        return worlds.for_cluster(item.candidates, node)
    inside = source.node == node.name or (source.kind == "pod" and not world.cluster.flannel.ipMasq)
    return worlds.for_cluster(item.candidates, node) if inside else worlds.for_local(item.candidates, node)


def _cluster_ip(asker: Asker, item: Port, turn: int) -> Iterator[Expectation]:
    """Every node and a pod on every node, one call each."""
    for node in asker.world.nodes:
        for source in (node, asker.pod_on(node, turn)):
            if source is not None:
                yield from asker.ask(
                    source,
                    item,
                    _internal(item, node),
                    item.service.spec.clusterIP,
                    item.port.port,
                    rejecter=node,
                    group="service",
                    kept=source.kind == "pod" and asker.world.plain,
                )


def _many_calls(asker: Asker, item: Port, turn: int, few: bool) -> Iterator[Expectation]:
    """That every endpoint is chosen, fairly (affinity: always the same); asked by an endpoint if the node has one."""
    nodes = list(asker.world.nodes) if few else sample.rotated(asker.world.nodes, turn, 1)
    sticky = item.service.spec.sessionAffinity == "ClientIP"
    for node in nodes:
        found = _internal(item, node)
        source = asker.pod_on(node, turn, found) or node
        address, port = item.service.spec.clusterIP, item.port.port
        if len(found) == 1 and source.address == found[0].address and source.own:
            yield from asker.ask(source, item, found, address, port, rejecter=node, group="hairpin")
        elif len(found) > 1:
            for one in asker.ask(source, item, found, address, port, rejecter=node, group="spread"):
                if one.answers and sticky:
                    yield msgspec.structs.replace(one, group="affinity", calls=STICKY_CALLS, sticky=True)
                elif one.answers:
                    many = chance.calls(len(found) if one.partly else len(one.answers))
                    yield msgspec.structs.replace(one, calls=many, spread=True)


def _node_port(asker: Asker, item: Port, turn: int, few: bool) -> Iterator[Expectation]:
    """From outside by every node; from every node and a pod on every node by all nodes, or by its own and two more."""
    world = asker.world
    pods = [asker.pod_on(node, turn) for node in world.nodes]
    for index, source in enumerate((*world.hosts, *world.nodes, *(pod for pod in pods if pod is not None))):
        targets = list(world.nodes)
        if not few and source.kind != "host":
            targets = [node for node in world.nodes if node.name == source.node]
            targets += [node for node in sample.rotated(world.nodes, turn + index, 2) if node not in targets]
        for node in targets:
            local = item.service.spec.externalTrafficPolicy == "Local"
            yield from asker.ask(
                source,
                item,
                _external(item, node, source, world),
                node.address,
                item.port.nodePort or 0,
                rejecter=node,
                group="outside" if source.kind == "host" else "nodeport",
                kept=local and source.kind == "host" and world.plain,
            )


# --- host ports -------------------------------------------------------------------------------------------------------


def _host_ports(world: World, objects: Objects) -> Iterator[Expectation]:
    if model.families_of(world.cluster)[0] != world.family or world.family != "ip":
        return  # the portmap plugin's rules are IPv4's here
    for one in hostports.questions(world, objects):
        if one.closed:
            yield Expectation(
                group="hostport",
                source=one.source.label,
                netns=one.source.netns,
                target=one.pod.label,
                protocol=one.protocol,
                address=one.address,
                port=one.port,
                want="refused",
                ask="connect",
            )
        else:
            seen = one.seen or SENDER
            item = _port("hostport", one.source, one.pod, one.protocol, one.port, seen, address=one.address)
            shut = policy.shut(world, one.source, one.pod, one.protocol, one.port, one.target)
            yield _blocked(item) if shut else item


# --- names and variables ----------------------------------------------------------------------------------------------


def _names(world: World, objects: Objects, everything: bool) -> Iterator[Expectation]:
    """Every Service's name, from a pod on every node (many nodes: on another one each time), over UDP and TCP."""
    service, pods = names.server(world, objects), names.askers(world)
    if service is None:
        return
    few = everything or len(world.nodes) <= FULL_NODES
    family = model.family_of(service.spec.clusterIP)  # in which they are asked, whatever they are asked about
    asked = world if world.family == family else worlds.world(objects, family)
    askers = {pod.name: pod for pod in asked.pods}
    for turn, question in enumerate(names.questions(world, objects)):
        for source in pods if few else sample.rotated(pods, turn, 1):
            for protocol in PROTOCOLS:
                item = Expectation(
                    group="dns",
                    source=source.label,
                    netns=source.netns,
                    target=question.name,
                    protocol=protocol,
                    address=service.spec.clusterIP,
                    port=53,
                    ask="dns",
                    question=question,
                )
                yield from _asked_of(asked, service, askers[source.name], item)


def _asked_of(world: World, service: Service, source: Place, item: Expectation) -> Iterator[Expectation]:
    """DNS is not special: policies stop a lookup as they stop anything."""
    node = world.node(source.node)
    port = next((each for each in service.spec.ports or () if (each.port, each.protocol) == (53, item.protocol)), None)
    if policy.none(world) or node is None or port is None:
        yield item
        return
    shared = policy.share(
        world, policy.Way(source, node, item.protocol), worlds.usable(worlds.backends(world, service, port))
    )
    if shared is not None:
        silent = not shared.allowed
        yield msgspec.structs.replace(item, want="blocked" if silent else "ok", partly=shared.partly and not silent)


def _environment(world: World, objects: Objects) -> Iterator[Expectation]:
    """What the variables of a pod name answers; one pod for all that started with the same, and Services that stand."""
    asker = Asker(world)
    services = {(item.metadata.namespace, item.metadata.name): item for item in world.services}
    seen: set[tuple[str, str]] = set()
    for pod in world.pods:
        namespace, _, name = pod.name.partition("/")
        obj = objects[model.Key("Pod", namespace, name)]
        assert isinstance(obj, model.Pod)
        started = namespace, model.annotation(obj, environment.STARTED_WITH)
        if started in seen:
            continue
        seen.add(started)
        told = environment.service_variables(objects, obj)
        for known in environment.started_with(objects, obj):
            own = services.get((namespace, known.name))
            service = services.get(environment.MASTER) if own is None and known.name == "kubernetes" else own
            if service is not None:
                yield from _told(asker, pod, service, told)


def _told(asker: Asker, pod: Place, service: Service, told: Mapping[str, str]) -> Iterator[Expectation]:
    """The first port, as the variables have it; nothing where they are older than the Service's address."""
    prefix = service.metadata.name.upper().replace("-", "_")
    address, number = told.get(f"{prefix}_SERVICE_HOST"), told.get(f"{prefix}_SERVICE_PORT")
    port = next(iter(service.spec.ports or ()), None)
    node = asker.world.node(pod.node)
    same = port is not None and (address, number) == (service.spec.clusterIP, str(port.port))
    if port is None or node is None or not same or port.protocol not in PROTOCOLS:
        return
    item = Port.of(asker.world, service, port)
    for one in asker.ask(
        pod, item, _internal(item, node), address or "", port.port, rejecter=node, group="environment"
    ):
        yield msgspec.structs.replace(one, title=f"{one.source} {prefix}_SERVICE_HOST={address} {item.protocol}")


# --- outside ----------------------------------------------------------------------------------------------------------


def _outside(world: World) -> Iterator[Expectation]:
    """Hosts reach nodes, and nothing behind them: there is no route to pods and Services."""
    for host in world.hosts:
        for node in world.nodes:
            yield _ping("outside", host, node)
        for guest in world.guests:
            for protocol, port in _ports(guest):
                yield _port("outside", host, guest, protocol, port, SENDER)
        for pod in world.pods[:3]:
            yield _no_way(host, pod.label, pod.address, (pod.tcp or (80,))[0])
        for service in world.services[:2]:
            yield _no_way(
                host,
                f"svc/{service.metadata.namespace}/{service.metadata.name}",
                service.spec.clusterIP,
                next((port.port for port in service.spec.ports or () if port.protocol == "TCP"), 80),
            )


def _no_way(host: Place, target: str, address: str, port: int) -> Expectation:
    return Expectation(
        group="outside",
        source=host.label,
        netns=host.netns,
        target=target,
        protocol="TCP",
        address=address,
        port=port,
        want="unreachable",
        ask="connect",
    )


# --- HTTP from outside ------------------------------------------------------------------------------------------------


def _ingress(world: World, objects: Objects) -> Iterator[Expectation]:
    """Every host and path that Ingresses and Gateways serve, asked by a host outside."""
    for host in world.hosts[:1]:
        for entrance, request in http.requests(world, objects):
            yield Expectation(
                group="ingress",
                source=host.label,
                netns=host.netns,
                target=request.host,
                protocol="TCP",
                address=entrance.address,
                port=entrance.port,
                ask="request",
                request=request,
                title=f"{host.label} → {request.title} by {entrance.address}:{entrance.port}",
            )
