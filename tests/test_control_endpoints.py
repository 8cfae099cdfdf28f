"""Endpoints and EndpointSlices, as Kubernetes' controllers write them (cases of the e2e suite where it has one)."""

# ruff: noqa: E501 - a row of a table is one line

from typing import Any

import msgspec

from nsnet import control, model
from nsnet.model import EndpointSlice, Objects
from tests.controlled import apply, delete, different, endpoints, key, listening, one, slices, up

ONE = "{apiVersion: nsnet/v1, kind: Cluster, nodes: 1, dns: {enabled: false}}\n---\n"
LABEL = "kubernetes.io/service-name"


def pod(name: str, labels: str, ports: str = "", spec: str = "") -> str:
    """`labels` and `ports` in YAML's flow style, without brackets."""
    return (
        f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{{labels}}}}}, spec: "
        f"{{{spec + ', ' if spec else ''}containers: [{{name: c, image: i, ports: [{ports}]}}]}}}}\n---\n"
    )


def svc(name: str, selector: str, ports: str, spec: str = "") -> str:
    chosen = f"selector: {{{selector}}}, " if selector else ""
    return (
        f"{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, "
        f"spec: {{{chosen}{spec + ', ' if spec else ''}ports: [{ports}]}}}}\n---\n"
    )


def piece(objects: Objects, service: str) -> EndpointSlice:
    (found,) = (item for item in model.of(objects, EndpointSlice) if item.metadata.labels.get(LABEL) == service)
    return found


# --- selectors --------------------------------------------------------------------------------------------------------


def test_a_selector_that_matches_no_pods() -> None:
    stored = up(svc("example-empty-selector", "does-not-match-anything: 'true'", "{port: 80}"))
    assert endpoints(stored, "example-empty-selector") == []
    assert slices(stored, "example-empty-selector") == [":"]
    found = piece(stored, "example-empty-selector")
    assert found.metadata.labels["endpointslice.kubernetes.io/managed-by"] == "endpointslice-controller.k8s.io"
    assert [(owner.kind, owner.name) for owner in found.metadata.ownerReferences] == [
        ("Service", "example-empty-selector")
    ]
    gone = delete(stored, "Service/example-empty-selector")
    assert not [item for item in gone if "example-empty-selector" in item.name]


E2E = (
    ONE
    + pod("pod1", "pod1: 'on', shared12: 'on'", "{name: example-name, containerPort: 3000}")
    + pod("pod2", "pod2: 'on', shared12: 'on'", "{name: example-name, containerPort: 3001}, {name: other-port, containerPort: 3002}")
    + svc("example-int-port", "pod1: 'on'", "{name: example, port: 80, targetPort: 3000}", "publishNotReadyAddresses: true")
    + svc("example-named-port", "shared12: 'on'", "{name: http, port: 80, targetPort: example-name}", "publishNotReadyAddresses: true")
)  # fmt: skip


def test_pods_matching_a_service() -> None:
    stored = up(E2E)
    assert endpoints(stored, "example-int-port") == ["10.244.1.2:example/3000"]
    assert slices(stored, "example-int-port") == ["10.244.1.2:example/3000"]
    assert endpoints(stored, "example-named-port") == ["10.244.1.2:http/3000", "10.244.1.3:http/3001"]
    assert slices(stored, "example-named-port") == ["10.244.1.2:http/3000", "10.244.1.3:http/3001"]
    (endpoint,) = piece(stored, "example-int-port").endpoints or ()
    assert endpoint.nodeName == "node1"
    assert endpoint.targetRef == model.ObjectReference("Pod", "pod1", "default")


def test_deleted_slices_and_endpoints_come_back() -> None:
    stored = up(E2E)
    derived = [item for item in stored if item.kind in ("Endpoints", "EndpointSlice")]
    without = {item: obj for item, obj in stored.items() if item not in derived}
    assert control.complete(without) == stored


def test_multiport_endpoints_come_and_go() -> None:
    text = ONE + svc("m", "app: x", "{name: one, port: 80, targetPort: svc1}, {name: two, port: 81, targetPort: svc2}")
    pod1, pod2 = (
        pod("pod1", "app: x", "{name: svc1, containerPort: 100}"),
        pod("pod2", "app: x", "{name: svc2, containerPort: 101}"),
    )
    stored = up(text)
    assert endpoints(stored, "m") == []
    stored = apply(stored, pod1)
    assert endpoints(stored, "m") == slices(stored, "m") == ["10.244.1.2:one/100"]
    stored = apply(stored, pod2)
    assert endpoints(stored, "m") == slices(stored, "m") == ["10.244.1.2:one/100", "10.244.1.3:two/101"]
    stored = delete(stored, "Pod/pod1")
    assert endpoints(stored, "m") == slices(stored, "m") == ["10.244.1.3:two/101"]
    assert endpoints(delete(stored, "Pod/pod2"), "m") == []


