"""May this connection be made, and because of which policies and rules? Pure; facts/NETPOL.md, rules 1-21.

A connection has two sides that must both agree (rule 14): egress of its source and ingress of its destination. A side
without a pod of its own (a node, the outside) is not policy's business; a pod's is open until a policy selects it for
that direction (rule 1), and then allows what any rule of any policy that selects it allows (rule 5).

The destination is what stands there after the Service's translation (rule 17), the source is the address that arrives
(rule 18). Replies are not asked about (rule 15). ICMP has no ports: it passes by rules that name none.

This is the oracle that the data plane (`render/policy.py`) is tested against, so the two share no code.
"""

from collections.abc import Iterator
from ipaddress import ip_address

import msgspec

from nsnet.control.policy.index import Blocks, Closed, End, Index, Line, index
from nsnet.control.policy.spec import Direction, Port
from nsnet.errors import InputError
from nsnet.model import Objects

ITSELF = "a pod always reaches itself"
OWN_NODE = "a pod's own node always reaches it"


class Clause(msgspec.Struct, frozen=True):
    """A rule that allows: `policy` is `namespace/name`; peer and port are the items that matched, None: no list."""

    policy: str
    direction: Direction
    rule: int
    peer: int | None = None
    port: int | None = None

    def __str__(self) -> str:
        """`shop/db ingress[0].from[1].ports[0]`: the way to it in the document."""
        items = [f"{'from' if self.direction == 'Ingress' else 'to'}[{self.peer}]"] if self.peer is not None else []
        items += [f"ports[{self.port}]"] if self.port is not None else []
        return f"{self.policy} {self.direction.lower()}[{self.rule}]" + (f" ({', '.join(items)})" if items else "")


class Side(msgspec.Struct, frozen=True):
    """One end's direction. `pod` is empty where it has no policy at all; `always` says why nothing is asked.

    `selecting` are the policies that isolate the pod, `allowing` the rules of theirs that let this pass.
    """

    direction: Direction
    pod: str = ""
    selecting: tuple[str, ...] = ()
    allowing: tuple[Clause, ...] = ()
    always: str = ""

    @property
    def allowed(self) -> bool:
        return bool(self.always or not self.selecting or self.allowing)


class Decision(msgspec.Struct, frozen=True):
    source: End
    destination: End
    port: int
    protocol: str
    egress: Side
    ingress: Side

    @property
    def allowed(self) -> bool:
        return self.egress.allowed and self.ingress.allowed

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.egress, self.ingress


def decide(objects: Objects, source: str, destination: str, port: int, protocol: str = "TCP") -> Decision:
    """The decision for ends in words: `pod/shop/web`, `node/node1`, `host/client`, or an address.

    `port` is the destination's own, after Services. Raises InputError for an end that is not there. Who asks often
    makes the `index` once and calls `decided`.
    """
    known = index(objects)
    there, start = end(known, destination), end(known, source)
    if source.startswith("node/"):
        start = as_source(known, start, there)
    return decided(known, start, there, port, protocol)


def end(known: Index, text: str) -> End:
    """What the words mean. A hostNetwork pod is asked for by its node. Raises InputError."""
    kind, _, name = text.partition("/")
    tables = {"pod": known.pods, "node": known.nodes, "host": known.hosts}
    found = tables.get(kind, {}).get(name)
    if found is not None:
        return found
    try:
        return known.at(str(ip_address(text)))
    except ValueError:
        raise InputError(
            f"{text}: there is no such end of a connection", "pod/NAMESPACE/NAME, node/NAME, host/NAME or an address"
        ) from None


def as_source(known: Index, source: End, destination: End) -> End:
    """A node with the address that it has on its way to a pod: the tunnel's where flannel takes the tunnel."""
    if source.kind != "node" or destination.kind != "pod" or source.node == destination.node:
        return source
    near = known.direct and known.networks.get(source.node) == known.networks.get(destination.node)
    version = ip_address(destination.address).version if destination.address else 4
    tunnel = [item for item in known.vteps.get(source.node, ()) if ip_address(item).version == version]
    return source if near or not tunnel else msgspec.structs.replace(source, address=tunnel[0])


