"""NetworkPolicy → what a node must let through: said once, pure, in no packet filter's spelling.

`networking.k8s.io/v1` (facts/NETPOL.md, rules 1-21). Isolation is per pod and direction: a pod that a policy selects is
`Isolated`, and what reaches it (or leaves it) is the union of what its policies let pass. A policy in one direction is
a `Side`, each of its rules one or more `Pass`es: peers *and* ports, as one line of a packet filter can ask them.

    who is asked          pods by address: those with a network of their own. A hostNetwork pod is a node address: no
                          policy selects it and no selector matches it (rule 21)
    always let through    replies, a pod to itself, the pod's own node (rules 15, 16): the spellings say how
    after DNAT            both spellings look in `forward` (and `input`), where a service has become a pod (rule 17),
                          and before masquerading: a client that comes in by a node port of the pod's own node is seen
                          with its own address; by another node with that node's (rule 18)
    named ports           pairs of address and number: on ingress of the pods the policy selects, on egress of the pods
                          that its peers are, and never of anything else (rule 12)

A node gets the sides of those policies that select a pod of its own, and nothing where none does.

ipBlocks are kept as disjoint ranges, the exceptions taken out of each block before blocks are united (rule 11): neither
ipset nor nftables then has to know of exceptions. Ports of protocols that no packet can be of stay, and match nothing.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal, NamedTuple

import msgspec

from nsnet import model
from nsnet.model import Family, LabelSelector, Objects
from nsnet.render import ranges
from nsnet.render.labels import Index
from nsnet.render.view import MEMO, has_network

Direction = Literal["ingress", "egress"]
DIRECTIONS: tuple[Direction, ...] = ("ingress", "egress")
ALL_PORTS = (0, 65535)


class Ports(msgspec.Struct, frozen=True, cache_hash=True):
    """Ports of one protocol (`tcp`), from `first` to `last`."""

    protocol: str
    first: int
    last: int


class Pass(msgspec.Struct, frozen=True, cache_hash=True):
    """What rule number `rule` lets pass. A packet has to meet all that is said: each None says nothing.

    `pods` and `blocks` are the peers (never both), `ports` the destination's, `targets` destinations as `ip,tcp:80`.
    `text` is the rule as it was written, which names its sets.
    """

    rule: int
    text: str
    pods: frozenset[str] | None = None
    blocks: tuple[tuple[str, str], ...] | None = None
    ports: tuple[Ports, ...] | None = None
    targets: frozenset[str] | None = None


class Side(msgspec.Struct, frozen=True, cache_hash=True):
    """A policy (`ns/name`) in one direction, for the addresses of one family."""

    policy: str
    direction: Direction
    passes: tuple[Pass, ...]
    family: Family = "ip"


class Isolated(msgspec.Struct, frozen=True, cache_hash=True):
    """A pod (`ns/name`) in a direction in which policies select it: those, by name."""

    pod: str
    ip: str
    direction: Direction
    policies: tuple[str, ...]


class Guard(msgspec.Struct, frozen=True, cache_hash=True):
    """What a node guards: its isolated pods, and the sides of their policies."""

    isolated: tuple[Isolated, ...]
    sides: tuple[Side, ...]


# --- the documents ----------------------------------------------------------------------------------------------------


class _IPBlock(msgspec.Struct, frozen=True):
    cidr: str
    exceptions: tuple[str, ...] | None = msgspec.field(name="except", default=None)


class _Peer(msgspec.Struct, frozen=True):
    podSelector: LabelSelector | None = None
    namespaceSelector: LabelSelector | None = None
    ipBlock: _IPBlock | None = None


class _Port(msgspec.Struct, frozen=True):
    protocol: str | None = None
    port: int | str | None = None
    endPort: int | None = None


class _Spec(msgspec.Struct, frozen=True):
    """A policy's spec; its rules stay documents, for their text is what names a set."""

    podSelector: LabelSelector | None = None
    policyTypes: tuple[str, ...] | None = None
    ingress: tuple[dict[str, Any] | None, ...] | None = None
    egress: tuple[dict[str, Any] | None, ...] | None = None

    def isolates(self, direction: Direction) -> bool:
        """Rule 3: without policyTypes always ingress, and egress where there is a rule for it."""
        if not self.policyTypes:
            return direction == "ingress" or bool(self.egress)
        return direction.capitalize() in self.policyTypes


