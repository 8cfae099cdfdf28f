"""What NetworkPolicies make of verify's expectations, as tables: who answers, `blocked`, or a set of both."""

from typing import Any

import msgspec
import pytest

from nsnet import model, verify
from nsnet.control import policy
from nsnet.kernel.probe import Answer
from nsnet.model import Pod
from nsnet.verify import Expectation, describe
from nsnet.verify.asking import question
from nsnet.verify.judge import judge
from tests.controlled import up
from tests.deciding import pod, written
from tests.verifying import Objects, cluster

N1, N2 = "172.18.0.2", "172.18.0.3"


def labelled() -> Objects:
    """verifying.cluster (a, b, c on node1, d, e, f on node2), each pod with its name for a label."""
    objects = cluster()
    for item in model.of(objects, Pod):
        meta = msgspec.structs.replace(item.metadata, labels={**item.metadata.labels, "pod": item.metadata.name})
        objects[model.key_of(item)] = msgspec.structs.replace(item, metadata=meta)
    return objects


PODS = labelled()


def with_policy(spec: dict[str, Any], objects: Objects = PODS, name: str = "p") -> Objects:
    doc = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"name": name, "namespace": "default"}, "spec": spec}  # fmt: skip
    return {**objects, **model.by_key([model.from_doc(doc)])}


