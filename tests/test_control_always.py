"""What holds for any objects: a second call changes nothing, order does not matter, the store changes nothing."""

# ruff: noqa: E501 - a row of a table is one line

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsnet import control, manifests, model
from nsnet.control import Facts
from nsnet.control.addresses import number, subnet, text
from nsnet.errors import InputError, ObjectError
from nsnet.manifests import Source
from nsnet.model import Key, Node, Object, Objects, Pod, Service
from nsnet.store.objects import differences
from tests.controlled import NOW, different, listening, load, stored

MANIFESTS = Path(__file__).parents[2] / "shared" / "manifests"
FOLDERS = sorted(MANIFESTS.iterdir()) if MANIFESTS.exists() else []

WORDS = st.sampled_from(["a", "b", "web"])
LABELS = st.fixed_dictionaries({"app": WORDS})
PORTS: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.sampled_from([{"containerPort": 80, "name": "http"}, {"containerPort": 81}, {"containerPort": 9, "protocol": "UDP"}]),
    max_size=2, unique_by=lambda port: str(port["containerPort"]),
)  # fmt: skip


@st.composite
def pod_specs(draw: st.DrawFn) -> dict[str, Any]:
    spec: dict[str, Any] = {"containers": [{"name": "c", "image": draw(WORDS), "ports": draw(PORTS)}]}
    if draw(st.booleans()):
        spec["terminationGracePeriodSeconds"] = draw(st.sampled_from([0, 5]))
    if draw(st.integers(0, 9)) == 0:
        spec["hostNetwork"] = True
    if draw(st.integers(0, 5)) == 0:
        spec["nodeSelector"] = {"disk": draw(st.sampled_from(["ssd", "none"]))}
    return spec


@st.composite
def workloads(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"]))
    labels, spec = draw(LABELS), draw(pod_specs())
    body: dict[str, Any] = {"template": {"metadata": {"labels": labels}, "spec": spec}}
    if kind == "Job":
        spec["restartPolicy"] = "Never"
    else:
        body["selector"] = {"matchLabels": labels}
    if kind not in ("Job", "DaemonSet"):
        body["replicas"] = draw(st.integers(0, 4))
    version = "batch/v1" if kind == "Job" else "apps/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": draw(WORDS)}, "spec": body}


@st.composite
def services(draw: st.DrawFn) -> dict[str, Any]:
    spec: dict[str, Any] = {"type": draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))}
    spec["ports"] = [{"port": 80, "targetPort": draw(st.sampled_from([80, "http"]))}]
    if draw(st.booleans()):
        spec["selector"] = draw(LABELS)
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": draw(WORDS)}, "spec": spec}


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    meta = {
        "name": draw(WORDS),
        "labels": draw(LABELS),
        "annotations": {"nsnet/ready": draw(st.sampled_from(["true", "false"]))},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": draw(pod_specs())}


def clusters() -> st.SearchStrategy[dict[str, Any]]:
    nodes = st.integers(1, 3).map(
        lambda count: [{"name": f"n{i}", "labels": {"disk": "ssd"} if i == 0 else {}} for i in range(count)]
    )
    return nodes.map(lambda said: {"apiVersion": "nsnet/v1", "kind": "Cluster", "nodes": said})


@st.composite
def topologies(draw: st.DrawFn) -> dict[Key, Object]:
    docs = draw(st.lists(st.one_of(workloads(), services(), pods()), max_size=6))
    said = {(doc["kind"], doc["metadata"]["name"]): doc for doc in docs}
    every = [draw(clusters()), *said.values()]
    return manifests.load([Source("t.yaml", "\n---\n".join(map(json.dumps, every)).encode())], "demo").objects


@st.composite
def facts(draw: st.DrawFn, objects: Objects) -> Facts | None:
    if draw(st.booleans()):
        return None
    every = sorted(key.name for key in objects if key.kind == "Pod")
    silent = draw(st.lists(st.sampled_from(every), unique=True)) if every else []
    return listening(objects, silent=silent, now=draw(st.sampled_from(["", NOW, "2026-01-31T12:01:00Z"])))


def shuffled(objects: Objects) -> dict[Key, Object]:
    return dict(sorted(objects.items(), reverse=True))


def wrong(objects: Objects) -> list[str]:
    """Sentences on what must never be."""
    nodes = {item.metadata.name: item for item in model.of(objects, Node)}
    found = []
    every = [pod for pod in model.of(objects, Pod) if pod.status.podIP and not pod.spec.hostNetwork]
    if len({pod.status.podIP for pod in every}) != len(every):
        found.append("two pods have one address")
    for pod in every:
        if not subnet(nodes[pod.spec.nodeName].spec.podCIDR).has(number(pod.status.podIP)):
            found += [f"{pod.metadata.name} has an address of another node"]
    addresses = [item.spec.clusterIP for item in model.of(objects, Service) if item.spec.clusterIP not in ("", "None")]
    if len(set(addresses)) != len(addresses):
        found.append("two Services have one address")
    for key, obj in objects.items():
        for owner in obj.metadata.ownerReferences:
            namespace = "" if owner.kind in model.CLUSTER_SCOPED else key.namespace
            if Key(owner.kind, namespace, owner.name) not in objects and not (
                isinstance(obj, Pod) and model.is_terminating(obj)
            ):
                found.append(f"{key} is an orphan")
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_level_triggered_idempotent_and_sticky(data: st.DataObject) -> None:
    first = control.complete(control.admit({}, data.draw(topologies()), whole=True))
    seen = data.draw(facts(first))
    done = control.complete(first, seen)
    assert not different(done, control.complete(done, seen))
    assert not wrong(done)
    assert control.complete(shuffled(first), seen) == done
    # The store gives back other instances, and nothing changes.
    read = stored(done)
    assert not differences(read, control.complete(read, seen))
    # Other files on top, in whole or in part; and again nothing changes.
    other, whole = data.draw(topologies()), data.draw(st.booleans())
    after = control.complete(control.admit(done, other, whole=whole), seen)
    assert not different(after, control.complete(after, seen))
    assert not wrong(after)
    kept = {key: obj for key, obj in after.items() if isinstance(obj, Service) and key in done}
    for key, service in kept.items():
        before = done[key]
        assert isinstance(before, Service)
        assert service.spec.clusterIP == before.spec.clusterIP


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_rollout_comes_to_its_end(data: st.DataObject) -> None:
    """Whatever stood before: when everything listens and time passes, exactly what the files say is left."""
    done = control.complete(control.admit({}, data.draw(topologies()), whole=True))
    target = data.draw(topologies())
    after = control.complete(control.admit(done, target, whole=True), Facts(None, NOW))
    for minute in range(1, 8):
        after = control.complete(after, listening(after, now=f"2026-01-31T12:{minute:02}:00Z"))
    if any(pod.status.phase == "Pending" for pod in model.of(after, Pod)):
        return  # a new pod that fits nowhere holds a rollout up, as in Kubernetes
    fresh = control.complete(control.admit({}, target, whole=True), listening({}, now=NOW))
    assert _shape(after) == _shape(fresh)


def _shape(objects: Objects) -> dict[str, int]:
    """How many pods each owner has."""
    found: dict[str, int] = {}
    for pod in model.of(objects, Pod):
        above = pod.metadata.ownerReferences
        name = f"{above[0].kind}/{above[0].name}" if above else f"Pod/{pod.metadata.name}"
        found[name] = found.get(name, 0) + 1
    return found


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.name))
def test_published_manifests(folder: Path) -> None:
    for path in sorted(folder.glob("*.y*ml")):
        try:
            objects = manifests.load([Source(path.name, path.read_bytes())], "demo").objects
        except InputError:
            continue  # a placeholder in it; tests of manifests say which
        try:
            done = control.complete(control.admit({}, objects, whole=True))
        except ObjectError as error:
            assert "IPv6 is not configured" in str(error)  # noqa: PT017
            continue
        assert not different(done, control.complete(done))
        assert not wrong(done)
        again = control.complete(control.admit(done, objects, whole=True))
        assert not differences(done, again)


