"""Every fault on a real cluster: its symptom and only that, the cause named, predicted = observed, undone exactly."""

import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import dns.message
import msgspec
import pytest
import yaml

from nsnet import control, diff, kernel, manifests, model, reconcile
from nsnet.cli import trace, trace_lines
from nsnet.cli.context import Running
from nsnet.kernel import bpf, frames, netns, probe
from nsnet.kernel.capture import Capture
from nsnet.state import Chain, Change, Sysctl
from tests import faulted
from tests.faulted import Cluster, Question, Row


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.down()


@pytest.fixture(scope="module")
def before(cluster: Cluster) -> dict[str, str]:
    return faulted.healthy(cluster)


@pytest.mark.parametrize("row", faulted.rows(), ids=str)
def test_a_fault_is_seen_named_and_undone(cluster: Cluster, before: dict[str, str], row: Row) -> None:
    faulted.proved(cluster, before, row)


def test_the_whole_catalogue_is_tried() -> None:
    """By the table, by a test of this file, or (what needs netem) by test_impaired.py and the machine that has it."""
    here = {"stale-conntrack", "dns-slow", "ndots", "kube-proxy-stopped", "flanneld-stopped"}
    assert set(faulted.missing()) == here | {"hands-off", "delay", "rate", "duplicate", "reorder"}


# --- faults that show only when something else happens ----------------------------------------------------------------


def _service(name: str, address: str, app: str, port: int, protocol: str = "TCP") -> dict[str, object]:
    spec = {"clusterIP": address, "selector": {"app": app}, "ports": [{"port": port, "protocol": protocol}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec}


def _applied(cluster: Cluster, *docs: Mapping[str, object]) -> None:
    loaded = manifests.load([manifests.Source("more.yaml", yaml.safe_dump_all(docs).encode())], faulted.NAME)
    more = {key: obj for key, obj in loaded.objects.items() if key.kind != "Cluster"}
    cluster.change(lambda stored: control.admit(stored, more, whole=False))


def _removed(cluster: Cluster, *keys: model.Key) -> None:
    cluster.change(lambda stored: control.remove(stored, keys))


def _sentence(cluster: Cluster, question: Question) -> str:
    return faulted.said(cluster.objects, kernel.observe(faulted.NAME), question)


def test_without_kube_proxy_a_new_service_is_unknown_on_that_node(cluster: Cluster) -> None:
    faulted.SERVICES["late"] = "10.96.0.103"
    cluster.add(["kube-proxy-stopped", "--on", "node/node1"])
    try:
        _applied(cluster, _service("late", "10.96.0.103", "far", 80))
        here, there = Question("a", "late", 80), Question("e", "late", 80)
        assert faulted.outcomes(cluster.objects, [here]) != ["ok"]
        assert faulted.outcomes(cluster.objects, [there, Question("a", "far", 80)], tries=3) == ["ok", "ok"]
        assert "no rule knows Service default/late" in _sentence(cluster, here)
    finally:
        cluster.clear()
    assert faulted.outcomes(cluster.objects, [here], tries=3) == ["ok"]
    _removed(cluster, model.Key("Service", "default", "late"))


def test_without_flanneld_a_new_node_is_unknown_on_that_node(cluster: Cluster) -> None:
    cluster.add(["flanneld-stopped", "--on", "node/node1"])
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "f", "namespace": "default"},
        "spec": {"nodeName": "node4", "containers": [{"name": "web", "ports": [{"containerPort": 80}]}]},
    }  # fmt: skip
    node: dict[str, object] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node4"}}
    try:
        _applied(cluster, node, pod)
        here, there = Question("a", "f", 80), Question("e", "f", 80)
        assert faulted.outcomes(cluster.objects, [here]) != ["ok"]
        assert faulted.outcomes(cluster.objects, [there, Question("a", "e", 80)], tries=3) == ["ok", "ok"]
        assert re.search(r"no route to 10\.244\.4\.\d+", _sentence(cluster, here))
    finally:
        cluster.clear()
    assert faulted.outcomes(cluster.objects, [here], tries=3) == ["ok"]
    _removed(cluster, model.Key("Pod", "default", "f"), model.Key("Node", "", "node4"))