def decided(known: Index, source: End, destination: End, port: int, protocol: str) -> Decision:
    """The whole decision, with its reasons. `protocol` TCP, UDP, SCTP or ICMP (whose port is 0)."""
    return Decision(
        source,
        destination,
        port,
        protocol,
        egress(known, source, destination, port, protocol),
        ingress(known, source, destination, port, protocol),
    )


def allows(known: Index, source: End, destination: End, port: int, protocol: str) -> bool:
    """The same without reasons: what a truth table asks."""
    asked = destination, port, protocol
    return _passes(known, "Egress", source, destination, *asked) and _passes(
        known, "Ingress", destination, source, *asked
    )


def egress(known: Index, source: End, destination: End, port: int, protocol: str) -> Side:
    return _side(known, "Egress", source, destination, destination, port, protocol)


def ingress(known: Index, source: End, destination: End, port: int, protocol: str) -> Side:
    return _side(known, "Ingress", destination, source, destination, port, protocol)


def _side(known: Index, direction: Direction, own: End, other: End, to: End, port: int, protocol: str) -> Side:
    if own.kind != "pod":
        return Side(direction)
    always = _always(direction, own, other)
    closed = known.closed.get((direction, own.name))
    if always or closed is None:
        return Side(direction, own.name, closed.policies if closed else (), always=always)
    clauses = tuple(_clauses(known, direction, closed, other, to, port, protocol))
    return Side(direction, own.name, closed.policies, clauses)


def _passes(known: Index, direction: Direction, own: End, other: End, to: End, port: int, protocol: str) -> bool:
    closed = known.closed.get((direction, own.name)) if own.kind == "pod" else None
    if closed is None or _always(direction, own, other):
        return True
    return any(True for _ in _clauses(known, direction, closed, other, to, port, protocol))


def _always(direction: Direction, own: End, other: End) -> str:
    """Rule 16."""
    if other.kind == "pod" and other.name == own.name:
        return ITSELF
    if direction == "Ingress" and other.kind == "node" and other.node == own.node:
        return OWN_NODE
    return ""


def _clauses(
    known: Index, direction: Direction, closed: Closed, other: End, to: End, port: int, protocol: str
) -> Iterator[Clause]:
    """The rules that allow it, each with the first of its peers and of its ports that match."""
    for line in closed.lines:
        peer = _peer(line, other)
        if peer is None:
            continue
        item = _port(known, line.ports, to, port, protocol)
        if item is not None:
            yield Clause(
                line.policy,
                direction,
                line.number,
                peer if line.peers else None,
                item if line.ports else None,
            )


def _peer(line: Line, other: End) -> int | None:
    """The number of the peer that matches; 0 where there is no list."""
    if line.peers is None:
        return 0
    for number, peer in enumerate(line.peers):
        if isinstance(peer, Blocks):
            if other.address and other.address in peer:
                return number
        elif other.kind == "pod" and other.name in peer:
            return number
    return None


def _port(known: Index, ports: tuple[Port, ...], to: End, port: int, protocol: str) -> int | None:
    """The number of the port that matches; 0 where there is no list. Names are the destination pod's (rule 12)."""
    if not ports:
        return 0
    for number, item in enumerate(ports):
        if item.protocol == protocol and _is_port(known, item, to, port):
            return number
    return None


def _is_port(known: Index, item: Port, to: End, port: int) -> bool:
    if item.port is None:
        return True
    if isinstance(item.port, int):
        return item.port <= port <= (item.last or item.port)
    return to.kind == "pod" and port in known.named.get(to.name, {}).get((item.port, item.protocol), ())
