"""Objects made ready for many decisions: who has which address, and which pods every policy and peer selects.

Selectors are asked once per pod here, and never again: a truth table asks tens of thousands of times.

Ends of a connection are pods, nodes and the outside. A hostNetwork pod is its node (NETPOL.md rule 21: the API leaves
that open; here, as in most implementations, policies neither select such a pod nor match it as a peer).
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Literal

import msgspec

from nsnet import model
from nsnet.control.policy.spec import DIRECTIONS, Block, Direction, Peer, Policy, Port, Selector, meets, policies
from nsnet.model import ENDED, Namespace, Node, Objects, Pod

NAME = "kubernetes.io/metadata.name"


class End(msgspec.Struct, frozen=True):
    """`name` is `namespace/pod`, a node's or a host's (empty: nobody known); `node` is where it stands, if on one."""

    kind: Literal["pod", "node", "outside"]
    name: str
    address: str
    node: str = ""

    def __str__(self) -> str:
        if self.kind == "outside":
            return f"host/{self.name}" if self.name else self.address
        return f"{self.kind}/{self.name}"


Range = tuple[int, int, int]  # version, first and last address as numbers


class Blocks(msgspec.Struct, frozen=True):
    """An ipBlock as numbers."""

    inside: Range
    outside: tuple[Range, ...] = ()

    def __contains__(self, address: object) -> bool:
        return within(str(address), self.inside) and not any(within(str(address), hole) for hole in self.outside)


class Line(msgspec.Struct, frozen=True):
    """A rule with its peers looked up: for each the pods it matches, or its addresses; None: everybody."""

    policy: str
    number: int
    peers: tuple[frozenset[str] | Blocks, ...] | None
    ports: tuple[Port, ...]


class Closed(msgspec.Struct, frozen=True):
    """What isolates a pod in one direction: the policies that select it, and the lines of them all."""

    policies: tuple[str, ...]
    lines: tuple[Line, ...]


class Index(msgspec.Struct, frozen=True):
    """`named`: pod → (port name, protocol) → numbers. `vteps`: node → its tunnel's addresses."""

    policies: tuple[Policy, ...]
    pods: Mapping[str, End]
    nodes: Mapping[str, End]
    hosts: Mapping[str, End]
    by_address: Mapping[str, End]
    closed: Mapping[tuple[Direction, str], Closed]
    named: Mapping[str, Mapping[tuple[str, str], frozenset[int]]]
    vteps: Mapping[str, tuple[str, ...]]
    networks: Mapping[str, str]
    direct: bool  # nodes of one network reach each other's pods without the tunnel

    def at(self, address: str) -> End:
        """Whose address it is; the outside's where nobody in the cluster has it."""
        return self.by_address.get(address) or End("outside", "", address)


def index(objects: Objects) -> Index:
    """The index of objects as `control.complete` left them. Raises InputError where there is no Cluster."""
    return model.once(objects, _index)


def _index(objects: Objects) -> Index:
    cluster = model.cluster_of(objects)
    nodes = model.of(objects, Node)
    own = [pod for pod in model.of(objects, Pod) if not pod.spec.hostNetwork and pod.status.phase not in ENDED]
    pods = {_name(pod): End("pod", _name(pod), pod.status.podIP, pod.spec.nodeName) for pod in own}
    node_ends = {
        node.metadata.name: End("node", node.metadata.name, model.internal_ip(node), node.metadata.name)
        for node in nodes
    }
    hosts = {host.name: End("outside", host.name, host.address) for host in cluster.hosts or ()}
    found = tuple(policies(objects))
    backend = cluster.flannel.Backend
    return Index(
        policies=found,
        pods=pods,
        nodes=node_ends,
        hosts=hosts,
        by_address=dict(_addresses(own, nodes, hosts)),
        closed=_closed(found, _Chooser(objects, own)) if found else {},
        named={_name(pod): _named(pod) for pod in own},
        vteps={node.metadata.name: tuple(_firsts(node, 0)) for node in nodes if backend.has_device},
        networks={node.metadata.name: model.annotation(node, "nsnet/network") for node in nodes},
        direct=backend.DirectRouting,
    )


def _name(pod: Pod) -> str:
    return f"{pod.metadata.namespace}/{pod.metadata.name}"


