"""A NetworkPolicy document as values with the API's defaults applied, so that nobody below asks for an absent field.

Source: the types and defaults of networking.k8s.io/v1 (`pkg/apis/networking/v1/defaults.go`; facts/NETPOL.md, rules 2-8
and 12). What published sets leave empty (`matchLabels:` without a value, `from:` without items) is what the API takes
it for: absent.
"""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any, Literal

import msgspec

from nsnet import model
from nsnet.model import Object, Objects

Direction = Literal["Ingress", "Egress"]
DIRECTIONS: tuple[Direction, Direction] = ("Ingress", "Egress")
KIND = "NetworkPolicy"


class Need(msgspec.Struct, frozen=True):
    """One item of matchExpressions."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()


class Selector(msgspec.Struct, frozen=True):
    """Labels and requirements, all of which must be met; an empty one meets everything."""

    labels: tuple[tuple[str, str], ...] = ()
    needs: tuple[Need, ...] = ()


class Block(msgspec.Struct, frozen=True):
    """An ipBlock; addresses as CIDRs."""

    cidr: str
    excepts: tuple[str, ...] = ()


class Peer(msgspec.Struct, frozen=True):
    """An item of from or to: a block, or pods (None: of this namespace) of namespaces (None: this one)."""

    pods: Selector | None = None
    namespaces: Selector | None = None
    block: Block | None = None


class Port(msgspec.Struct, frozen=True):
    """An item of ports. `port` is a number (up to `last`), a name, or None: every port of the protocol."""

    protocol: str = "TCP"
    port: int | str | None = None
    last: int = 0

    def __str__(self) -> str:
        port = "<any>" if self.port is None else f"{self.port}-{self.last}" if self.last else str(self.port)
        return f"{port}/{self.protocol}"


class Rule(msgspec.Struct, frozen=True):
    """Peers and ports; an empty list means that there is no restriction."""

    peers: tuple[Peer, ...] = ()
    ports: tuple[Port, ...] = ()


class Policy(msgspec.Struct, frozen=True):
    """`rules` has a direction only if the policy isolates it; `ignored` are directions with rules that do not count."""

    namespace: str
    name: str
    selector: Selector
    rules: dict[Direction, tuple[Rule, ...]]
    ignored: tuple[Direction, ...] = ()

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def are_any(objects: Objects) -> bool:
    """Whether there is a NetworkPolicy; an index of thousands of pods is made for nothing where there is none."""
    return any(key.kind == KIND for key in objects)


def policies(objects: Objects) -> list[Policy]:
    """All NetworkPolicies, ordered by namespace and name."""
    return [policy(objects[key]) for key in sorted(key for key in objects if key.kind == KIND)]


def policy(obj: Object) -> Policy:
    """The policy that a (validated) object says."""
    spec = model.to_doc(obj).get("spec") or {}
    written: dict[Direction, tuple[Rule, ...]] = {
        "Ingress": tuple(_rule(item, "from") for item in spec.get("ingress") or ()),
        "Egress": tuple(_rule(item, "to") for item in spec.get("egress") or ()),
    }
    types = spec.get("policyTypes") or ("Ingress", *(["Egress"] if written["Egress"] else []))
    return Policy(
        obj.metadata.namespace,
        obj.metadata.name,
        selector(spec.get("podSelector") or {}),
        {direction: written[direction] for direction in DIRECTIONS if direction in types},
        tuple(direction for direction in DIRECTIONS if written[direction] and direction not in types),
    )


def selector(said: dict[str, Any]) -> Selector:
    labels = sorted((said.get("matchLabels") or {}).items())
    needs = (
        Need(item["key"], item["operator"], frozenset(item.get("values") or ()))
        for item in said.get("matchExpressions") or ()
    )
    return Selector(tuple(labels), tuple(needs))


def _rule(said: dict[str, Any] | None, field: str) -> Rule:
    said = said or {}
    peers = tuple(_peer(item) for item in said.get(field) or ())
    return Rule(peers, tuple(_port(item or {}) for item in said.get("ports") or ()))


def _peer(said: dict[str, Any]) -> Peer:
    pods, namespaces, block = (said.get(name) for name in ("podSelector", "namespaceSelector", "ipBlock"))
    return Peer(
        None if pods is None else selector(pods),
        None if namespaces is None else selector(namespaces),
        None if block is None else _block(block),
    )


def _block(said: dict[str, Any]) -> Block:
    """Host bits may be set: the network is meant."""
    cidrs = [str(ip_network(text, strict=False)) for text in (said["cidr"], *(said.get("except") or ()))]
    return Block(cidrs[0], tuple(cidrs[1:]))


def _port(said: dict[str, Any]) -> Port:
    return Port(said.get("protocol") or "TCP", said.get("port"), said.get("endPort") or 0)


# --- selectors --------------------------------------------------------------------------------------------------------


def meets(labels: dict[str, str], chosen: Selector) -> bool:
    """Has something with these labels been chosen? Source: apimachinery `pkg/labels`.

    `model.selects` says the same for Services and workloads; the rules that are tested against this decision use that,
    so this is spelled for itself.
    """
    return all(labels.get(key) == value for key, value in chosen.labels) and all(
        _is_met(labels, need) for need in chosen.needs
    )


def _is_met(labels: dict[str, str], need: Need) -> bool:
    there = need.key in labels
    match need.operator:
        case "Exists":
            return there
        case "DoesNotExist":
            return not there
        case "In":
            return there and labels[need.key] in need.values
    return not there or labels[need.key] not in need.values  # NotIn


def written(chosen: Selector) -> str:
    """As kubectl writes a selector (`metav1.FormatLabelSelector`): `app=web,tier in (a,b),!old`; `<none>`."""
    words = [(key, f"{key}={value}") for key, value in chosen.labels] + [
        (need.key, _need(need)) for need in chosen.needs
    ]
    return ",".join(word for _, word in sorted(words, key=lambda pair: pair[0])) or "<none>"


def _need(need: Need) -> str:
    values = ",".join(sorted(need.values))
    match need.operator:
        case "Exists":
            return need.key
        case "DoesNotExist":
            return f"!{need.key}"
        case "In":
            return f"{need.key} in ({values})"
    return f"{need.key} notin ({values})"


# --- as kubectl describes it ------------------------------------------------------------------------------------------

_WAYS: dict[Direction, tuple[str, str, str]] = {
    "Ingress": ("From", "source", "ingress"),
    "Egress": ("To", "destination", "egress"),
}


def account(said: Policy) -> Iterator[str]:
    """The lines that stand under `Spec:` in `kubectl describe netpol`."""
    none = "<none> (Allowing the specific traffic to all pods in this namespace)"
    yield f"PodSelector:     {none if said.selector == Selector() else written(said.selector)}"
    for direction in DIRECTIONS:
        rules = said.rules.get(direction)
        word = _WAYS[direction][2]
        if rules is None:
            yield f"Not affecting {word} traffic"
            continue
        yield f"Allowing {word} traffic:"
        yield from (f"  {line}" for line in _rules(rules, direction))
    yield f"Policy Types: {', '.join(said.rules)}"


def _rules(rules: tuple[Rule, ...], direction: Direction) -> Iterator[str]:
    end, what, word = _WAYS[direction]
    if not rules:
        yield f"<none> (Selected pods are isolated for {word} connectivity)"
    for number, rule in enumerate(rules):
        if number:
            yield "----------"
        yield from [f"To Port: {port}" for port in rule.ports] or ["To Port: <any> (traffic allowed to all ports)"]
        if not rule.peers:
            yield f"{end}: <any> (traffic not restricted by {what})"
        for peer in rule.peers:
            yield f"{end}:"
            yield from (f"  {line}" for line in peer_lines(peer))


def peer_lines(peer: Peer) -> Iterator[str]:
    """`NamespaceSelector: team=a`, `PodSelector: app=web`, or an IPBlock."""
    if peer.namespaces is not None:
        yield f"NamespaceSelector: {written(peer.namespaces)}"
    if peer.pods is not None:
        yield f"PodSelector: {written(peer.pods)}"
    if peer.block is not None:
        yield "IPBlock:"
        yield f"  CIDR: {peer.block.cidr}"
        yield f"  Except: {', '.join(peer.block.excepts)}".rstrip()