def only(*names: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": "pod", "operator": "In", "values": list(names)}]}


A_CLOSED = with_policy({"podSelector": only("a")})


def found(pattern: str, objects: Objects) -> dict[str, str]:
    """Name without its group → what is expected."""
    return {item.name.partition(": ")[2]: describe(item) for item in verify.only(verify.expectations(objects), pattern)}


def who(objects: Objects, source: str, group: str, service: str) -> dict[str, str]:
    """address:port → the endpoints that may answer, `?` where silence is right as well, or what comes instead."""
    return {
        f"{item.address}:{item.port}": _who(item)
        for item in verify.expectations(objects)
        if item.source == source and item.group == group and item.target == f"svc/default/{service}"
    }


def _who(item: Expectation) -> str:
    names = "|".join(sorted(name.removeprefix("default/") for name in item.answers))
    return f"{names or item.want}{'?' if item.partly else ''}"


def test_between_pods_and_from_nodes() -> None:
    asked = r"^(pod-to-pod|node-to-pod): (pod/default/[bd]|node/.*) → pod/default/a (ICMP|TCP .*:80$)"
    assert found(asked, A_CLOSED) == {
        "pod/default/b → pod/default/a ICMP 10.244.1.2": "blocked by policy",
        "pod/default/b → pod/default/a TCP 10.244.1.2:80": "blocked by policy",
        "pod/default/d → pod/default/a ICMP 10.244.1.2": "blocked by policy",
        "pod/default/d → pod/default/a TCP 10.244.1.2:80": "blocked by policy",
        "node/node1 → pod/default/a ICMP 10.244.1.2": "an answer",  # its own node
        "node/node1 → pod/default/a TCP 10.244.1.2:80": "default/a answers and sees the sender",
        "node/node2 → pod/default/a ICMP 10.244.1.2": "blocked by policy",
        "node/node2 → pod/default/a TCP 10.244.1.2:80": "blocked by policy",
    }  # fmt: skip


def test_nothing_else_changes() -> None:
    before = {item.name: item for item in verify.expectations(PODS)}
    after = {item.name: item for item in verify.expectations(A_CLOSED)}
    changed = {item.target for name, item in after.items() if before.get(name) != item}
    assert changed == {"pod/default/a"} | {f"svc/default/{name}" for name in ("web", "dns", "sticky", "local", "near")}
    assert not {item.source for item in after.values() if item.group == "localhost" and item.want != "ok"}
    assert {item.want for item in after.values() if item.target == "pod/default/b"} == {"ok", "unreachable"}


def test_a_node_reaches_by_its_tunnels_address() -> None:
    block = {"from": [{"ipBlock": {"cidr": "10.244.2.0/32"}}], "ports": [{"port": 80}]}
    objects = with_policy({"podSelector": only("a"), "ingress": [block]})
    assert found("node-to-pod: node/node2 → pod/default/a (ICMP|TCP)", objects) == {
        "node/node2 → pod/default/a ICMP 10.244.1.2": "blocked by policy",
        "node/node2 → pod/default/a TCP 10.244.1.2:80": "default/a answers and sees the sender",
    }


@pytest.mark.parametrize(
    ("source", "group", "service", "expected"),
    [
        # to a ClusterIP: chosen first, then filtered
        ("pod/default/d", "service", "web", {"10.96.0.10:80": "b|c|d|e|f?"}),
        ("node/node2", "service", "web", {"10.96.0.10:80": "b|c|d|e|f?"}),
        ("node/node1", "service", "web", {"10.96.0.10:80": "a|b|c|d|e|f"}),  # a's own node
        ("pod/default/a", "service", "web", {"10.96.0.10:80": "a|b|c|d|e|f"}),  # a itself: among others by hairpin
        ("pod/default/b", "service", "local", {}),
        # outside, by a node port with policy Cluster: a's own node sees the client, the other passes on as itself
        ("host/client", "outside", "web", {f"{N1}:30080": "b|c|d|e|f?", f"{N2}:30080": "b|c|d|e|f?"}),
        ("host/client", "outside", "near", {f"{N1}:30015": "b?", f"{N2}:30015": "timeout"}),
        ("node/node1", "nodeport", "web", {f"{N1}:30080": "a|b|c|d|e|f", f"{N2}:30080": "b|c|d|e|f?"}),
    ],
)
def test_who_answers_for_a_service(source: str, group: str, service: str, expected: dict[str, str]) -> None:
    assert who(A_CLOSED, source, group, service) == expected


def test_a_service_of_closed_pods_only_is_silent() -> None:
    objects = with_policy({"podSelector": only("a", "b")})
    assert who(objects, "node/node2", "nodeport", "near") == {f"{N1}:30015": "blocked", f"{N2}:30015": "blocked"}
    assert not [item for item in verify.expectations(objects) if item.group == "spread" and item.target.endswith("near")
                and item.source.startswith("node/node2")]  # fmt: skip


CLIENT = {"from": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}
NODE1 = {"from": [{"ipBlock": {"cidr": "10.244.1.0/32"}}]}


@pytest.mark.parametrize(
    ("rule", "near", "web"),
    [
        # Local: the client's address. Cluster: the client's where the node has the pod itself, else that node's VTEP
        (CLIENT, {f"{N1}:30015": "a|b", f"{N2}:30015": "timeout"}, {f"{N1}:30080": "a|b|c?", f"{N2}:30080": "d|e|f?"}),
        (NODE1, {f"{N1}:30015": "blocked", f"{N2}:30015": "timeout"},
         {f"{N1}:30080": "d|e|f?", f"{N2}:30080": "blocked"}),
    ],
)  # fmt: skip
def test_rule_18_what_the_pods_node_sees(rule: dict[str, Any], near: dict[str, str], web: dict[str, str]) -> None:
    objects = with_policy({"podSelector": {}, "ingress": [rule]})
    assert who(objects, "host/client", "outside", "near") == near
    assert who(objects, "host/client", "outside", "web") == web


def test_egress_closes_every_way_out() -> None:
    objects = with_policy({"podSelector": only("d"), "policyTypes": ["Egress"]})
    wants: dict[str, set[str]] = {}
    for item in verify.expectations(objects):
        if item.source == "pod/default/d":
            wants.setdefault(item.group, set()).add(_who(item) if item.want != "ok" or item.partly else "ok")
    assert wants == {
        "localhost": {"ok"},
        "pod-to-pod": {"blocked"},
        "pod-to-node": {"blocked"},  # its own node, too
        # among the endpoints is d itself, which it always reaches
        "service": {"d?", "blocked"},
        "spread": {"d?"},
        "nodeport": {"d?", "blocked"},
    }


@pytest.mark.parametrize(
    ("egress", "inner", "outer"),
    [
        ([], "blocked", {f"{N1}:30013": "blocked", f"{N2}:30013": "blocked"}),
        ([{"to": [{"ipBlock": {"cidr": "10.96.0.13/32"}}]}], "refused",
         {f"{N1}:30013": "blocked", f"{N2}:30013": "blocked"}),
        ([{"to": [{"ipBlock": {"cidr": f"{N1}/32"}}]}], "blocked",
         {f"{N1}:30013": "refused", f"{N2}:30013": "blocked"}),
    ],
)  # fmt: skip
def test_a_service_without_endpoints_is_not_translated(egress: list[Any], inner: str, outer: dict[str, str]) -> None:
    """So its own address is what egress is asked about, and the refusal comes only after that."""
    spec = {"podSelector": only("d", "e", "f"), "policyTypes": ["Egress"], "egress": egress}
    asked = [item for item in verify.expectations(with_policy(spec)) if item.target == "svc/default/none"]
    asked = [item for item in asked if item.source in {f"pod/default/{name}" for name in "def"}]
    assert {item.want for item in asked if item.group == "service"} == {inner}
    assert {f"{item.address}:{item.port}": item.want for item in asked if item.group == "nodeport"} == outer


def test_other_nodes_node_ports_are_addresses_on_the_way_out() -> None:
    """By its own node d's packet has become the endpoint's where egress is filtered; by another it has not."""
    to_pods = with_policy(
        {"podSelector": only("d"), "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]}
    )
    to_node = with_policy(
        {"podSelector": only("d"), "policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": {"cidr": f"{N1}/32"}}]}]}
    )
    assert who(to_pods, "pod/default/d", "nodeport", "web") == {f"{N1}:30080": "blocked", f"{N2}:30080": "a|b|c|d|e|f"}
    assert who(to_node, "pod/default/d", "nodeport", "web") == {f"{N1}:30080": "a|b|c|d|e|f", f"{N2}:30080": "d?"}


