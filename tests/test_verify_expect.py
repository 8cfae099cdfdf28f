"""What verify expects, in the field's words: read this as the list of what a cluster must do."""

from collections import Counter
from collections.abc import Callable

import msgspec
import pytest

from nsnet import model, verify
from nsnet.errors import InputError, ObjectError
from nsnet.kernel.probe import Learned
from nsnet.model import Check, Endpoint, EndpointConditions, EndpointHints, EndpointSlice, ForZone, Node, ServiceSpec
from nsnet.verify import Expectation, describe
from tests.built import Place, built, large
from tests.verifying import Objects, cluster, service

OBJECTS = cluster()
ALL = verify.expectations(OBJECTS)


def found(pattern: str, objects: Objects = OBJECTS) -> dict[str, str]:
    """Name → what is expected."""
    return {item.name: describe(item) for item in verify.only(verify.expectations(objects), pattern)}


def who(source: str, group: str, service_: str, objects: Objects = OBJECTS) -> dict[str, str]:
    """address:port → the endpoints that may answer, or what comes instead."""
    return {
        f"{item.address}:{item.port}": "|".join(sorted(name.removeprefix("default/") for name in item.answers))
        or item.want
        for item in verify.expectations(objects)
        if item.source == source and item.group == group and item.target == f"svc/default/{service_}"
    }


def test_from_one_pod_to_another() -> None:
    assert found("pod-to-pod: pod/default/a → pod/default/d ") == {
        "pod-to-pod: pod/default/a → pod/default/d ICMP 10.244.2.2": "an answer",
        "pod-to-pod: pod/default/a → pod/default/d TCP 10.244.2.2:80": "default/d answers and sees the sender",
        "pod-to-pod: pod/default/a → pod/default/d UDP 10.244.2.2:53": "default/d answers and sees the sender",
    }


def test_all_ordered_pairs_and_every_port_from_elsewhere() -> None:
    pairs = Counter((item.source, item.target) for item in ALL if item.group == "pod-to-pod")
    assert len(pairs) == 6 * 5
    asked = {(item.target, item.port) for item in ALL if item.source == "node/node1" and item.group == "node-to-pod"}
    assert {("pod/default/a", 80), ("pod/default/a", 8080), ("pod/default/a", 53)} <= asked


def test_only_pods_of_one_bridge_learn_each_other() -> None:
    learns = {(item.source[-1], item.target[-1]): item.learns for item in ALL if item.group == "pod-to-pod"}
    assert learns["a", "d"] == ()
    assert learns["a", "b"] == (
        Learned("demo.pod.default.a", "10.244.1.3"),
        Learned("demo.pod.default.b", "10.244.1.2"),
    )


def test_a_reply_past_the_node_is_learned_too() -> None:
    """An endpoint on the client's own bridge answers it directly: it asks for the client's MAC address."""
    (item,) = (item for item in ALL if item.name.startswith("spread: pod/default/a → svc/default/local "))
    assert set(item.learns) == {
        Learned("demo.pod.default.a", "10.244.1.3"),
        Learned("demo.pod.default.b", "10.244.1.2"),
    }


def test_localhost_and_the_nodes_own_network() -> None:
    assert found("localhost: pod/default/(a|host) ") == {
        "localhost: pod/default/a → pod/default/a TCP 127.0.0.1:80": "default/a answers and sees 127.0.0.1",
        "localhost: pod/default/a → pod/default/a TCP 127.0.0.1:8080": "default/a answers and sees 127.0.0.1",
        "localhost: pod/default/a → pod/default/a UDP 127.0.0.1:53": "default/a answers and sees 127.0.0.1",
        "localhost: pod/default/host → pod/default/host TCP 127.0.0.1:6443": (
            "default/host answers and sees 127.0.0.1"
        ),
    }
    assert found("pod/default/host TCP 172.18.0.2:6443") == {
        "pod-to-node: pod/default/a → pod/default/host TCP 172.18.0.2:6443": "default/host answers and sees the sender",
        "pod-to-node: pod/default/b → pod/default/host TCP 172.18.0.2:6443": "default/host answers and sees the sender",
        "pod-to-node: pod/default/c → pod/default/host TCP 172.18.0.2:6443": "default/host answers and sees the sender",
        # flannel masquerades what pods send to other nodes' addresses:
        "pod-to-node: pod/default/d → pod/default/host TCP 172.18.0.2:6443": "default/host answers and sees 172.18.0.3",
        "pod-to-node: pod/default/e → pod/default/host TCP 172.18.0.2:6443": "default/host answers and sees 172.18.0.3",
        "pod-to-node: pod/default/f → pod/default/host TCP 172.18.0.2:6443": "default/host answers and sees 172.18.0.3",
        "node-to-node: node/node1 → pod/default/host TCP 172.18.0.2:6443": "default/host answers and sees the sender",
        "node-to-node: node/node2 → pod/default/host TCP 172.18.0.2:6443": "default/host answers and sees the sender",
        "outside: host/client → pod/default/host TCP 172.18.0.2:6443": "default/host answers and sees the sender",
    }