def test_pods_of_other_namespaces_labels_and_ends_are_not_meant() -> None:
    text = (
        ONE
        + svc("a", "app: x, tier: front", "{port: 80}")
        + pod("full", "app: x, tier: front")
        + pod("half", "app: x")
        + pod("other", "app: x, tier: front").replace("{name: other,", "{name: other, namespace: ns2,")
        + pod("over", "app: x, tier: front").replace("spec:", "status: {phase: Succeeded}, spec:")
    )
    assert endpoints(up(text), "a") == [f"{one(up(text), 'Pod/full').status.podIP}:80"]  # type: ignore[attr-defined]


def test_not_ready_and_published_all_the_same() -> None:
    text = ONE + pod("a", "app: x", "{containerPort: 80}") + pod("b", "app: x", "{containerPort: 80}")
    text += svc("plain", "app: x", "{port: 80}") + svc("all", "app: x", "{port: 80}", "publishNotReadyAddresses: true")
    stored = up(text)
    looked = control.complete(stored, listening(stored, silent=["b"]))
    assert endpoints(looked, "plain") == ["10.244.1.2,!10.244.1.3:80"]
    assert slices(looked, "plain") == ["10.244.1.2,!10.244.1.3:80"]
    assert endpoints(looked, "all") == ["10.244.1.2,10.244.1.3:80"]
    says = [item.conditions for item in piece(looked, "all").endpoints or ()]
    assert says[1] == model.EndpointConditions(ready=True, serving=False, terminating=False)


def test_terminating_pods_serve_in_slices_only() -> None:
    grace = "terminationGracePeriodSeconds: 30"
    text = ONE + pod("a", "app: x", "", grace) + pod("b", "app: x", "", grace) + svc("s", "app: x", "{port: 80}")
    leaving = delete(up(text), "Pod/a")
    assert endpoints(leaving, "s") == ["10.244.1.3:80"]
    assert slices(leaving, "s") == ["~10.244.1.2,10.244.1.3:80"]


def test_a_headless_service_names_its_pods() -> None:
    text = ONE + pod("a", "app: x", "", "hostname: a-1, subdomain: db") + pod("b", "app: x", "", "hostname: b-1")
    stored = up(text + svc("db", "app: x", "{port: 80}", "clusterIP: None"))
    found = piece(stored, "db")
    assert found.metadata.labels["service.kubernetes.io/headless"] == ""
    assert [item.hostname for item in found.endpoints or ()] == ["a-1", None]
    assert [item.hostname for item in one(stored, "Endpoints/db").subsets[0].addresses] == ["a-1", ""]  # type: ignore[attr-defined]


def test_a_headless_service_without_ports() -> None:
    text = (
        ONE
        + pod("a", "app: x")
        + "{apiVersion: v1, kind: Service, metadata: {name: h}, spec: {clusterIP: None, selector: {app: x}}}"
    )
    assert endpoints(up(text), "h") == slices(up(text), "h") == ["10.244.1.2:"]


def test_host_network_pods_are_endpoints_at_their_node() -> None:
    text = ONE + pod("a", "app: x", "{containerPort: 80}", "hostNetwork: true") + svc("s", "app: x", "{port: 80}")
    assert endpoints(up(text), "s") == ["172.18.0.2:80"]


def test_zones_and_hints() -> None:
    zoned = (
        "{apiVersion: nsnet/v1, kind: Cluster, nodes: [{name: a, labels: {topology.kubernetes.io/zone: east}}]}\n---\n"
    )
    text = zoned + pod("p", "app: x") + svc("s", "app: x", "{port: 80}")
    for distribution, zones, nodes in (("PreferSameZone", ["east"], []), ("PreferSameNode", ["east"], ["a"])):
        near = text.replace("selector:", f"trafficDistribution: {distribution}, selector:")
        (endpoint,) = piece(up(near), "s").endpoints or ()
        assert endpoint.zone == "east"
        assert endpoint.hints
        assert [item.name for item in endpoint.hints.forZones or ()] == zones
        assert [item.name for item in endpoint.hints.forNodes or ()] == nodes
    (plain,) = piece(up(text), "s").endpoints or ()
    assert plain.hints is None


def test_at_most_a_hundred_endpoints_in_a_slice() -> None:
    rs = (
        "{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: w}, spec: {replicas: 230, selector: {matchLabels: "
        "{app: x}}, template: {metadata: {labels: {app: x}}, spec: {containers: [{name: c, image: i}]}}}}\n---\n"
    )
    stored = up(ONE + rs + svc("s", "app: x", "{port: 80}"))
    found = [item for item in model.of(stored, EndpointSlice) if item.metadata.labels.get(LABEL) == "s"]
    assert sorted(len(item.endpoints or ()) for item in found) == [30, 100, 100]
    assert len({endpoint.addresses for item in found for endpoint in item.endpoints or ()}) == 230


# --- what changes when the Service does -------------------------------------------------------------------------------


def test_a_service_that_loses_its_selector_or_becomes_a_name() -> None:
    stored = up(ONE + pod("a", "app: x") + svc("s", "app: x", "{port: 80}"))
    for text in (
        svc("s", "", "{port: 80}"),
        "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {type: ExternalName, externalName: example.com}}",
    ):
        after = apply(stored, text)
        assert key("Endpoints/s") not in after
        assert slices(after, "s") == []


