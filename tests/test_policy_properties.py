"""NetworkPolicy decided, for policies nobody would write: against a second spelling of the rules, and by algebra.

The second spelling reads the documents themselves, one pair at a time, rule by rule as facts/NETPOL.md has them.
"""

from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nsnet import model
from nsnet.control import policy
from nsnet.control.policy import End, Index
from nsnet.model import Objects
from tests.controlled import up
from tests.deciding import NINE

Doc = dict[str, Any]
PORTS = [(80, "TCP"), (81, "TCP"), (80, "UDP"), (82, "TCP"), (0, "ICMP")]
OUTSIDE = ("203.0.113.2", "10.244.2.200")


@cache
def base() -> Objects:
    return up(NINE)


def objects(specs: list[tuple[str, Doc]]) -> Objects:
    """The nine pods with policies (namespace, spec), named in order."""
    docs = [
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
         "metadata": {"name": f"p{number}", "namespace": space}, "spec": spec}
        for number, (space, spec) in enumerate(specs)
    ]  # fmt: skip
    return {**base(), **model.by_key([model.from_doc(doc) for doc in docs])}


# --- policies ---------------------------------------------------------------------------------------------------------

KEYS = {
    "pod": ["a", "b", "c", "q"],
    "ns": ["xx", "yy", "zz"],
    "kubernetes.io/metadata.name": ["xxx", "yyy"],
    "none": ["q"],
}


@st.composite
def requirements(draw: st.DrawFn) -> Doc:
    key = draw(st.sampled_from(sorted(KEYS)))
    operator = draw(st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]))
    values = draw(st.lists(st.sampled_from(KEYS[key]), min_size=1, max_size=3))
    return {"key": key, "operator": operator} | ({"values": values} if operator.endswith("In") else {})


def selectors() -> st.SearchStrategy[Doc]:
    pairs = st.sampled_from([(key, value) for key, values in KEYS.items() for value in values])
    labels = st.none() | st.lists(pairs, max_size=1).map(dict)
    return st.fixed_dictionaries({}, optional={
        "matchLabels": labels, "matchExpressions": st.none() | st.lists(requirements(), max_size=2),
    })  # fmt: skip


BLOCKS = [
    {"cidr": "10.244.0.0/16"},
    {"cidr": "10.244.0.0/16", "except": ["10.244.2.0/24"]},
    {"cidr": "10.244.2.0/25", "except": ["10.244.2.2/31", "10.244.2.4/32"]},
    {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]},
    {"cidr": "172.18.0.3/16"},
    {"cidr": "203.0.113.2/32", "except": None},
]
PORT_ITEMS = [
    {}, {"port": 80}, {"port": 81, "protocol": "TCP"}, {"port": "http"}, {"port": "http", "protocol": "UDP"},
    {"port": "dns", "protocol": "UDP"}, {"protocol": "UDP"}, {"port": 80, "endPort": 82}, {"port": "nobody"},
    {"port": 80, "protocol": "SCTP"},
]  # fmt: skip


def peers() -> st.SearchStrategy[Doc]:
    return st.one_of(
        st.builds(lambda chosen: {"podSelector": chosen}, selectors()),
        st.builds(lambda chosen: {"namespaceSelector": chosen, "podSelector": None}, selectors()),
        st.builds(lambda one, other: {"podSelector": one, "namespaceSelector": other}, selectors(), selectors()),
        st.sampled_from(BLOCKS).map(lambda block: {"ipBlock": block}),
    )


def several(items: st.SearchStrategy[Doc]) -> st.SearchStrategy[list[Doc] | None]:
    """Mostly some; but also the empty list and none at all."""
    some = st.lists(items, min_size=1, max_size=2)
    return st.one_of(some, some, some, st.just([]), st.none())


def rules(end: str) -> st.SearchStrategy[Doc]:
    return st.fixed_dictionaries({}, optional={
        end: several(peers()), "ports": several(st.sampled_from(PORT_ITEMS)),
    })  # fmt: skip