_PEERS: Mapping[Direction, str] = {"ingress": "from", "egress": "to"}


# --- compiling --------------------------------------------------------------------------------------------------------


class _Pod(NamedTuple):
    name: str
    namespace: str
    node: str
    ip: str
    ports: tuple[tuple[str, str, int], ...]  # (name, protocol, number)


def guards(objects: Objects, family: Family = "ip") -> dict[str, Guard]:
    """Node → what it guards; without a policy that selects a pod there is none."""
    policies = [obj for key, obj in sorted(objects.items()) if key.kind == "NetworkPolicy"]
    return _World(objects, family).guards(policies) if policies else {}


class _World:
    """The pods and namespaces that selectors are asked of: pods by address, of one family."""

    def __init__(self, objects: Objects, family: Family) -> None:
        self.family: Family = family
        self.pods: dict[str, _Pod] = {}
        labels: dict[str, Mapping[str, str]] = {}
        within: defaultdict[str, set[str]] = defaultdict(set)
        for pod in model.of(objects, model.Pod):
            ip = _address(pod, family) if has_network(pod) and not pod.spec.hostNetwork else ""
            if ip:
                self.pods[ip] = _pod(pod, ip)
                labels[ip] = pod.metadata.labels
                within[pod.metadata.namespace].add(ip)
        self.index = Index(labels)
        self.within = {name: frozenset(ips) for name, ips in within.items()}
        self.namespaces = Index({one.metadata.name: _named(one) for one in model.of(objects, model.Namespace)})

    def guards(self, policies: Iterable[model.Object]) -> dict[str, Guard]:
        sides: dict[tuple[str, Direction], Side] = {}
        selecting: defaultdict[tuple[str, Direction], list[str]] = defaultdict(list)
        for policy in policies:
            name = f"{policy.metadata.namespace}/{policy.metadata.name}"
            spec = msgspec.convert(policy.raw.get("spec") or {}, _Spec)
            selected = self.of(policy.metadata.namespace, spec.podSelector)
            for direction in DIRECTIONS:
                if selected and spec.isolates(direction):
                    sides[name, direction] = self.side(name, direction, spec, selected)
                    for ip in selected:
                        selecting[ip, direction].append(name)
        return self.by_node(sides, selecting)

    def by_node(
        self, sides: Mapping[tuple[str, Direction], Side], selecting: Mapping[tuple[str, Direction], list[str]]
    ) -> dict[str, Guard]:
        isolated: defaultdict[str, list[Isolated]] = defaultdict(list)
        for (ip, direction), policies in selecting.items():
            pod = self.pods[ip]
            isolated[pod.node].append(Isolated(pod.name, ip, direction, tuple(policies)))
        found = {}
        for node, pods in isolated.items():
            asked = {(policy, pod.direction) for pod in pods for policy in pod.policies}
            ordered = sorted(pods, key=lambda one: (one.direction, one.pod))
            found[node] = Guard(tuple(ordered), tuple(sides[key] for key in sorted(asked)))
        return found

    # --- who is meant ---

    def of(self, namespace: str, selector: LabelSelector | None) -> frozenset[str]:
        """Pods of a namespace; without a selector all of them."""
        here = self.within.get(namespace, frozenset())
        return here & self.index.select(selector) if selector is not None else here

    def peer(self, namespace: str, peer: _Peer) -> frozenset[str]:
        """The pods a peer means (an ipBlock means none)."""
        if peer.namespaceSelector is None:
            return self.of(namespace, peer.podSelector) if peer.podSelector is not None else frozenset()
        spaces = self.namespaces.select(peer.namespaceSelector)
        pods = frozenset().union(*(self.within.get(space, frozenset()) for space in spaces))
        return pods & self.index.select(peer.podSelector) if peer.podSelector is not None else pods

    # --- a policy ---

    def side(self, name: str, direction: Direction, spec: _Spec, selected: frozenset[str]) -> Side:
        rules = (spec.ingress if direction == "ingress" else spec.egress) or ()
        passes = [
            one for number, rule in enumerate(rules) for one in self.rule(name, direction, number, rule, selected)
        ]
        return Side(name, direction, tuple(passes), self.family)

    def rule(
        self, policy: str, direction: Direction, number: int, rule: Mapping[str, Any] | None, selected: frozenset[str]
    ) -> Iterator[Pass]:
        """Its peers and its ports: a line for each kind of peer, and for what is named by number and by name."""
        said = rule or {}
        peers = msgspec.convert(said.get(_PEERS[direction]) or (), tuple[_Peer, ...])
        ports = msgspec.convert(said.get("ports") or (), tuple[_Port, ...])
        namespace = policy.partition("/")[0]
        text = json.dumps(said, sort_keys=True)
        numbered = tuple(_ports(port) for port in ports if not isinstance(port.port, str))
        named = [port for port in ports if isinstance(port.port, str)]
        pods = frozenset().union(*(self.peer(namespace, peer) for peer in peers))
        blocks = _blocks(tuple(_block(peer.ipBlock) for peer in peers if peer.ipBlock), self.family)
        if numbered or not ports:
            for one in _who(number, text, peers, pods, blocks):
                yield msgspec.structs.replace(one, ports=numbered or None)
        if named and direction == "ingress":
            targets = self.targets(named, selected)
            yield from (
                msgspec.structs.replace(one, targets=targets) for one in _who(number, text, peers, pods, blocks)
            )
        elif named:
            inside = {ip for ip in self.pods if ranges.within(ip, blocks)} if blocks else set()
            there = pods | inside if peers else frozenset(self.pods)
            yield Pass(number, text, targets=self.targets(named, there))

    def targets(self, named: Iterable[_Port], pods: Iterable[str]) -> frozenset[str]:
        """Where these names lead on these pods."""
        wanted = {(port.port, port.protocol or "TCP") for port in named}
        return frozenset(
            f"{ip},{protocol.lower()}:{number}"
            for ip in pods
            for name, protocol, number in self.pods[ip].ports
            if (name, protocol) in wanted
        )


