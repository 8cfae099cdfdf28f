"""What a person should know of a NetworkPolicy that is valid and may yet not do what was meant. Pure.

A selector that nothing meets, a port name that nobody has: the API takes both, and what follows is an isolated pod, or
none (NETPOL.md rules 4, 12 and 13; Sock Shop's policies select `name: cart`, which no pod is called). Nothing here
changes what is decided.
"""

from collections.abc import Iterable, Iterator, Mapping

from nsnet import model
from nsnet.control.policy.index import NAME
from nsnet.control.policy.spec import Direction, Peer, Policy, Port, Rule, Selector, meets, written
from nsnet.model import ENDED, Labels, Pod

Doubt = tuple[str, str]  # reason, message


class Known:
    """The pods and namespaces there are; questions are answered by the first that fits, so that all are cheap."""

    def __init__(self, pods: Iterable[Pod], namespaces: Mapping[str, Labels]) -> None:
        self.namespaces = namespaces
        self.pods: dict[str, list[Pod]] = {}
        for pod in pods:
            if not pod.spec.hostNetwork and pod.status.phase not in ENDED:
                self.pods.setdefault(pod.metadata.namespace, []).append(pod)

    def of(self, namespace: str, chosen: Selector) -> Iterator[Pod]:
        return (pod for pod in self.pods.get(namespace, ()) if meets(pod.metadata.labels, chosen))

    def spaces(self, chosen: Selector) -> Iterator[str]:
        return (name for name, labels in self.namespaces.items() if meets({**labels, NAME: name}, chosen))

    def peers(self, home: str, peer: Peer) -> Iterator[Pod]:
        spaces = [home] if peer.namespaces is None else self.spaces(peer.namespaces)
        return (pod for space in spaces for pod in self.of(space, peer.pods or Selector()))


def doubts(policy: Policy, known: Known) -> Iterator[Doubt]:
    """Reasons and sentences; nothing where all is as it seems."""
    if not any(True for _ in known.of(policy.namespace, policy.selector)):
        who = "there is" if policy.selector == Selector() else f"its podSelector {written(policy.selector)} matches"
        yield "SelectsNothing", f"{who} no pod of namespace {policy.namespace}: it isolates nobody"
        return
    for direction in policy.ignored:
        yield "RulesIgnored", f"its {direction.lower()} rules count for nothing: policyTypes does not say {direction}"
    for direction, rules in policy.rules.items():
        for number, rule in enumerate(rules):
            for reason, message in _of_rule(policy, direction, rule, known):
                yield reason, f"{direction.lower()}[{number}]: {message}"


def _of_rule(policy: Policy, direction: Direction, rule: Rule, known: Known) -> Iterator[Doubt]:
    for peer in rule.peers:
        if peer.block is None and not any(True for _ in known.peers(policy.namespace, peer)):
            yield "PeerMatchesNothing", _nobody(policy, peer, known)
    for port in rule.ports:
        if isinstance(port.port, str) and not _is_known(policy, direction, rule, port, known):
            yield "UnknownPort", f"no destination has a port named {port}: that item allows nothing"
        if port.protocol == "SCTP":
            yield "NotServed", "pods here serve no SCTP: nobody answers to what that item allows"


def _nobody(policy: Policy, peer: Peer, known: Known) -> str:
    if peer.namespaces is not None and not any(True for _ in known.spaces(peer.namespaces)):
        return f"its namespaceSelector {written(peer.namespaces)} matches no namespace"
    who = "there is" if peer.pods in (None, Selector()) else f"its podSelector {written(peer.pods)} matches"
    where = f"of namespace {policy.namespace}" if peer.namespaces is None else "in those namespaces"
    return f"{who} no pod {where}"


def _is_known(policy: Policy, direction: Direction, rule: Rule, port: Port, known: Known) -> bool:
    """Has any destination a port of that name? On the way in these are the selected pods, on the way out the peers."""
    if direction == "Ingress":
        ends: Iterable[Pod] = known.of(policy.namespace, policy.selector)
    elif rule.peers:
        ends = (pod for peer in rule.peers if peer.block is None for pod in known.peers(policy.namespace, peer))
    else:
        ends = (pod for pods in known.pods.values() for pod in pods)
    return any(
        (item.name, item.protocol) == (port.port, port.protocol) for pod in ends for item in model.container_ports(pod)
    )
