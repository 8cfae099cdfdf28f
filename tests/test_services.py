"""What a node must do for a Service port: one table per choice kube-proxy makes, with its upstream name."""

from typing import Any

import pytest

from nsnet.model import Key, Object, by_key, from_doc
from nsnet.render import services
from nsnet.render.services import ServicePortInfo
from tests import worlds


def slices(*endpoints: dict[str, Any], ports: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    metadata = {"name": more.pop("name", "s-1"), "namespace": "t"}
    labels = {"kubernetes.io/service-name": "s", **more.pop("labels", {})}
    said = ports or [{"port": 80}]
    return {"kind": "EndpointSlice", "metadata": {**metadata, "labels": labels}, "endpoints": list(endpoints),
            "ports": said, **more}  # fmt: skip


def service(**spec: Any) -> dict[str, Any]:
    metadata = {"name": "s", "namespace": "t", **spec.pop("metadata", {})}
    status = {"loadBalancer": {"ingress": spec.pop("ingress", [])}}
    whole = {"clusterIP": "10.96.0.9", "ports": [{"port": 80}], **spec}
    return {"kind": "Service", "metadata": metadata, "spec": whole, "status": status}


def at(ip: str, node: str = "node1", flags: str = "R", **hints: list[str]) -> dict[str, Any]:
    """An endpoint; flags: R ready, S serving, T terminating."""
    conditions = {"ready": "R" in flags, "serving": "R" in flags or "S" in flags, "terminating": "T" in flags}
    named = {kind: [{"name": name} for name in said] for kind, said in hints.items()}
    return {"addresses": [ip], "nodeName": node, "conditions": conditions, "hints": named}


def objects(*docs: dict[str, Any]) -> dict[Key, Object]:
    return by_key([from_doc(doc) for doc in docs])


def seen(*docs: dict[str, Any], node: str = "node1") -> list[ServicePortInfo]:
    return worlds.infos(objects(*docs), worlds.node(node))


def only(*docs: dict[str, Any], node: str = "node1") -> ServicePortInfo:
    (info,) = seen(*docs, node=node)
    return info


def ips(targets: tuple[services.Target, ...]) -> str:
    return " ".join(target.ip.rpartition(".")[2] for target in targets)


INTERNAL = {"internalTrafficPolicy": "Local"}
LOCAL = {"type": "NodePort", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30000}]}


@pytest.mark.parametrize(
    ("why", "spec", "endpoints", "cluster", "local", "has_endpoints"),
    [
        ("ready ones", {}, [at("10.0.0.1"), at("10.0.0.2", flags="")], "1", "", True),
        ("sorted as strings", {}, [at("10.0.0.2"), at("10.0.0.10"), at("10.0.0.1")], "10 1 2", "", True),
        ("none", {}, [], "", "", False),
        ("unready only", {}, [at("10.0.0.1", flags="")], "", "", False),
        ("a ready one beats ending ones", {}, [at("10.0.0.1", flags="ST"), at("10.0.0.2")], "2", "", True),
        ("ending ones serve when none is ready", {}, [at("10.0.0.1", flags="ST")], "1", "", True),
        ("an ending one that serves no more", {}, [at("10.0.0.1", flags="T")], "", "", False),
        ("publishNotReady: ready though ending", {}, [at("10.0.0.1", flags="RT")], "1", "", True),
        ("Local: both sets", LOCAL, [at("10.0.0.1"), at("10.0.0.2", "node2")], "1 2", "1", True),
        ("Local: none here", LOCAL, [at("10.0.0.2", "node2")], "2", "", True),
        ("Local: an ending one here", LOCAL, [at("10.0.0.1", flags="ST"), at("10.0.0.2", "node2")], "2", "1", True),
        ("internal Local", INTERNAL, [at("10.0.0.1"), at("10.0.0.2", "node2")], "", "1", True),
        ("internal Local, none here", INTERNAL, [at("10.0.0.2", "node2")], "", "", True),
        ("on a ClusterIP it means nothing", {"externalTrafficPolicy": "Local"}, [at("10.0.0.1")], "1", "", True),
    ],
)  # fmt: skip
def test_usable_endpoints(
    why: str, spec: dict[str, Any], endpoints: list[dict[str, Any]], cluster: str, local: str, has_endpoints: bool
) -> None:
    info = only(service(**spec), slices(*endpoints))
    assert (ips(info.cluster), ips(info.local), info.has_endpoints) == (cluster, local, has_endpoints), why