def _addresses(pods: list[Pod], nodes: list[Node], hosts: Mapping[str, End]) -> Iterator[tuple[str, End]]:
    """All addresses with their ends. A node's are also its bridge's and its tunnel's, in every range of its pods."""
    for host in hosts.values():
        yield host.address, host
    for node in nodes:
        name = node.metadata.name
        known = [item.address for item in node.status.addresses if item.type != "Hostname"]
        for address in (*known, *_firsts(node, 0), *_firsts(node, 1)):
            yield address, End("node", name, address, name)
    for pod in pods:
        for address in {pod.status.podIP, *(item.ip for item in pod.status.podIPs)} - {""}:
            yield address, End("pod", _name(pod), address, pod.spec.nodeName)


def _firsts(node: Node, offset: int) -> Iterator[str]:
    """The subnet's own address is flannel's VTEP (`flannel.1`), the next the bridge's (`cni0`)."""
    for cidr in node.spec.podCIDRs or ((node.spec.podCIDR,) if node.spec.podCIDR else ()):
        yield str(ip_network(cidr).network_address + offset)


def _named(pod: Pod) -> dict[tuple[str, str], frozenset[int]]:
    found: dict[tuple[str, str], frozenset[int]] = {}
    for port in model.container_ports(pod):
        if port.name:
            key = port.name, port.protocol
            found[key] = found.get(key, frozenset()) | {port.containerPort}
    return found


# --- selectors, once --------------------------------------------------------------------------------------------------


class _Chooser:
    """Answers selectors with the names of pods, each selector once."""

    def __init__(self, objects: Objects, pods: list[Pod]) -> None:
        self.namespaces = {item.metadata.name: item.metadata.labels for item in model.of(objects, Namespace)}
        self.pods: dict[str, list[Pod]] = {}
        for pod in pods:
            self.pods.setdefault(pod.metadata.namespace, []).append(pod)
        self.found: dict[tuple[str, Selector], frozenset[str]] = {}
        self.spaces: dict[Selector, list[str]] = {}

    def of(self, namespace: str, chosen: Selector) -> frozenset[str]:
        """The pods of one namespace."""
        key = namespace, chosen
        if key not in self.found:
            here = self.pods.get(namespace, ())
            self.found[key] = frozenset(_name(pod) for pod in here if meets(pod.metadata.labels, chosen))
        return self.found[key]

    def peer(self, home: str, peer: Peer) -> frozenset[str]:
        """The pods a peer of a policy in namespace `home` means."""
        spaces = [home] if peer.namespaces is None else self.chosen(peer.namespaces)
        return frozenset().union(*(self.of(space, peer.pods or Selector()) for space in spaces))

    def chosen(self, selector: Selector) -> list[str]:
        if selector not in self.spaces:
            spaces = ((name, self.namespaces.get(name, {})) for name in {**self.namespaces, **self.pods})
            self.spaces[selector] = [name for name, labels in spaces if meets({**labels, NAME: name}, selector)]
        return self.spaces[selector]


def _closed(found: tuple[Policy, ...], chooser: _Chooser) -> dict[tuple[Direction, str], Closed]:
    names: dict[tuple[Direction, str], list[str]] = {}
    lines: dict[tuple[Direction, str], list[Line]] = {}
    for policy in found:
        pods = chooser.of(policy.namespace, policy.selector)
        for direction in DIRECTIONS:
            if direction in policy.rules and pods:
                own = list(_lines(policy, direction, chooser))
                for pod in pods:
                    names.setdefault((direction, pod), []).append(str(policy))
                    lines.setdefault((direction, pod), []).extend(own)
    return {key: Closed(tuple(names[key]), tuple(lines[key])) for key in names}


def _lines(policy: Policy, direction: Direction, chooser: _Chooser) -> Iterator[Line]:
    for number, rule in enumerate(policy.rules[direction]):
        peers = tuple(
            chooser.peer(policy.namespace, peer) if peer.block is None else _blocks(peer.block) for peer in rule.peers
        )
        yield Line(str(policy), number, peers or None, rule.ports)


# --- addresses as numbers ---------------------------------------------------------------------------------------------


def _blocks(block: Block) -> Blocks:
    return Blocks(_range(block.cidr), tuple(_range(cidr) for cidr in block.excepts))


def _range(cidr: str) -> Range:
    network = ip_network(cidr)
    return network.version, int(network.network_address), int(network.broadcast_address)


@lru_cache(65536)
def _number(address: str) -> tuple[int, int]:
    found = ip_address(address)
    return found.version, int(found)


def within(address: str, space: Range) -> bool:
    version, number = _number(address)
    return version == space[0] and space[1] <= number <= space[2]