def test_a_change_of_target_port() -> None:
    stored = up(ONE + pod("a", "app: x") + svc("s", "app: x", "{port: 80}"))
    assert slices(apply(stored, svc("s", "app: x", "{port: 80, targetPort: 9090}")), "s") == ["10.244.1.2:9090"]


def test_the_labels_of_a_service_are_those_of_its_endpoints() -> None:
    text = ONE + svc("s", "app: x", "{port: 80}").replace("{name: s}", "{name: s, labels: {team: blue}}")
    stored = up(text)
    assert piece(stored, "s").metadata.labels["team"] == "blue"
    assert one(stored, "Endpoints/s").metadata.labels["team"] == "blue"  # type: ignore[attr-defined]


# --- written by hand --------------------------------------------------------------------------------------------------

HAND = """
apiVersion: v1
kind: Endpoints
metadata: {name: ext, labels: {team: blue}}
subsets:
- addresses: [{ip: 10.9.0.1}, {ip: 10.9.0.2}]
  notReadyAddresses: [{ip: 10.9.0.3}]
  ports: [{name: http, port: 8080}]
---
"""


def test_endpoints_written_by_hand_are_mirrored() -> None:
    stored = up(svc("ext", "", "{name: http, port: 80}") + HAND)
    assert slices(stored, "ext") == ["10.9.0.1,10.9.0.2,!10.9.0.3:http/8080"]
    found = piece(stored, "ext")
    assert found.metadata.labels["endpointslice.kubernetes.io/managed-by"] == "endpointslicemirroring-controller.k8s.io"
    assert found.metadata.labels["team"] == "blue"
    followed = apply(stored, HAND.replace("10.9.0.2", "10.9.0.7"))
    assert slices(followed, "ext") == ["10.9.0.1,10.9.0.7,!10.9.0.3:http/8080"]
    assert piece(followed, "ext").metadata.name == found.metadata.name
    assert slices(delete(stored, "Endpoints/ext"), "ext") == []


def test_endpoints_that_nobody_mirrors() -> None:
    skip = HAND.replace("{team: blue}", "{endpointslice.kubernetes.io/skip-mirror: 'true'}")
    assert slices(up(svc("ext", "", "{name: http, port: 80}") + skip), "ext") == []
    assert slices(up(HAND), "ext") == []  # no Service
    selected = up(ONE + svc("ext", "app: x", "{name: http, port: 80}") + HAND + pod("a", "app: x"))
    assert slices(selected, "ext") == ["10.244.1.2:http/80"]
    assert endpoints(selected, "ext") == ["10.244.1.2:http/80"]  # the controller writes over them


SLICES = """
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: one, labels: {kubernetes.io/service-name: c}},
 addressType: IPv4, endpoints: [{addresses: [10.9.0.1]}], ports: [{name: port80, port: 8090}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: two, labels: {kubernetes.io/service-name: c}},
 addressType: IPv4, endpoints: [{addresses: [10.9.0.2]}], ports: [{name: port81, port: 8090}]}
---
"""


def test_slices_written_by_hand_are_left_alone() -> None:
    text = svc("c", "", "{name: port80, port: 80}, {name: port81, port: 81}") + SLICES
    stored = up(text)
    assert slices(stored, "c") == ["10.9.0.1:port80/8090", "10.9.0.2:port81/8090"]
    assert key("Endpoints/c") not in stored
    assert slices(delete(stored, "EndpointSlice/two"), "c") == ["10.9.0.1:port80/8090"]


def test_a_slice_of_somebody_else_by_the_name_that_would_be_chosen() -> None:
    text = ONE + pod("a", "app: x") + svc("s", "app: x", "{port: 80}")
    name = piece(up(text), "s").metadata.name
    foreign = SLICES.split("---", maxsplit=1)[0].replace("name: one", f"name: {name}") + "---\n"
    stored = up(text + foreign)
    assert slices(stored, "s") == ["10.244.1.2:80"]
    assert slices(stored, "c") == ["10.9.0.1:port80/8090"]


# --- what need not change ---------------------------------------------------------------------------------------------


def test_only_what_a_change_concerns_is_a_new_instance() -> None:
    text = ONE + "".join(
        pod(f"p{n}", f"app: x{n}", "{containerPort: 80}") + svc(f"s{n}", f"app: x{n}", "{port: 80}") for n in range(3)
    )
    stored = up(text)
    looked = control.complete(stored, listening(stored))
    silent = control.complete(looked, listening(looked, silent=["p1"]))
    name = piece(looked, "s1").metadata.name
    assert set(different(looked, silent)) == {
        "Pod default/p1", "Endpoints default/s1", f"EndpointSlice default/{name}",
    }  # fmt: skip
    back = control.complete(silent, listening(looked))
    assert back == looked


def test_a_slice_that_somebody_changed_is_mended() -> None:
    stored = up(ONE + pod("a", "app: x") + svc("s", "app: x", "{port: 80}"))
    found = piece(stored, "s")
    bent: Any = msgspec.structs.replace(found, endpoints=())
    assert control.complete({**stored, model.key_of(found): bent}) == stored