@pytest.mark.parametrize(
    ("why", "endpoints", "chosen"),
    [
        ("own zone", [at("10.0.0.1", forZones=["a"]), at("10.0.0.2", forZones=["b"])], "1"),
        ("no hint for this zone", [at("10.0.0.1", forZones=["c"]), at("10.0.0.2", forZones=["b"])], "1 2"),
        ("one without a hint", [at("10.0.0.1", forZones=["a"]), at("10.0.0.2")], "1 2"),
        ("an unready one needs none", [at("10.0.0.1", forZones=["a"]), at("10.0.0.3", forZones=["b"]),
                                       at("10.0.0.2", flags="")], "1"),
        ("own node first", [at("10.0.0.1", forNodes=["node1"], forZones=["a"]),
                            at("10.0.0.2", forNodes=["node2"], forZones=["a"])], "1"),
        ("no endpoint for this node: its zone", [at("10.0.0.1", forNodes=["node3"], forZones=["a"]),
                                                 at("10.0.0.2", forNodes=["node2"], forZones=["b"])], "1"),
        ("ending ones, hints or not", [at("10.0.0.1", flags="ST", forZones=["b"])], "1"),
    ],
)  # fmt: skip
def test_topology_hints(why: str, endpoints: list[dict[str, Any]], chosen: str) -> None:
    assert ips(only(service(), slices(*endpoints)).cluster) == chosen, why


def test_local_sets_ignore_hints() -> None:
    info = only(service(**LOCAL), slices(at("10.0.0.1", forZones=["b"]), at("10.0.0.2", "node2", forZones=["a"])))
    assert (ips(info.cluster), ips(info.local)) == ("2", "1")
    assert ips(info.targets) == "1 2"


@pytest.mark.parametrize(
    ("why", "spec"),
    [
        ("headless", {"clusterIP": "None"}),
        ("no address yet", {"clusterIP": ""}),
        ("ExternalName", {"type": "ExternalName"}),
        ("another proxy's", {"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "x"}}}),
        ("only IPv6", {"clusterIP": "fd00::9", "clusterIPs": ["fd00::9"]}),
    ],
)
def test_skipped_services(why: str, spec: dict[str, Any]) -> None:
    assert seen(service(**spec), slices(at("10.0.0.1"))) == [], why


@pytest.mark.parametrize(
    ("why", "slice_"),
    [
        ("headless slice", slices(at("10.0.0.1"), labels={"service.kubernetes.io/headless": ""})),
        ("another Service's", slices(at("10.0.0.1"), labels={"kubernetes.io/service-name": "x"})),
        ("FQDN", slices(at("example.com"), addressType="FQDN")),
        ("IPv6", slices(at("fd00::1"), addressType="IPv6")),
        ("another port name", slices(at("10.0.0.1"), ports=[{"name": "x", "port": 80}])),
        ("another protocol", slices(at("10.0.0.1"), ports=[{"port": 80, "protocol": "UDP"}])),
        ("no port number", slices(at("10.0.0.1"), ports=[{}])),
    ],
)
def test_skipped_slices(why: str, slice_: dict[str, Any]) -> None:
    assert not only(service(), slice_).has_endpoints, why


def test_slices_are_joined_by_port_name_and_their_number_counts() -> None:
    spec = {"ports": [{"name": "p", "port": 80, "targetPort": 1}, {"name": "q", "port": 81, "protocol": "UDP"}]}
    first = slices(at("10.0.0.1"), at("10.0.0.2"), ports=[{"name": "p", "port": 8080}], name="s-1")
    second = slices(at("10.0.0.1"), at("10.0.0.3", flags=""), ports=[{"name": "p", "port": 8080}], name="s-2")
    third = slices(
        at("10.0.0.4"), ports=[{"name": "p", "port": 9}, {"name": "q", "port": 9, "protocol": "UDP"}], name="s-3"
    )
    p, q = seen(service(**spec), first, second, third)
    assert (p.name, p.protocol, [str(target) for target in p.cluster]) == (
        "t/s:p", "tcp", ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.4:9"],
    )  # fmt: skip
    assert (q.name, q.protocol, [str(target) for target in q.cluster]) == ("t/s:q", "udp", ["10.0.0.4:9"])


def test_of_two_with_one_address_the_running_one_counts() -> None:
    ending, running = at("10.0.0.1", "node2", flags="ST"), at("10.0.0.1", "node1")
    for first, second in ((ending, running), (running, ending)):
        info = only(service(**LOCAL), slices(first, name="s-1"), slices(second, name="s-2"))
        assert ips(info.local) == "1"


def test_conditions_nobody_set() -> None:
    assert only(service(), slices({"addresses": ["10.0.0.1", "10.0.0.7"]})).cluster == (
        services.Target("10.0.0.1", 80),
    )


def test_addresses_of_the_service() -> None:
    spec = {
        "clusterIP": "10.96.0.041",
        "externalIPs": ["198.51.100.7", "fd00::7"],
        "ingress": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "ipMode": "Proxy"}, {"hostname": "x"},
                    {"ip": "192.0.2.3", "ipMode": "VIP"}],
    }  # fmt: skip
    info = only(service(**spec))
    assert info.cluster_ip == "10.96.0.41"
    assert info.external_ips == ("198.51.100.7",)
    assert info.load_balancer_vips == ("192.0.2.1", "192.0.2.3")


