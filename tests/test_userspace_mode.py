"""Userspace mode around its rules: warnings, verify's expectations, stale UDP entries, and words about its rules."""

import msgspec
import pytest

from nsnet import model, verify
from nsnet.cli.explain import rule_lines
from nsnet.kernel.probe import Answer
from nsnet.model import Service
from nsnet.render import conntrack, render
from nsnet.state import Conntrack
from nsnet.verify import Expectation, describe
from nsnet.verify.judge import judge
from tests.built import Place, built
from tests.controlled import events, up
from tests.verifying import cluster

CLUSTER = "{{apiVersion: nsnet/v1, kind: Cluster, networking: {{kubeProxyMode: {}}}}}\n---\n"
SERVICE = "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{{}}}}}\n"


# --- what it never had ------------------------------------------------------------------------------------------------

ASKED = [
    ("type: NodePort, externalTrafficPolicy: Local, ports: [{port: 80}]", ["externalTrafficPolicy Local"]),
    ("internalTrafficPolicy: Local, ports: [{port: 80}]", ["internalTrafficPolicy Local"]),
    ("trafficDistribution: PreferClose, ports: [{port: 80}]", ["trafficDistribution PreferClose"]),
    ("ports: [{port: 7, protocol: SCTP}]", ["SCTP"]),
    (
        "type: LoadBalancer, externalTrafficPolicy: Local, loadBalancerSourceRanges: [10.0.0.0/8], ports: [{port: 80}]",
        ["externalTrafficPolicy Local", "healthCheckNodePort", "loadBalancerSourceRanges"],
    ),
    ("type: NodePort, sessionAffinity: ClientIP, externalIPs: [192.0.2.1], ports: [{port: 80}]", []),
    ("clusterIP: None, internalTrafficPolicy: Local, ports: [{port: 80}]", []),
]


def warnings(mode: str, spec: str) -> list[str]:
    said = events(up(CLUSTER.format(mode) + SERVICE.format(spec)))
    return [line for line in said if "userspace mode" in line]


@pytest.mark.parametrize(("spec", "features"), ASKED, ids=[" ".join(features) or spec for spec, features in ASKED])
def test_a_service_is_told_what_the_mode_never_had(spec: str, features: list[str]) -> None:
    found = warnings("userspace", spec)
    assert len(found) == bool(features)
    for line in found:
        assert all(f"no {feature}" in line for feature in features)
    assert warnings("iptables", spec) == warnings("nftables", spec) == []


def test_node_port_addresses_are_told_too() -> None:
    told = """
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: userspace
nodePortAddresses: [10.0.0.0/8]
"""
    assert any("nodePortAddresses have no effect" in line for line in events(up(told)))


# --- what verify expects ----------------------------------------------------------------------------------------------


def userspace() -> dict[model.Key, model.Object]:
    objects = cluster()
    found = model.cluster_of(objects)
    networking = msgspec.structs.replace(found.networking, kubeProxyMode="userspace")
    return objects | {model.key_of(found): msgspec.structs.replace(found, networking=networking)}


OBJECTS = userspace()


def found(pattern: str) -> set[str]:
    return {describe(item) for item in verify.only(verify.expectations(OBJECTS), pattern)}


WANTED = [
    # without endpoint: taken and closed; a datagram is lost
    ("^service: .* → svc/default/none TCP", {"the connection is taken and closed"}),
    ("^outside: host/client → svc/default/none TCP", {"the connection is taken and closed"}),
    ("^service: .* → svc/default/closed TCP", {"the connection is taken and closed"}),
    # policies are not known: pods of every node, from everywhere
    ("^service: node/node2 → svc/default/local TCP", {"default/a or default/b answers and sees the node"}),
    ("^outside: host/client → svc/default/near TCP", {"default/a or default/b answers and sees the node"}),
]


@pytest.mark.parametrize(("pattern", "wanted"), WANTED)
def test_what_is_expected(pattern: str, wanted: set[str]) -> None:
    assert found(pattern) == wanted