def test_an_old_udp_entry_leads_a_client_that_keeps_its_port_astray(cluster: Cluster) -> None:
    """New sockets work; the old one does not; trace says both, and what the old one meets."""
    cluster.add(["stale-conntrack", "--on", "node/node1"])
    with netns.inside(faulted.netns_of("a")), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        client.connect((faulted.SERVICES["far"], 5300))
        client.send(b"hostname\n")
        assert client.recv(100) == b"c"
        port = client.getsockname()[1]
        _relabelled(cluster, "c", "old")
        _relabelled(cluster, "d", "far")
        client.send(b"hostname\n")
        assert client.recv(100) == b"c"  # by the entry: c is no endpoint any more
    fresh = Question("a", "far", 5300, "udp")
    assert faulted.outcomes(cluster.objects, [fresh], tries=3) == ["ok"]
    start, packet = faulted.start_of(cluster.objects, fresh), faulted.packet_of(cluster.objects, fresh)
    now = Running(faulted.NAME, dict(cluster.objects))
    state, found = trace.looked(now, start, packet)
    (note,) = trace.remembered(found, packet, trace_lines.look_of(state, cluster.objects))
    assert note.startswith(f"note: conntrack on node/node1 still leads source port {port} to 10.244.2.")
    _, old = trace.looked(now, start, msgspec.structs.replace(packet, sport=port))
    assert [(one.way.netns, one.way.flows[0].netns) for one in old] == [(faulted.netns_of("c"), faulted.netns_of("a"))]
    cluster.clear()
    state, found = trace.looked(now, start, packet)
    assert list(trace.remembered(found, packet, trace_lines.look_of(state, cluster.objects))) == []
    _relabelled(cluster, "d", "")
    _relabelled(cluster, "c", "far")


def _relabelled(cluster: Cluster, name: str, app: str) -> None:
    key = model.Key("Pod", "default", name)

    def change(stored: model.Objects) -> model.Objects:
        meta = msgspec.structs.replace(stored[key].metadata, labels={"app": app} if app else {})
        return {**stored, key: msgspec.structs.replace(stored[key], metadata=meta)}

    cluster.change(change)


def test_every_second_aaaa_query_is_lost(cluster: Cluster) -> None:
    query = dns.message.make_query("kubernetes.default.svc.cluster.local", "AAAA", id=2).to_wire()
    ask = probe.Probe(faulted.netns_of("a"), "UDP", faulted.SERVICES["dns"], 53, query)
    cluster.add(["dns-slow", "--on", "node/node1"])
    found = [answer.outcome for _ in range(4) for answer in probe.probe([ask], timeout=1.0, tries=1)]
    question = Question("a", "dns", 53, "udp")
    words = _sentence(cluster, question)
    others = faulted.outcomes(cluster.objects, [question], tries=3)
    cluster.clear()
    assert sorted(found) == ["ok", "ok", "timeout", "timeout"]
    assert others == ["ok"]
    assert "dropped on node/node1 by rule mangle PREROUTING" in words
    assert "|00001c0001|" in words


OUTSIDE = "api.example.org"  # a record of the cluster's own, with fewer dots than any ndots here


def test_a_name_outside_costs_a_question_for_each_domain(cluster: Cluster) -> None:
    """Four by what kubelet gives, seven by a longer list, one where somebody mends the file."""
    before = _asked_for(cluster, "a", OUTSIDE)
    cluster.add(["ndots", "--on", "pod/a"], leave="keys")
    during, beside = _asked_for(cluster, "a", OUTSIDE), _asked_for(cluster, "b", OUTSIDE)
    short = _asked_for(cluster, "a", "far")
    state, look = kernel.observe(faulted.NAME), Question("a", "dns", 53, "udp")
    start, packet = faulted.start_of(cluster.objects, look), faulted.packet_of(cluster.objects, look)
    (note,) = trace.searching(start, packet, trace_lines.look_of(state, cluster.objects))
    file = Path(f"/etc/netns/{faulted.netns_of('a')}/resolv.conf")
    file.write_text(file.read_text().replace("ndots:15", "ndots:1"))
    cluster.change(lambda stored: stored)
    mended = _asked_for(cluster, "a", OUTSIDE)
    cluster.clear()
    after = _asked_for(cluster, "a", OUTSIDE)
    assert (len(before), len(during), len(beside), len(mended), len(after)) == (4, 7, 4, 1, 4)
    assert during[:2] == [f"{OUTSIDE}.default.svc.cluster.local", f"{OUTSIDE}.svc.cluster.local"]
    assert during[-1] == OUTSIDE
    assert short == ["far.default.svc.cluster.local"]
    assert note == (
        "note: pod/a asks for a name with fewer than 15 dots in 6 domains before itself: by ndots and search "
        "of its resolv.conf one outside costs 7 questions of a kind"
    )