N1, N2 = "172.18.0.2", "172.18.0.3"


@pytest.mark.parametrize(
    ("source", "group", "name", "expected"),
    [
        ("node/node1", "service", "web", {"10.96.0.10:80": "a|b|c|d|e|f"}),
        ("pod/default/a", "service", "web", {"10.96.0.10:80": "a|b|c|d|e|f"}),
        ("node/node2", "nodeport", "web", {f"{N1}:30080": "a|b|c|d|e|f", f"{N2}:30080": "a|b|c|d|e|f"}),
        ("host/client", "outside", "web", {f"{N1}:30080": "a|b|c|d|e|f", f"{N2}:30080": "a|b|c|d|e|f"}),
        # without endpoints: REJECT, everywhere
        ("node/node1", "service", "none", {"10.96.0.13:80": "refused"}),
        ("host/client", "outside", "none", {f"{N1}:30013": "refused", f"{N2}:30013": "refused"}),
        # internalTrafficPolicy Local: DROP where there is none
        ("node/node1", "service", "local", {"10.96.0.14:80": "a|b"}),
        ("node/node2", "service", "local", {"10.96.0.14:80": "timeout"}),
        # externalTrafficPolicy Local: binds who comes from outside, not the node's own
        ("host/client", "outside", "near", {f"{N1}:30015": "a|b", f"{N2}:30015": "timeout"}),
        ("node/node1", "nodeport", "near", {f"{N1}:30015": "a|b", f"{N2}:30015": "timeout"}),
        ("node/node2", "nodeport", "near", {f"{N1}:30015": "a|b", f"{N2}:30015": "a|b"}),
        # pods that are there and do not listen
        ("node/node1", "service", "closed", {"10.96.0.16:80": "refused"}),
        (
            "host/client",
            "outside",
            "dns",
            {f"{N1}:30053": "a|b|c|d|e|f", f"{N2}:30053": "a|b|c|d|e|f", "10.96.0.11:80": "unreachable"},
        ),
    ],
)
def test_who_answers_for_a_service(source: str, group: str, name: str, expected: dict[str, str]) -> None:
    assert who(source, group, name) == expected


def test_what_the_endpoint_of_a_service_sees() -> None:
    """From a pod: the pod. From a node, or by a NodePort: somebody's masquerade. With policy Local: the client."""
    seen = {item.name: item.seen for item in ALL if item.answers}
    assert seen["service: pod/default/a → svc/default/web TCP 10.96.0.10:80"] == "sender"
    assert seen["service: node/node1 → svc/default/web TCP 10.96.0.10:80"] == ""
    assert seen["outside: host/client → svc/default/web TCP 172.18.0.2:30080"] == ""
    assert seen["outside: host/client → svc/default/near TCP 172.18.0.2:30015"] == "sender"
    (item,) = (item for item in ALL if item.name == "service: pod/default/a → svc/default/web TCP 10.96.0.10:80")
    assert item.hidden == {"default/a"}  # to itself: masqueraded, or the reply would not come back


def test_spread_and_affinity() -> None:
    spread = {item.target: item.calls for item in ALL if item.spread and item.source.startswith("pod/default/")}
    assert spread == {"svc/default/web": 90, "svc/default/dns": 90, "svc/default/local": 22, "svc/default/near": 22}
    sticky = [item for item in ALL if item.sticky]
    assert {(item.group, item.target, item.calls) for item in sticky} == {("affinity", "svc/default/sticky", 15)}
    assert "always the same in 15 calls" in describe(sticky[0])


def test_a_services_only_endpoint_asks_for_itself() -> None:
    objects = built({"node1": Place(pods="ab"), "node2": Place(pods="c")})
    objects |= service(objects, "one", "10.96.0.20", pods="b")
    assert found("^(hairpin|spread)", objects) == {
        "hairpin: pod/default/b → svc/default/one TCP 10.96.0.20:80": "default/b answers"
    }