def test_the_node_is_seen_under_any_of_its_addresses() -> None:
    (item,) = verify.only(verify.expectations(OBJECTS), "^service: node/node2 → svc/default/web TCP")
    assert item.seen_as == {"172.18.0.3", "10.244.2.0", "10.244.2.1"}


SEEN = Expectation(
    group="service", source="pod/default/a", netns="n", target="svc/default/web", protocol="TCP", address="10.96.0.1",
    port=80, answers=frozenset({"default/a"}), seen_as=frozenset({"10.244.1.1", "10.244.1.0"}),
)  # fmt: skip
SAID = b'{"pod": "a", "namespace": "default", "client": "%s:4711"}'


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (b"10.244.1.0", ""),
        (b"10.244.1.1", ""),
        (b"10.244.1.9", "default/a saw 10.244.1.9, wanted one of 10.244.1.0, 10.244.1.1"),
    ],
)
def test_another_address_than_the_nodes_is_wrong(client: bytes, reason: str) -> None:
    assert judge(SEEN, [Answer("ok", SAID % client, ("10.244.1.9", 4711))]).reason == reason


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        (Answer("reset"), True),
        (Answer("ok"), True),
        (Answer("ok", b"x"), False),
        (Answer("refused"), False),
        (Answer("timeout"), False),
    ],
)
def test_taken_and_closed(answer: Answer, ok: bool) -> None:
    closed = msgspec.structs.replace(SEEN, want="closed", answers=frozenset(), seen_as=frozenset())
    assert judge(closed, [answer]).ok is ok


# --- stale UDP entries ------------------------------------------------------------------------------------------------

DNS = (
    CLUSTER.format("userspace")
    + """
{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: dns}}, spec: {nodeName: node1, containers: [{name: c}]}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.53
  selector: {app: dns}
  ports: [{port: 53, protocol: UDP, nodePort: 30053}]
"""
)


def test_udp_entries_lead_to_the_process_or_go() -> None:
    objects = up(DNS)
    known = conntrack.flows(objects)["demo.node.node1"]
    (port,) = {end.rpartition(":")[2] for end in known.services["10.96.0.53", 53]}
    here = [
        Conntrack("10.244.1.2", 4711, "10.96.0.53", 53, f"10.244.1.1:{port}"),
        Conntrack("172.18.0.2", 4711, "10.96.0.53", 53, f"172.18.0.2:{port}"),
        Conntrack("203.0.113.2", 4711, "172.18.0.2", 30053, f"172.18.0.2:{port}"),
    ]
    gone = Conntrack("10.244.1.2", 4712, "10.96.0.53", 53, "10.244.1.2:53")  # of another mode: to the pod itself
    state = {"demo.node.node1": frozenset({*here, gone})}
    assert [change.value for change in conntrack.stale(conntrack.flows(objects), state)] == [gone]


# --- rules, explained -------------------------------------------------------------------------------------------------

RULES = """\
default/web: ClusterIP 10.96.0.10:80/TCP
  -A KUBE-PORTALS-CONTAINER -d 10.96.0.10/32 -p tcp -m comment --comment "default/web" -m tcp --dport 80 \
-j REDIRECT --to-ports 63232
        to the Service's address 10.96.0.10:80: to the proxy process on port 63232, which picks the endpoint
  -A KUBE-PORTALS-HOST -d 10.96.0.10/32 -p tcp -m comment --comment "default/web" -m tcp --dport 80 \
-j DNAT --to-destination 172.18.0.2:63232
        the same from this node itself: to the proxy process at 172.18.0.2:63232
"""


def test_rules_of_a_service() -> None:
    objects = built({"node1": Place(pods="ab")}, services={"web": "10.96.0.10"}, mode="userspace")
    values = sorted(render(objects)["demo.node.node1"], key=lambda value: value.key)
    lines = list(rule_lines(objects, model.of(objects, Service), values))
    assert "\n".join(lines) == RULES