@pytest.mark.parametrize(
    ("said", "ranges", "node_in_ranges"),
    [
        ([], (), False),
        ([" 203.0.113.5/25 ", "fd00::/8"], ("203.0.113.0/25",), False),
        (["172.18.0.0/16"], ("172.18.0.0/16",), True),
        (["10.0.0.0/8", "0.0.0.0/0"], (), False),
        (["172.030.0.041/32"], ("172.30.0.41/32",), False),
    ],
)
def test_source_ranges(said: list[str], ranges: tuple[str, ...], node_in_ranges: bool) -> None:
    info = only(service(loadBalancerSourceRanges=said))
    assert (info.source_ranges, info.node_in_ranges) == (ranges, node_in_ranges)


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        ({}, 0),
        ({"sessionAffinity": "ClientIP"}, 10800),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, 5),
    ],
)
def test_affinity(spec: dict[str, Any], seconds: int) -> None:
    assert only(service(**spec)).affinity_seconds == seconds


def test_health_check_node_port_needs_policy_local() -> None:
    spec = {**LOCAL, "type": "LoadBalancer", "healthCheckNodePort": 31000}
    assert only(service(**spec)).health_check_node_port == 31000
    assert only(service(**{**spec, "externalTrafficPolicy": "Cluster"})).health_check_node_port == 0


def test_dual_stack_takes_the_address_of_the_family() -> None:
    spec = {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"]}
    six = slices(at("fd00::1"), addressType="IPv6", name="s-6")
    four, node = slices(at("10.0.0.1"), name="s-4"), worlds.node("node1")
    (info,) = worlds.infos(objects(service(**spec), six, four), node, "ip6")
    assert (info.cluster_ip, [str(target) for target in info.cluster]) == ("fd00::9", ["[fd00::1]:80"])


def test_what_did_not_change_is_the_same_object_for_every_node() -> None:
    first = objects(service(), slices(at("10.0.0.1")))
    again = objects(service(), slices(at("10.0.0.1")))
    one = worlds.infos(first, worlds.node("node1"))[0]
    assert worlds.infos(again, worlds.node("node2"))[0] is one
    changed = objects(service(), slices(at("10.0.0.2")))
    assert ips(worlds.infos(changed, worlds.node("node1"))[0].cluster) == "2"
    assert worlds.infos(first, worlds.node("node1"))[0] == one