def _who(
    number: int, text: str, peers: tuple[_Peer, ...], pods: frozenset[str], blocks: tuple[tuple[str, str], ...]
) -> Iterator[Pass]:
    """A line for each kind of peer that the rule names; without peers one that asks for none (rule 7)."""
    if not peers:
        yield Pass(number, text)
    if any(peer.ipBlock is None for peer in peers):
        yield Pass(number, text, pods=pods)
    if blocks:
        yield Pass(number, text, blocks=blocks)


def _pod(pod: model.Pod, ip: str) -> _Pod:
    meta = pod.metadata
    ports = tuple((item.name, item.protocol, item.containerPort) for item in model.container_ports(pod) if item.name)
    return _Pod(f"{meta.namespace}/{meta.name}", meta.namespace, pod.spec.nodeName, ip, ports)


def _address(pod: model.Pod, family: Family) -> str:
    addresses = [item.ip for item in pod.status.podIPs] or [pod.status.podIP]
    return next((ip for ip in addresses if (":" in ip) is (family == "ip6")), "")


def _named(namespace: model.Namespace) -> dict[str, str]:
    """Rule 9: every namespace has its name as a label."""
    return {**namespace.metadata.labels, "kubernetes.io/metadata.name": namespace.metadata.name}


def _ports(port: _Port) -> Ports:
    protocol = (port.protocol or "TCP").lower()
    if not isinstance(port.port, int):
        return Ports(protocol, *ALL_PORTS)
    return Ports(protocol, port.port, port.endPort or port.port)


# --- address ranges ---------------------------------------------------------------------------------------------------

_Block = tuple[str, tuple[str, ...]]


def _block(block: _IPBlock) -> _Block:
    return block.cidr, block.exceptions or ()


@lru_cache(maxsize=MEMO)
def _blocks(blocks: tuple[_Block, ...], family: Family) -> tuple[tuple[str, str], ...]:
    """Disjoint ranges (first, last) in order, what touches merged; those of the other family are left out."""
    mine = [block for block in blocks if (":" in block[0]) is (family == "ip6")]
    kind = IPv6Address if family == "ip6" else IPv4Address
    merged = ranges.united(part for cidr, exceptions in mine for part in ranges.without(cidr, exceptions))
    return tuple((str(kind(first)), str(kind(last))) for first, last in merged)