def test_the_target_port_counts() -> None:
    """Rule 17: Service port 80 to pods' 8080; the rule says one or the other."""
    quiet = "{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: demo}, dns: {enabled: false}}"
    pods = pod("default/c", "pod=c", "node1"), pod("default/a", "pod=a", "node2")
    service = (
        "{apiVersion: v1, kind: Service, metadata: {name: s}, "
        "spec: {selector: {pod: a}, ports: [{port: 8000, targetPort: 81}]}}"
    )
    for port, want in ((81, "ok"), (8000, "blocked")):
        egress = f"podSelector: {{}}, policyTypes: [Egress], egress: [{{ports: [{{port: {port}}}]}}]"
        objects = up("\n---\n".join((quiet, *pods, service, written(egress, "default/p"))))
        (item,) = verify.only(verify.expectations(objects), "^service: pod/default/c → svc/default/s ")
        assert item.want == want


# --- names ------------------------------------------------------------------------------------------------------------

TO_DNS = (
    "egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}], "
    "ports: [{port: 53, protocol: UDP}%s]}]"
)


@pytest.mark.parametrize(
    ("egress", "expected"),
    [
        ("egress: []", {"UDP": "blocked", "TCP": "blocked"}),
        (TO_DNS % "", {"UDP": "ok", "TCP": "blocked"}),
        (TO_DNS % ", {port: 53}", {"UDP": "ok", "TCP": "ok"}),
    ],
)
def test_dns_is_not_special(egress: str, expected: dict[str, str]) -> None:
    objects = up(
        "\n---\n".join(
            (pod("default/a", "pod=a"), written(f"podSelector: {{}}, policyTypes: [Egress], {egress}", "default/p"))
        )
    )
    asked = [item for item in verify.expectations(objects) if item.group == "dns" and item.source == "pod/default/a"]
    assert asked
    assert {item.protocol: item.want for item in asked} == expected


def test_dns_pods_of_which_one_is_closed() -> None:
    closed = written("podSelector: {matchExpressions: [{key: statefulset, operator: DoesNotExist}]}", "kube-system/p")
    objects = up("\n---\n".join((pod("default/a", "pod=a"), closed)))
    assert {item.want for item in verify.expectations(objects) if item.group == "dns"} >= {"blocked"}


# --- asked and judged -------------------------------------------------------------------------------------------------


def test_silence_that_is_wanted_is_asked_once() -> None:
    items = {item.name: item for item in verify.expectations(A_CLOSED)}
    tries = {
        name: question(items[name]).tries
        for name in (
            "pod-to-pod: pod/default/d → pod/default/a TCP 10.244.1.2:80",
            "service: pod/default/d → svc/default/web TCP 10.96.0.10:80",
            "pod-to-pod: pod/default/a → pod/default/d TCP 10.244.2.2:80",
        )
    }
    assert list(tries.values()) == [1, 1, 0]


def one(**more: Any) -> Expectation:
    return Expectation(
        group="g", source="s", netns="n", target="t", protocol="TCP", address="10.0.0.1", port=80, **more
    )


def said(pod_: str) -> Answer:
    body = f'{{"pod": "{pod_}", "namespace": "default", "client": "10.0.0.9:1"}}'
    return Answer("ok", b"HTTP/1.1 200 OK\r\n\r\n" + body.encode(), ("10.0.0.9", 1))


TIMEOUT, REFUSED, RESET = Answer("timeout"), Answer("refused"), Answer("reset")
EITHER = "default/a or default/b answers; no answer where policy forbids the chosen one"
SOME = {"answers": frozenset({"default/a", "default/b"}), "partly": True}