def test_the_outside_reaches_nodes_and_nothing_behind_them() -> None:
    assert {name: words for name, words in found("^outside: .* (pod|svc)/").items() if "out of reach" in words} == {
        "outside: host/client → pod/default/a TCP 10.244.1.2:80": "out of reach",
        "outside: host/client → pod/default/b TCP 10.244.1.3:80": "out of reach",
        "outside: host/client → pod/default/c TCP 10.244.1.4:80": "out of reach",
        "outside: host/client → svc/default/closed TCP 10.96.0.16:80": "out of reach",
        "outside: host/client → svc/default/dns TCP 10.96.0.11:80": "out of reach",
    }


def endpoints(objects: Objects, name: str, change: Callable[[int, Endpoint], Endpoint]) -> Objects:
    """The objects with each endpoint of a Service changed."""
    key = model.Key("EndpointSlice", "default", f"{name}-x")
    item = objects[key]
    assert isinstance(item, EndpointSlice)
    changed = tuple(change(number, endpoint) for number, endpoint in enumerate(item.endpoints or ()))
    return {**objects, key: msgspec.structs.replace(item, endpoints=changed)}


def conditions(**said: bool) -> Callable[[int, Endpoint], Endpoint]:
    return lambda _, endpoint: msgspec.structs.replace(endpoint, conditions=EndpointConditions(**said))


def first_is(**said: bool) -> Callable[[int, Endpoint], Endpoint]:
    return lambda number, endpoint: endpoint if number else conditions(**said)(number, endpoint)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (first_is(ready=False), "b|c|d|e|f"),
        (first_is(ready=False, serving=True, terminating=True), "b|c|d|e|f"),
        (conditions(ready=False, serving=True, terminating=True), "a|b|c|d|e|f"),
        (conditions(ready=False, serving=False, terminating=True), "refused"),
        (conditions(ready=False), "refused"),
    ],
)
def test_who_is_usable(change: Callable[[int, Endpoint], Endpoint], expected: str) -> None:
    objects = endpoints(OBJECTS, "web", change)
    assert who("node/node1", "service", "web", objects) == {"10.96.0.10:80": expected}


def zoned(_: int, endpoint: Endpoint) -> Endpoint:
    zone = ForZone("near" if endpoint.nodeName == "node1" else "far")
    return msgspec.structs.replace(endpoint, hints=EndpointHints(forZones=(zone,)))


def test_hints_narrow_the_choice_if_every_endpoint_has_them() -> None:
    node = OBJECTS[model.Key("Node", "", "node1")]
    assert isinstance(node, Node)
    labels = {"topology.kubernetes.io/zone": "near"}
    placed = msgspec.structs.replace(node, metadata=msgspec.structs.replace(node.metadata, labels=labels))
    objects = endpoints({**OBJECTS, model.key_of(placed): placed}, "web", zoned)
    assert who("node/node1", "service", "web", objects) == {"10.96.0.10:80": "a|b|c"}
    assert who("node/node2", "service", "web", objects) == {"10.96.0.10:80": "a|b|c|d|e|f"}  # no zone, no filter
    some = endpoints(objects, "web", lambda number, item: item if number else msgspec.structs.replace(item, hints=None))
    assert who("node/node1", "service", "web", some) == {"10.96.0.10:80": "a|b|c|d|e|f"}


def test_what_is_not_proxied_is_not_asked() -> None:
    objects = built({"node1": Place(pods="ab")})
    objects |= service(objects, "headless", "None", spec=ServiceSpec())
    objects |= service(objects, "named", "")
    assert not [item for item in verify.expectations(objects) if item.target.startswith("svc/")]


def test_a_pod_that_runs_its_own_command_answers_in_its_own_words() -> None:
    objects = built({"node1": Place(pods="ab")})
    own = objects[model.Key("Pod", "default", "b")]
    meta = msgspec.structs.replace(own.metadata, annotations={"nsnet/run": "true"})
    objects[model.key_of(own)] = msgspec.structs.replace(own, metadata=meta)
    assert found("pod/default/a → pod/default/b", objects) == {
        "pod-to-pod: pod/default/a → pod/default/b ICMP 10.244.1.3": "an answer",
        "pod-to-pod: pod/default/a → pod/default/b TCP 10.244.1.3:80": "an answer",
    }


def test_refusals_are_rationed() -> None:
    """50 Services without endpoints: an outside host asks each node five times, the nodes' own loopbacks 40 times."""
    objects = built({"node1": Place(pods="ab"), "node2": Place(pods="cd")})
    for number in range(50):
        objects |= service(objects, f"none{number}", f"10.96.1.{number}", pods="", node_port=30100 + number)
    asked = Counter(
        (item.source, item.address if item.group != "service" else "near")
        for item in verify.expectations(objects)
        if item.want == "refused"
    )
    assert asked["host/client", N1] == asked["host/client", N2] == 5
    assert asked["node/node1", "near"] + asked["node/node1", N1] == 40
    assert asked["pod/default/a", "near"] + asked["pod/default/a", N1] == 5