def _asked_for(cluster: Cluster, pod: str, name: str) -> list[str]:
    """The names for whose address the pod's resolver asks."""
    assert cluster.objects
    netns = faulted.netns_of(pod)
    with Capture([(netns, "eth0")], bpf.compiled("udp dst port 53")) as hearing:
        subprocess.run(["ip", "netns", "exec", netns, "getent", "ahostsv4", name], check=False, capture_output=True)
        seen = [*hearing.read(0.05), *hearing.rest()]
    asked = [dns.message.from_wire(frames.decode(one.data, frozenset()).innermost.payload) for one in seen]
    return [query.question[0].name.to_text(omit_final_dot=True) for query in asked]


# --- their lives ------------------------------------------------------------------------------------------------------

FORWARD = Sysctl("net.ipv4.ip_forward", "0")


def _forwards(node: str) -> str:
    (value,) = kernel.observe(faulted.NAME, {faulted.netns_of(node): frozenset({FORWARD.key})})[faulted.netns_of(node)]
    assert isinstance(value, Sysctl)
    return value.value


def test_a_fault_survives_every_look_and_ends_with_its_time(cluster: Cluster) -> None:
    cluster.add(["ip-forward-off", "--on", "node/node1"], until="2999-01-01T00:00:00Z")
    kernel.apply([Change("replace", faulted.netns_of("node1"), Sysctl("net.ipv4.ip_forward", "1"), FORWARD)])
    cluster.memory = None  # as a controller that was started anew
    cluster.change(lambda stored: stored)
    assert _forwards("node1") == "0"
    cluster.change(_ending("2026-01-01T00:00:00Z"))
    assert _forwards("node1") == "1"
    assert model.of(cluster.objects, model.Fault) == []


def _ending(until: str) -> Callable[[model.Objects], model.Objects]:
    def change(stored: model.Objects) -> model.Objects:
        (key,) = (key for key in stored if key.kind == "Fault")
        fault = stored[key]
        assert isinstance(fault, model.Fault)
        spec = msgspec.structs.replace(fault.spec, until=until)
        return {**stored, key: msgspec.structs.replace(fault, spec=spec)}

    return change


@pytest.mark.parametrize("leave", ["keys", "places"])
def test_a_damage_that_is_left_alone_is_done_once_and_may_be_mended(cluster: Cluster, leave: str) -> None:
    """Neither it nor its repair is undone; what it did not touch is, but for whole places."""
    node, other = faulted.netns_of("node1"), faulted.netns_of("node2")
    healthy = faulted.settled()
    rule = Chain("mangle", "FORWARD", ("-p tcp -j ACCEPT",), "ACCEPT")
    cluster.add(["ip-forward-off", "--on", "node/node1"], leave=leave)
    assert _forwards("node1") == "0"
    mended = Sysctl("net.ipv4.ip_forward", "1")
    assert kernel.apply([Change("replace", node, mended, FORWARD), Change("add", node, rule)]) == []
    assert kernel.apply([Change("add", other, rule)]) == []
    cluster.memory = None
    cluster.change(lambda stored: stored)
    now = kernel.observe(faulted.NAME)
    assert mended in now[node]
    assert (rule in now[node]) is (leave == "places")
    assert rule not in now[other]
    want = reconcile.wanted(cluster.objects)
    assert diff.diff(now, want.state, holds=want.holds) == []
    cluster.clear()
    assert faulted.settled() == healthy