@pytest.mark.parametrize(
    ("more", "answers", "reason"),
    [
        ({"want": "blocked"}, [TIMEOUT], ""),
        ({"want": "blocked"}, [REFUSED], ""),  # REJECT
        ({"want": "blocked"}, [Answer("unreachable")], ""),
        ({"want": "blocked"}, [RESET], "the connection was reset, wanted blocked by policy"),
        ({"want": "blocked"}, [said("a")], "default/a answered, wanted blocked by policy"),
        (SOME, [said("a")], ""),
        (SOME, [TIMEOUT], ""),
        (SOME, [said("c")], f"default/c answered, wanted {EITHER}"),
        ({**SOME, "spread": True, "calls": 60}, [said("a")] * 20 + [said("b")] * 20 + [TIMEOUT] * 20, ""),
        ({**SOME, "spread": True, "calls": 60}, [said("a")] * 40 + [TIMEOUT] * 20,
         "default/b never answered in 40 calls (default/a 40x)"),
        ({**SOME, "spread": True, "calls": 60}, [TIMEOUT] * 60, "nobody answered in 60 calls"),
        ({**SOME, "sticky": True, "calls": 3}, [TIMEOUT] * 3, ""),
        ({**SOME, "sticky": True, "calls": 3}, [said("a")] * 3, ""),
        ({**SOME, "sticky": True, "calls": 3}, [said("a"), said("a"), TIMEOUT],
         "1 endpoints answered (default/a 2x) and 1 calls were blocked, wanted always the same one"),
    ],
)  # fmt: skip
def test_judged(more: dict[str, Any], answers: list[Answer], reason: str) -> None:
    assert judge(one(**more), answers).reason == reason


def test_where_nobody_is_isolated_the_expectations_are_as_without_policies() -> None:
    objects = with_policy({"podSelector": {"matchLabels": {"app": "nobody"}}})
    assert policy.index(objects).closed == {}
    assert verify.expectations(objects) == verify.expectations(PODS)


# --- host ports and userspace mode ------------------------------------------------------------------------------------

SERVED = "ports: [{containerPort: 80, hostPort: 8080}]"
A = "podSelector: {matchLabels: {pod: a}}"
PLAIN = "ports: [{containerPort: 80}]"


@pytest.mark.parametrize(
    ("spec", "blocked"),
    [
        (A, {"host/client", "node/node2", "pod/default/b"}),
        # its own port counts, and who comes: another node's pod is hidden behind that node
        (f"{A}, ingress: [{{ports: [{{port: 8080}}]}}]",
         {"host/client", "node/node2", "pod/default/b"}),
        (f"{A}, ingress: [{{from: [{{ipBlock: {{cidr: 203.0.113.0/24}}}}], ports: [{{port: 80}}]}}]",
         {"node/node2", "pod/default/b"}),
        (f"{A}, ingress: [{{from: [{{ipBlock: {{cidr: 172.18.0.3/32}}}}]}}]", {"host/client"}),
        ("podSelector: {matchLabels: {pod: b}}, policyTypes: [Egress]", {"pod/default/b"}),
    ],
)  # fmt: skip
def test_host_ports(spec: str, blocked: set[str]) -> None:
    pods = pod("default/a", "pod=a", "node1", ports=SERVED), pod("default/b", "pod=b", "node2", ports=PLAIN)
    objects = up("\n---\n".join((*pods, written(spec, "default/p"))))
    asked = [item for item in verify.expectations(objects) if item.group == "hostport"]
    assert {item.source for item in asked} == {
        "host/client", "node/node1", "node/node2", "pod/default/a", "pod/default/b",
    }  # fmt: skip
    assert {item.source for item in asked if item.want == "blocked"} == blocked


def test_userspace_mode_says_what_is_known() -> None:
    """All endpoints open to the node of the one who asks, or nothing is expected; pods among themselves as ever."""
    said = model.cluster_of(PODS)
    networking = msgspec.structs.replace(said.networking, kubeProxyMode="userspace")
    base = {**PODS, model.key_of(said): msgspec.structs.replace(said, networking=networking)}
    objects = with_policy({"podSelector": only("a")}, base)
    assert who(objects, "node/node1", "service", "web") == {"10.96.0.10:80": "a|b|c|d|e|f"}  # a's own node
    assert who(objects, "node/node2", "service", "web") == {}
    assert who(objects, "node/node2", "service", "none") == {"10.96.0.13:80": "closed"}
    wants = {
        item.want
        for item in verify.expectations(objects)
        if item.name.startswith("pod-to-pod: pod/default/d → pod/default/a")
    }
    assert wants == {"blocked"}
    out = with_policy({"podSelector": only("a", "b", "c"), "policyTypes": ["Egress"]}, base)
    assert who(out, "pod/default/a", "service", "web") == {}