def test_a_topology_in_full() -> None:
    """The whole text of a small one, so that a change of any choice is seen."""
    objects = control.complete(
        control.admit(
            {},
            load("""
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i, ports: [{containerPort: 80}]}]}}
"""),
            whole=True,
        )
    )
    assert sorted(f"{key}{_told(obj)}" for key, obj in objects.items()) == [
        "Cluster demo",
        "Deployment default/web: 2 ready",
        "Deployment kube-system/kube-dns: 2 ready",
        "EndpointSlice default/kubernetes",
        "EndpointSlice default/web-mm8z8",
        "EndpointSlice kube-system/kube-dns-w8ntv",
        "Endpoints default/kubernetes",
        "Endpoints default/web",
        "Endpoints kube-system/kube-dns",
        "Namespace default",
        "Namespace kube-node-lease",
        "Namespace kube-public",
        "Namespace kube-system",
        "Node node1",
        "Node node2",
        "Pod default/web-ld62ffvs7j-frdgc: node1 10.244.1.2",
        "Pod default/web-ld62ffvs7j-wwpjs: node2 10.244.2.2",
        "Pod kube-system/kube-apiserver-node1: node1 172.18.0.2",
        "Pod kube-system/kube-dns-mhp7bz2pcs-d74t7: node1 10.244.1.3",
        "Pod kube-system/kube-dns-mhp7bz2pcs-djzf5: node2 10.244.2.3",
        "ReplicaSet default/web-ld62ffvs7j: 2 ready",
        "ReplicaSet kube-system/kube-dns-mhp7bz2pcs: 2 ready",
        "Service default/kubernetes: 10.96.0.1 443",
        "Service default/web: 10.96.236.188 80:32253",
        "Service kube-system/kube-dns: 10.96.0.10 53,53",
        "ServiceSnapshot 8949a9fc727f5b73",
        "ServiceSnapshot 8a664025a9f2ba88",
        "SubnetLease 10.244.1.0-24",
        "SubnetLease 10.244.2.0-24",
    ]


def _told(obj: Object) -> str:
    match obj:
        case Pod():
            return f": {obj.spec.nodeName} {obj.status.podIP}"
        case Service():
            ports = [
                f"{port.port}:{port.nodePort}" if port.nodePort else f"{port.port}" for port in obj.spec.ports or ()
            ]
            return f": {obj.spec.clusterIP} {','.join(ports)}"
        case model.Deployment() | model.ReplicaSet():
            return f": {obj.status.readyReplicas} ready"
    return ""


# --- addresses --------------------------------------------------------------------------------------------------------


@given(st.one_of(st.integers(0, 2**32 - 1), st.integers(2**128, 2**129 - 1)))
def test_addresses_there_and_back(value: int) -> None:
    assert number(text(value)) == value


@pytest.mark.parametrize(
    "said", ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "a.b.c.d", "fd00::1::2", "fe80::1%eth0", "1.2.3.-4", "1.2.3.٤"]
)
def test_what_is_no_address(said: str) -> None:
    assert number(said) == -1


def test_leading_zeros_are_decimal() -> None:
    assert text(number("172.030.000.041")) == "172.30.0.41"