def specs() -> st.SearchStrategy[Doc]:
    kinds = st.sampled_from([None, [], ["Ingress"], ["Egress"], ["Ingress", "Egress"]])
    return st.fixed_dictionaries({}, optional={
        "podSelector": selectors(), "policyTypes": kinds,
        "ingress": several(rules("from")), "egress": several(rules("to")),
    })  # fmt: skip


def sets() -> st.SearchStrategy[list[tuple[str, Doc]]]:
    return st.lists(st.tuples(st.sampled_from(["xxx", "yyy"]), specs()), max_size=4)


# --- the second spelling ----------------------------------------------------------------------------------------------


def chosen(labels: dict[str, str], selector: Doc) -> bool:
    """Rule 10."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for item in selector.get("matchExpressions") or []:
        key, operator, values = item["key"], item["operator"], item.get("values", [])
        if operator == "In" and not (key in labels and labels[key] in values):
            return False
        if operator == "NotIn" and key in labels and labels[key] in values:
            return False
        if operator == "Exists" and key not in labels:
            return False
        if operator == "DoesNotExist" and key in labels:
            return False
    return True


class Slow:
    """Asks the documents every time."""

    def __init__(self, found: Objects) -> None:
        self.docs = [model.to_doc(obj) for key, obj in found.items() if key.kind == "NetworkPolicy"]
        self.pods = {f"{pod.metadata.namespace}/{pod.metadata.name}": pod for pod in model.of(found, model.Pod)}
        self.spaces = {item.metadata.name: item.metadata.labels for item in model.of(found, model.Namespace)}

    def allows(self, source: End, target: End, port: int, protocol: str) -> bool:
        return self.side(source, target, target, port, protocol, "Egress") and self.side(
            target, source, target, port, protocol, "Ingress"
        )

    def side(self, own: End, other: End, to: End, port: int, protocol: str, direction: str) -> bool:
        if own.kind != "pod" or (other.kind == "pod" and other.name == own.name):
            return True
        if direction == "Ingress" and other.kind == "node" and other.node == own.node:
            return True
        isolated = False
        for doc in self.docs:
            spec, home = doc["spec"], doc["metadata"]["namespace"]
            types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
            here = self.pods[own.name].metadata
            if (
                direction not in types
                or here.namespace != home
                or not chosen(here.labels, spec.get("podSelector") or {})
            ):
                continue
            isolated = True
            for rule in spec.get(direction.lower()) or []:
                ends, ports = rule.get("from" if direction == "Ingress" else "to"), rule.get("ports")
                if (not ends or any(self.peer(item, other, home) for item in ends)) and (
                    not ports or any(self.port(item, to, port, protocol) for item in ports)
                ):
                    return True
        return not isolated

    def peer(self, item: Doc, other: End, home: str) -> bool:
        if item.get("ipBlock"):
            address, block = ip_address(other.address), item["ipBlock"]
            holes = [ip_network(hole, strict=False) for hole in block.get("except") or []]
            return address in ip_network(block["cidr"], strict=False) and not any(address in hole for hole in holes)
        if other.kind != "pod":
            return False
        meta = self.pods[other.name].metadata
        if item.get("namespaceSelector") is None:
            here = meta.namespace == home
        else:
            here = chosen(self.spaces[meta.namespace], item["namespaceSelector"])
        return here and chosen(meta.labels, item.get("podSelector") or {})

    def port(self, item: Doc, to: End, port: int, protocol: str) -> bool:
        said: Any = item.get("port")
        if item.get("protocol", "TCP") != protocol:
            return False
        if isinstance(said, str):
            ports = model.container_ports(self.pods[to.name]) if to.kind == "pod" else []
            return any((each.name, each.protocol, each.containerPort) == (said, protocol, port) for each in ports)
        return said is None or bool(said <= port <= item.get("endPort", said))


# --- questions --------------------------------------------------------------------------------------------------------


def pairs(known: Index) -> Iterator[tuple[End, End, int, str]]:
    """Every ordered pair of pods, and nodes and outside addresses with pods, on every port."""
    pods = [end for end in known.pods.values() if not end.name.startswith("kube-system/")]
    others = [*known.nodes.values(), *map(known.at, OUTSIDE), known.at("10.244.2.0")]
    for port, protocol in PORTS:
        for pod in pods:
            yield from ((pod, other, port, protocol) for other in (*pods, *others))
            yield from ((other, pod, port, protocol) for other in others)


def opened(found: list[tuple[str, Doc]]) -> set[tuple[End, End, int, str]]:
    known = policy.index(objects(found))
    return {question for question in pairs(known) if policy.allows(known, *question)}


@settings(max_examples=500, deadline=None)
@given(sets())
def test_the_decision_is_what_the_rules_say(found: list[tuple[str, Doc]]) -> None:
    all_ = objects(found)
    known, slow = policy.index(all_), Slow(all_)
    different = [question for question in pairs(known) if policy.allows(known, *question) != slow.allows(*question)]
    assert different == []


@settings(max_examples=25, deadline=None)
@given(sets())
def test_with_reasons_or_without_is_one(found: list[tuple[str, Doc]]) -> None:
    known = policy.index(objects(found))
    for question in pairs(known):
        decision = policy.decided(known, *question)
        assert decision.allowed == policy.allows(known, *question)
        assert list(policy.because(known, decision))


@settings(max_examples=30, deadline=None)
@given(sets(), st.sampled_from(["xxx", "yyy"]), selectors(), rules("from"), rules("to"))
def test_one_more_rule_never_closes(
    found: list[tuple[str, Doc]], space: str, selector: Doc, into: Doc, out: Doc
) -> None:
    closed = {"podSelector": selector, "policyTypes": ["Ingress", "Egress"]}
    more = {**closed, "ingress": [into], "egress": [out]}
    assert opened([*found, (space, closed)]) <= opened([*found, (space, more)])


@settings(max_examples=30, deadline=None)
@given(sets(), st.sampled_from(["xxx", "yyy"]), selectors())
def test_a_policy_without_rules_never_opens(found: list[tuple[str, Doc]], space: str, selector: Doc) -> None:
    assert opened([*found, (space, {"podSelector": selector, "policyTypes": ["Ingress", "Egress"]})]) <= opened(found)


@settings(max_examples=30, deadline=None)
@given(sets(), st.randoms())
def test_order_and_repetition_do_not_matter(found: list[tuple[str, Doc]], random: Any) -> None:
    shuffled = [*found, *found[:1]]
    random.shuffle(shuffled)
    assert opened(shuffled) == opened(found)


@settings(max_examples=30, deadline=None)
@given(sets())
def test_rules_may_stand_in_policies_of_their_own(found: list[tuple[str, Doc]]) -> None:
    apart = []
    for space, spec in found:
        types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
        alone = {"podSelector": spec.get("podSelector", {}), "policyTypes": types}
        apart.append((space, alone))
        apart += [(space, {**alone, way: [rule]}) for way in ("ingress", "egress") for rule in spec.get(way) or []]
    assert opened(apart) == opened(found)


@settings(max_examples=60, deadline=None)
@given(requirements(), st.sampled_from(["pod", "ns", "none"]), st.sampled_from(["a", "xx", "q"]))
def test_selector_algebra(need: Doc, key: str, value: str) -> None:
    """A requirement and its opposite share no pod and miss none; a label is an In of one value; {} is everybody."""
    opposite = {"In": "NotIn", "NotIn": "In", "Exists": "DoesNotExist", "DoesNotExist": "Exists"}

    def whom(selector: Doc) -> set[str]:
        known = policy.index(objects([("xxx", {"podSelector": selector})]))
        return {name for direction, name in known.closed if direction == "Ingress"}

    everybody = whom({})
    one = whom({"matchExpressions": [need]})
    other = whom({"matchExpressions": [{**need, "operator": opposite[need["operator"]]}]})
    assert one | other == everybody == {"xxx/a", "xxx/b", "xxx/c"}
    assert one & other == set()
    said = {"key": key, "operator": "In", "values": [value]}
    assert whom({"matchLabels": {key: value}}) == whom({"matchExpressions": [said]})
    assert whom({"matchExpressions": [need, said]}) == one & whom({"matchExpressions": [said]})