def test_many_pods_are_sampled_and_everything_is_covered() -> None:
    objects = large(6, 50, services=3)
    some, again, other = (verify.expectations(objects, seed=seed) for seed in (1, 1, 2))
    assert some == again != other
    pairs = [(item.source, item.target) for item in some if item.group == "pod-to-pod" and item.protocol == "TCP"]
    assert len({source for source, _ in pairs}) == len({target for _, target in pairs}) == 300
    assert len(pairs) < 300 * 10
    nodes = {(source.split("-")[1], target.split("-")[1]) for source, target in pairs}
    assert len(nodes) == 36
    assert {item.target for item in some if item.group == "service"} == {f"svc/default/svc-{n}" for n in range(3)}


def test_all_pairs_are_all() -> None:
    everything = verify.expectations(large(3, 80), all_pairs=True)
    assert sum(item.group == "pod-to-pod" and item.protocol == "ICMP" for item in everything) == 240 * 239


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(item.name for item in ALL).items() if count > 1] == []


@pytest.mark.parametrize("pattern", ["no such thing", "("])
def test_a_filter_that_finds_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(InputError, match="--only"):
        verify.only(ALL, pattern)


# --- the topology's own checks ----------------------------------------------------------------------------------------


def with_check(source: str, to: str, expect: str = "ok") -> Objects:
    one = model.cluster_of(OBJECTS)
    return {**OBJECTS, model.key_of(one): msgspec.structs.replace(one, checks=(Check("it", to, source, expect),))}


@pytest.mark.parametrize(
    ("source", "to", "netns", "asked"),
    [
        ("pod/a", "http://web/hostname", "demo.pod.default.a", "TCP 10.96.0.10:80 http ok"),
        ("a", "http://web.default.svc.cluster.local:8080/x?y", "demo.pod.default.a", "TCP 10.96.0.10:8080 http ok"),
        ("pod/default/a", "tcp://d:80", "demo.pod.default.a", "TCP 10.244.2.2:80 connect ok"),
        ("node/node2", "udp://dns:53", "demo.node.node2", "UDP 10.96.0.11:53 line ok"),
        ("host/client", "icmp://node1", "demo.host.client", "ICMP 172.18.0.2:0 ping ok"),
        ("svc/web", "icmp://client", "demo.pod.default.a", "ICMP 203.0.113.2:0 ping ok"),
        ("pod/host", "tcp://192.0.2.1:7", "demo.node.node1", "TCP 192.0.2.1:7 connect ok"),
    ],
)
def test_checks(source: str, to: str, netns: str, asked: str) -> None:
    (item,) = verify.checks(with_check(source, to))
    assert (item.name, item.netns) == ("check: it", netns)
    assert f"{item.protocol} {item.address}:{item.port} {item.ask} {item.want}" == asked


@pytest.mark.parametrize(
    ("source", "to", "expect", "message"),
    [
        ("pod/zz", "tcp://web:80", "ok", "Cluster demo: checks[0].from: 'pod/zz' is not there"),
        ("deploy/zz", "tcp://web:80", "ok", "Cluster demo: checks[0].from: 'deploy/zz' is not there"),
        ("pod/a", "tcp://zz:80", "ok", "Cluster demo: checks[0].to: no address for 'zz'"),
        ("pod/a", "tcp://[::1]:80", "ok", "Cluster demo: checks[0].to: ::1: IPv6 is not configured on this cluster"),
        ("pod/a", "tcp://web", "ok", "Cluster demo: checks[0].to: 'tcp://web' cannot be asked"),
        ("pod/a", "ftp://web:21", "ok", "Cluster demo: checks[0].to: 'ftp://web:21' cannot be asked"),
        (
            "pod/a",
            "http://web:99999",
            "ok",
            "Cluster demo: checks[0].to: 'http://web:99999': Port out of range 0-65535",
        ),
        ("pod/a", "http://web/a b", "ok", "Cluster demo: checks[0].to: 'http://web/a b' has characters"),
        ("pod/a", "http://web/", "maybe", "Cluster demo: checks[0].expect: 'maybe' is unknown"),
    ],
)
def test_wrong_checks(source: str, to: str, expect: str, message: str) -> None:
    with pytest.raises(ObjectError) as caught:
        verify.checks(with_check(source, to, expect))
    assert str(caught.value).startswith(message)
    assert caught.value.hint


def test_an_expectation_prints_as_one_line() -> None:
    item: Expectation = next(iter(ALL))
    assert str(item) == "pod-to-pod: pod/default/a → pod/default/b ICMP 10.244.1.3: an answer"
