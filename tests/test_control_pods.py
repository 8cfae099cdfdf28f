"""Workloads → pods → nodes → addresses, and who goes when."""

# ruff: noqa: E501 - a row of a table is one line

from typing import Any

import msgspec
import pytest

from nsnet import control, model
from nsnet.control import Facts, workloads
from nsnet.errors import InputError
from nsnet.model import Key, Objects, Pod, ReplicaSet
from tests.controlled import (
    NOW,
    apply,
    changed,
    delete,
    different,
    events,
    key,
    listening,
    nodes_of,
    one,
    pods,
    refused,
    slices,
    up,
)

ONE = "{apiVersion: nsnet/v1, kind: Cluster, nodes: 1, dns: {enabled: false}}\n---\n"
TWO = "{apiVersion: nsnet/v1, kind: Cluster, nodes: 2}\n---\n"


def workload(kind: str, spec: str = "", pod: str = "", *, name: str = "web", meta: str = "", image: str = "i") -> str:
    """A workload whose pods serve port 80; `spec`, `pod` and `meta` are further words of each."""
    version = "batch/v1" if kind == "Job" else "v1" if kind == "ReplicationController" else "apps/v1"
    selector = {
        "Job": "",
        "ReplicationController": f"selector: {{app: {name}}}, ",
    }.get(kind, f"selector: {{matchLabels: {{app: {name}}}}}, ")
    restart = "restartPolicy: Never, " if kind == "Job" else ""
    container = f"{{name: c, image: {image}, ports: [{{containerPort: 80}}]}}"
    return (
        f"{{apiVersion: {version}, kind: {kind}, metadata: {{name: {name}}}, spec: {{{selector}{spec + ', ' if spec else ''}"
        f"template: {{metadata: {{labels: {{app: {name}}}{meta}}}, spec: {{{restart}{pod + ', ' if pod else ''}"
        f"containers: [{container}]}}}}}}}}\n---\n"
    )


def pod(name: str, spec: str = "", meta: str = "") -> str:
    return (
        f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}{meta}}}, "
        f"spec: {{{spec + ', ' if spec else ''}containers: [{{name: c, image: i}}]}}}}\n---\n"
    )


def sets(objects: Objects) -> dict[str, int | None]:
    return {item.metadata.name: item.spec.replicas for item in _sets(objects)}


def _sets(objects: Objects) -> list[ReplicaSet]:
    return [item for item in model.of(objects, ReplicaSet) if item.metadata.namespace == "default"]


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_deployment_makes_a_replicaset_makes_pods() -> None:
    objects = up(TWO + workload("Deployment", "replicas: 3"))
    (name,) = sets(objects)
    assert sets(objects) == {name: 3}
    base, template = name.rsplit("-", 1)
    assert (base, len(template)) == ("web", 10)
    found = pods(objects)
    assert all(pod_name.startswith(f"{name}-") and len(pod_name) == len(name) + 6 for pod_name in found)
    assert sorted(found.values()) == ["node1 10.244.1.2", "node1 10.244.1.3", "node2 10.244.2.2"]
    first = one(objects, f"Pod/{next(iter(found))}")
    assert isinstance(first, Pod)
    assert first.metadata.labels == {"app": "web", "pod-template-hash": template}
    assert first.metadata.generateName == f"{name}-"
    assert [(owner.kind, owner.name) for owner in first.metadata.ownerReferences] == [("ReplicaSet", name)]
    deployment = one(objects, "Deployment/web")
    assert deployment.status.readyReplicas == deployment.status.updatedReplicas == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (workload("StatefulSet", "replicas: 3"), ["web-0", "web-1", "web-2"]),
        (workload("StatefulSet", "replicas: 2, ordinals: {start: 5}"), ["web-5", "web-6"]),
        (workload("StatefulSet", "replicas: 0"), []),
        (pod("alone"), ["alone"]),
    ],
)
def test_names_that_are_said(text: str, names: list[str]) -> None:
    assert list(pods(up(text))) == names


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (workload("ReplicaSet"), 1),
        (workload("ReplicationController", "replicas: 2"), 2),
        (workload("DaemonSet"), 2),
        (workload("Job"), 1),
        (workload("Job", "parallelism: 3, completions: 2"), 2),
        (workload("Job", "parallelism: 2"), 2),
        (workload("Job", "suspend: true"), 0),
    ],
)
def test_names_that_are_made(text: str, count: int) -> None:
    found = pods(up(text))
    assert len(found) == count
    assert all(name.startswith("web-") and len(name) == len("web-12345") for name in found)


def test_a_long_name_still_makes_dns_labels() -> None:
    found = list(pods(up(workload("Deployment", "replicas: 2", name="a" * 63))))
    assert len(set(found)) == 2
    assert {len(name) for name in found} == {63}


def test_stateful_pods_know_their_name() -> None:
    found = one(up(workload("StatefulSet", "serviceName: db")), "Pod/web-0")
    assert isinstance(found, Pod)
    assert (found.spec.hostname, found.spec.subdomain) == ("web-0", "db")
    assert found.metadata.labels["statefulset.kubernetes.io/pod-name"] == "web-0"
    assert found.metadata.labels["apps.kubernetes.io/pod-index"] == "0"


def test_what_a_template_says_besides_reaches_the_pods() -> None:
    text = workload("Deployment").replace("image: i,", "image: i, env: [{name: A, value: b}], ")
    (name,) = pods(up(text))
    doc = model.to_doc(one(up(text), f"Pod/{name}"))  # type: ignore[arg-type]
    assert doc["spec"]["containers"][0]["env"] == [{"name": "A", "value": "b"}]


# --- scaling ----------------------------------------------------------------------------------------------------------


def test_scaling_down_and_up_again() -> None:
    five = up(TWO + workload("Deployment", "replicas: 5"))
    two = apply(five, workload("Deployment", "replicas: 2"))
    assert pods(two).items() <= pods(five).items()
    assert len(pods(two)) == 2
    again = apply(two, workload("Deployment", "replicas: 5"))
    assert pods(again).keys() == pods(five).keys()
    assert pods(two).items() <= pods(again).items()


def test_scaling_down_takes_unready_pods_first() -> None:
    stored = up(TWO + workload("ReplicationController", "replicas: 4"))
    silent = sorted(pods(stored))[1]
    stored = control.complete(stored, listening(stored, silent=[silent]))
    assert pods(stored)[silent].endswith("unready")
    after = apply(stored, workload("ReplicationController", "replicas: 3"), listening(stored, silent=[silent]))
    assert set(pods(stored)) - set(pods(after)) == {silent}


def test_apply_without_replicas_leaves_a_scale_alone_and_up_does_not() -> None:
    stored = up(workload("Deployment", "replicas: 4"))
    assert len(pods(apply(stored, workload("Deployment")))) == 4
    assert len(pods(up(workload("Deployment"), stored))) == 1


def test_a_stateful_set_loses_its_highest_pods() -> None:
    stored = up(workload("StatefulSet", "replicas: 12"))
    assert list(pods(apply(stored, workload("StatefulSet", "replicas: 2")))) == ["web-0", "web-1"]


def test_a_deleted_pod_comes_back_and_its_address_is_not_used_again_at_once() -> None:
    stored = up(ONE + workload("StatefulSet", "replicas: 2"))
    assert pods(stored) == {"web-0": "node1 10.244.1.2", "web-1": "node1 10.244.1.3"}
    assert pods(delete(stored, "Pod/web-0")) == {"web-0": "node1 10.244.1.4", "web-1": "node1 10.244.1.3"}


def test_what_a_deleted_workload_owns_goes_with_it() -> None:
    stored = up(workload("Deployment", "replicas: 3") + pod("alone"))
    after = delete(stored, "Deployment/web")
    assert list(pods(after)) == ["alone"]
    assert sets(after) == {}


def test_files_that_no_longer_say_it() -> None:
    stored = up(workload("Deployment") + workload("DaemonSet", name="ds") + pod("alone"))
    assert pods(up(workload("Job", name="job"), stored)).keys() == pods(up(workload("Job", name="job"))).keys()


def test_a_pod_of_a_manifest_is_never_adopted() -> None:
    text = workload("ReplicationController", "replicas: 1") + pod("web", meta=", labels: {app: web}")
    assert len(pods(up(text))) == 2


# --- a changed template -----------------------------------------------------------------------------------------------


def test_a_rollout_waits_for_the_new_pods() -> None:
    text, new = workload("Deployment", "replicas: 2"), workload("Deployment", "replicas: 2", image="j")
    stored = up(TWO + text)
    old_pods, (old_set,) = set(pods(stored)), sets(stored)
    started = apply(stored, new, listening(stored))
    assert len(pods(started)) == 4
    assert {name for name, line in pods(started).items() if line.endswith("unready")} == set(pods(started)) - old_pods
    waiting, ready = sorted(set(pods(started)) - old_pods)
    half = control.complete(started, listening(started, silent=[waiting]))
    assert len(pods(half)) == 3
    assert sets(half)[old_set] == 1
    done = control.complete(half, listening(half))
    assert set(pods(done)) == {waiting, ready}
    assert sets(done) == {old_set: 0, ready.rsplit("-", 1)[0]: 2}
    deployment = one(done, "Deployment/web")
    assert deployment.status.updatedReplicas == 2  # type: ignore[attr-defined]


def test_a_rollback_finds_its_old_replicaset() -> None:
    text, new = workload("Deployment", "replicas: 2"), workload("Deployment", "replicas: 2", image="j")
    stored = up(text)
    back = apply(apply(stored, new), text)
    assert pods(back).keys() == pods(stored).keys()
    assert sorted(filter(None, sets(back).values())) == [2]
    numbers = {item.metadata.annotations["deployment.kubernetes.io/revision"] for item in _sets(back)}
    assert numbers == {"2", "3"}


def test_old_replicasets_are_kept_ten_at_most() -> None:
    objects = up(workload("Deployment", image="i0"))
    for number in range(1, 15):
        objects = apply(objects, workload("Deployment", image=f"i{number}"))
        assert not different(objects, control.complete(objects))
    assert len(sets(objects)) == 11
    assert len(pods(objects)) == 1


def test_recreate_ends_the_old_pods_first() -> None:
    stored = up(workload("Deployment", "replicas: 2, strategy: {type: Recreate}"))
    after = apply(
        stored, workload("Deployment", "replicas: 2, strategy: {type: Recreate}", image="j"), listening(stored)
    )
    assert len(pods(after)) == 2
    assert not set(pods(after)) & set(pods(stored))


def test_the_same_template_in_other_words_changes_nothing() -> None:
    stored = up(workload("Deployment", "replicas: 2"))
    wordy = workload("Deployment", "replicas: 2", "hostNetwork: false, securityContext: {}").replace(
        "containerPort: 80", "containerPort: 80, protocol: TCP"
    )
    assert pods(apply(stored, wordy)) == pods(stored)


def test_hashes_of_templates_go_with_their_workloads() -> None:
    stored = up(workload("Deployment") + workload("DaemonSet", name="ds"))
    after = delete(stored, "DaemonSet/ds")
    control.complete(after)
    assert workloads._hashes.keys() <= after.keys()


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet"])
def test_others_replace_all_pods(kind: str) -> None:
    stored = up(TWO + workload(kind))
    after = apply(stored, workload(kind, image="j"))
    assert len(pods(after)) == len(pods(stored))
    assert not pods(after).items() & pods(stored).items()


@pytest.mark.parametrize("kind", ["ReplicationController", "ReplicaSet", "Job"])
def test_these_leave_their_pods_alone(kind: str) -> None:
    stored = up(TWO + workload(kind))
    assert pods(apply(stored, workload(kind, image="j"))) == pods(stored)


# --- scheduling -------------------------------------------------------------------------------------------------------

RACK = """
apiVersion: nsnet/v1
kind: Cluster
nodes:
- {name: a, labels: {disk: ssd, rack: "1"}}
- {name: b, labels: {disk: hdd, rack: "1"}, taints: [{key: gpu, value: "yes", effect: NoSchedule}]}
- {name: c, labels: {rack: "2"}, taints: [{key: busy, effect: PreferNoSchedule}]}
---
"""
ANTI = (
    "affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: "
    "[{labelSelector: {matchLabels: {app: web}}, topologyKey: KEY}]}}"
)
NODE_AFFINITY = (
    "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: "
    "[{matchExpressions: [{key: disk, operator: In, values: [hdd, ssd]}]}, "
    "{matchFields: [{key: metadata.name, operator: In, values: [c]}]}]}}}"
)
GPU = "tolerations: [{key: gpu, operator: Exists}]"


@pytest.mark.parametrize(
    ("replicas", "spec", "nodes"),
    [
        (2, "", ["a", "a"]),  # b is tainted, c is only the second choice
        (3, GPU, ["a", "a", "b"]),
        (3, "tolerations: [{operator: Exists}]", ["a", "b", "c"]),
        (1, "tolerations: [{key: gpu, value: 'no'}], nodeSelector: {disk: hdd}", ["-"]),
        (1, "tolerations: [{key: gpu, value: 'yes'}], nodeSelector: {disk: hdd}", ["b"]),
        (2, "nodeSelector: {rack: '2'}", ["c", "c"]),
        (2, NODE_AFFINITY, ["a", "a"]),
        (3, GPU + ", " + ANTI.replace("KEY", "kubernetes.io/hostname"), ["a", "b", "c"]),
        (3, GPU + ", " + ANTI.replace("KEY", "rack"), ["-", "a", "c"]),
        (1, "nodeName: b", ["b"]),  # nodeName passes taints by
    ],
)
def test_scheduling(replicas: int, spec: str, nodes: list[str]) -> None:
    objects = up(RACK + workload("Deployment", f"replicas: {replicas}", spec))
    assert sorted(nodes_of(objects)) == nodes


def test_anti_affinity_of_those_that_are_there_counts_too() -> None:
    text = (
        RACK
        + workload("StatefulSet", "replicas: 1", ANTI.replace("KEY", "rack"))
        + pod("x", meta=", labels: {app: web}")
    )
    assert pods(up(text))["x"].split()[0] != pods(up(text))["web-0"].split()[0]


def test_a_pod_that_fits_nowhere_is_pending_and_says_why() -> None:
    objects = up(RACK + pod("p", "nodeSelector: {disk: nvme}"))
    assert pods(objects) == {"p": "- - Pending"}
    sentence = (
        "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: yes}, "
        "2 node(s) didn't match Pod's node affinity/selector."
    )
    assert events(objects) == [f"Pod p: FailedScheduling: {sentence}"]
    found = one(objects, "Pod/p")
    assert isinstance(found, Pod)
    assert found.status.conditions[0] == model.Condition("PodScheduled", "False", "Unschedulable", sentence)
    # The label comes: the pod goes there, and the event is over.
    node: Any = one(objects, "Node/a")
    meta = msgspec.structs.replace(node.metadata, labels={**node.metadata.labels, "disk": "nvme"})
    after = control.complete({**objects, key("Node/a"): msgspec.structs.replace(node, metadata=meta)})
    assert pods(after) == {"p": "a 10.244.1.4"}
    assert events(after) == []


def test_a_template_whose_node_went_waits_for_it() -> None:
    stored = up(TWO + workload("Deployment", "", "nodeName: node2"))
    assert nodes_of(stored) == ["node2"]
    after = apply(stored, ONE, Facts(None, at(1)))
    assert list(pods(after).values()) == ["node2 - Pending"]
    assert "there is no node node2" in events(after)[0]
    assert not different(after, control.complete(after, Facts(None, at(2))))
    assert list(pods(apply(after, TWO)).values()) == ["node2 10.244.2.2"]


def test_daemons_run_where_they_may() -> None:
    assert nodes_of(up(RACK + workload("DaemonSet"))) in (["a", "c"], ["c", "a"])
    assert sorted(nodes_of(up(RACK + workload("DaemonSet", "", GPU)))) == ["a", "b", "c"]
    assert nodes_of(up(RACK + workload("DaemonSet", "", "nodeName: c"))) == ["c"]


@pytest.mark.parametrize(
    ("said", "stays", "comes"),
    [
        ("labels: {disk: ssd}, taints: [{key: new, effect: PreferNoSchedule}]", True, True),
        ("labels: {disk: ssd}, taints: [{key: new, effect: NoSchedule}]", True, False),
        ("labels: {disk: ssd}, taints: [{key: new, effect: NoExecute}]", False, False),
        ("labels: {disk: hdd}", False, False),
    ],
)
def test_what_ends_a_daemon_that_runs(said: str, stays: bool, comes: bool) -> None:
    """NodeShouldRunDaemonPod: a taint against scheduling keeps new pods away, and leaves the one that is there."""

    def node(words: str) -> str:
        return f"apiVersion: nsnet/v1\nkind: Cluster\nnodes: [{{name: a, {words}}}]\n---\n"

    daemon = workload("DaemonSet", "", "nodeSelector: {disk: ssd}")
    stored = up(node("labels: {disk: ssd}") + daemon)
    assert pods(apply(stored, node(said))) == (pods(stored) if stays else {})
    assert len(pods(up(node(said) + daemon))) == comes


HOST_PORT = "ports: [{{containerPort: 8080, hostPort: 54323, hostIP: {ip}, protocol: {protocol}}}]"


def host_port(name: str, ip: str, protocol: str) -> str:
    port = HOST_PORT.format(ip=ip, protocol=protocol)
    return pod(name).replace("image: i", f"image: i, {port}")


def test_host_ports_of_other_addresses_or_protocols_do_not_clash() -> None:
    text = (
        ONE
        + host_port("p1", "127.0.0.1", "TCP")
        + host_port("p2", "172.18.0.2", "TCP")
        + host_port("p3", "172.18.0.2", "UDP")
    )
    assert set(nodes_of(up(text))) == {"node1"}
    clash = up(text + host_port("p4", "0.0.0.0", "TCP"))
    assert pods(clash)["p4"] == "- - Pending"
    assert "didn't have free ports" in events(clash)[0]


def test_host_network_pods_have_the_nodes_address_and_take_its_ports() -> None:
    objects = up(TWO + workload("Deployment", "replicas: 3", "hostNetwork: true"))
    assert sorted(pods(objects).values()) == ["- - Pending", "node1 172.18.0.2", "node2 172.18.0.3"]


# --- addresses --------------------------------------------------------------------------------------------------------


def test_addresses_go_round_from_the_last_one() -> None:
    small = "{apiVersion: nsnet/v1, kind: Cluster, nodes: 1, flannel: {SubnetLen: 29}, dns: {enabled: false}}\n---\n"
    # .2 to .6: five
    objects = up(small + pod("a") + pod("b") + pod("c"))
    assert pods(objects) == {"a": "node1 10.244.0.10", "b": "node1 10.244.0.11", "c": "node1 10.244.0.12"}
    objects = delete(objects, "Pod/b")
    objects = apply(objects, pod("d") + pod("e"))
    assert (pods(objects)["d"], pods(objects)["e"]) == ("node1 10.244.0.13", "node1 10.244.0.14")
    objects = apply(objects, pod("f"))  # the end is reached: the freed one, as the last choice
    assert pods(objects)["f"] == "node1 10.244.0.11"
    assert one(objects, "Node/node1").metadata.annotations["nsnet/last-reserved-ip"] == "10.244.0.11"  # type: ignore[attr-defined]
    assert "too many pods: node1's subnet 10.244.0.8/29 holds 5 pods (at most 5 pods fit there" in refused(
        pod("g"), objects, whole=False
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (workload("Deployment", "replicas: 300"), "Deployment default/web: spec.replicas: too many pods: node1's subnet"),
        (workload("StatefulSet", "replicas: 254"), "StatefulSet default/web: spec.replicas: too many pods"),
        (pod("p", meta=", annotations: {nsnet/ip: 10.99.0.1}"), "Pod default/p: metadata.annotations.nsnet/ip: 10.99.0.1 is in no node's subnet"),
        (pod("p", "nodeName: node1", ", annotations: {nsnet/ip: 10.99.0.1}"), "10.99.0.1 is no pod address in node1's subnet 10.244.1.0/24"),
        (pod("p", meta=", annotations: {nsnet/ip: 10.244.1.1}"), "10.244.1.1 is no pod address in node1's subnet"),
        (
            pod("p", meta=", annotations: {nsnet/ip: 10.244.1.9}") + pod("q", meta=", annotations: {nsnet/ip: 10.244.1.9}"),
            "Pod default/q: metadata.annotations.nsnet/ip: 10.244.1.9 is taken by Pod default/p",
        ),
        (pod("p", "nodeName: node2"), 'Pod default/p: spec.nodeName: there is no node "node2" (did you mean node1?)'),
        (workload("DaemonSet", "", "nodeName: x"), 'spec.template.spec.nodeName: there is no node "x"'),
    ],
)  # fmt: skip
def test_refused(text: str, said: str) -> None:
    assert said in refused(ONE + text)


def test_a_fixed_address_decides_the_node_and_is_kept_free() -> None:
    text = TWO + pod("a") + pod("b") + pod("z", meta=", annotations: {nsnet/ip: 10.244.2.2}")
    assert pods(up(text)) == {"a": "node1 10.244.1.2", "b": "node2 10.244.2.3", "z": "node2 10.244.2.2"}


def test_a_changed_fixed_address_is_followed() -> None:
    stored = up(ONE + pod("a"))
    after = apply(stored, pod("a", meta=", annotations: {nsnet/ip: 10.244.1.77}"))
    assert pods(after) == {"a": "node1 10.244.1.77"}
    assert pods(apply(after, pod("a"))) == {"a": "node1 10.244.1.77"}


# --- readiness --------------------------------------------------------------------------------------------------------


def conditions(objects: Objects, name: str) -> dict[str, str]:
    found = one(objects, f"Pod/{name}")
    assert isinstance(found, Pod)
    return {item.type: item.status for item in found.status.conditions}


def message(objects: Objects, name: str) -> str:
    found = one(objects, f"Pod/{name}")
    assert isinstance(found, Pod)
    return next(item.message for item in found.status.conditions if item.type == "Ready")


SVC = "{apiVersion: v1, kind: Service, metadata: {name: svc}, spec: {selector: {app: web}, ports: [{port: 80}]}}\n---\n"


def test_ready_is_who_listens() -> None:
    stored = up(ONE + workload("StatefulSet", "replicas: 2") + SVC)
    assert slices(stored, "svc") == ["10.244.1.2,10.244.1.3:80"]  # nobody has looked
    looked = control.complete(stored, listening(stored, silent=["web-1"]))
    assert slices(looked, "svc") == ["10.244.1.2,!10.244.1.3:80"]
    assert conditions(looked, "web-1") == {
        "Initialized": "True",
        "Ready": "False",
        "ContainersReady": "False",
        "PodScheduled": "True",
    }
    assert message(looked, "web-1") == "not listening: 80/TCP"
    assert slices(control.complete(looked, listening(looked)), "svc") == ["10.244.1.2,10.244.1.3:80"]


def test_where_nobody_looks_what_was_seen_holds() -> None:
    stored = up(ONE + workload("StatefulSet", "replicas: 2") + SVC)
    looked = control.complete(stored, listening(stored, silent=["web-1"]))
    assert not different(looked, control.complete(looked, Facts(None, NOW)))
    after = apply(looked, pod("other"), Facts(None, NOW))
    assert slices(after, "svc") == ["10.244.1.2,!10.244.1.3:80"]


def test_a_namespace_that_is_not_there() -> None:
    stored = control.complete(up(ONE + pod("p")), Facts({}, NOW))
    assert message(stored, "p") == "the network namespace is not there"
    assert conditions(control.complete(stored, Facts({"demo.pod.default.p": frozenset()}, NOW)), "p")["Ready"] == "True"


def test_a_port_that_only_a_service_names_is_waited_for() -> None:
    stored = up(ONE + pod("p", meta=", labels: {app: web}") + SVC)
    silent = control.complete(stored, Facts({"demo.pod.default.p": frozenset({("TCP", 81)})}, NOW))
    assert message(silent, "p") == "not listening: 80/TCP"
    heard = control.complete(silent, Facts({"demo.pod.default.p": frozenset({("TCP", 80)})}, NOW))
    assert slices(heard, "svc") == ["10.244.1.2:80"]


def test_sctp_is_not_waited_for() -> None:
    stored = up(ONE + pod("p").replace("image: i", "image: i, ports: [{containerPort: 9, protocol: SCTP}]"))
    assert conditions(control.complete(stored, Facts({"demo.pod.default.p": frozenset()})), "p")["Ready"] == "True"


def test_the_annotation_says_no() -> None:
    objects = up(ONE + pod("p", meta=", annotations: {nsnet/ready: 'false'}"))
    assert conditions(objects, "p") == {
        "Initialized": "True", "Ready": "False", "ContainersReady": "True", "PodScheduled": "True",
    }  # fmt: skip
    assert conditions(apply(objects, pod("p")), "p")["Ready"] == "True"


def test_host_network_pods_listen_in_their_node() -> None:
    stored = up(ONE + workload("StatefulSet", "", "hostNetwork: true"))
    facts = Facts({"demo.node.node1": frozenset({("TCP", 80), ("TCP", 6443)})})
    assert pods(control.complete(stored, facts)) == {"web-0": "node1 172.18.0.2"}
    assert pods(control.complete(stored, Facts({"demo.node.node1": frozenset()}))) == {
        "web-0": "node1 172.18.0.2 unready"
    }


# --- ending -----------------------------------------------------------------------------------------------------------

GRACE = "terminationGracePeriodSeconds: 30"


def at(second: int) -> str:
    return f"2026-01-31T12:{second // 60:02}:{second % 60:02}Z"


def test_without_a_grace_period_a_pod_goes_at_once() -> None:
    for spec in ("", "terminationGracePeriodSeconds: 0"):
        assert pods(delete(up(pod("p", spec)), "Pod/p")) == {}


def test_a_grace_period_is_served_out() -> None:
    text = ONE + workload("StatefulSet", "", GRACE) + pod("p", GRACE) + SVC
    stored = up(text, facts=Facts(None, at(0)))
    leaving = delete(stored, "Pod/p", "StatefulSet/web", facts=Facts(None, at(5)))
    assert pods(leaving) == {"p": "node1 10.244.1.2 terminating", "web-0": "node1 10.244.1.3 terminating"}
    found = one(leaving, "Pod/p")
    assert isinstance(found, Pod)
    assert (found.metadata.deletionTimestamp, found.metadata.deletionGracePeriodSeconds) == (at(35), 30)
    assert slices(leaving, "svc") == ["~10.244.1.3:80"]
    assert one(leaving, "Endpoints/svc").subsets == ()  # type: ignore[attr-defined]
    assert not different(leaving, control.complete(leaving, Facts(None, at(34))))
    assert pods(control.complete(leaving, Facts(None, at(35)))) == {}


def test_the_period_begins_when_there_is_a_clock() -> None:
    leaving = delete(up(pod("p", GRACE)), "Pod/p")
    assert pods(leaving)["p"].endswith("terminating")
    assert not different(leaving, control.complete(leaving))
    begun = control.complete(leaving, Facts(None, at(100)))
    assert one(begun, "Pod/p").metadata.deletionTimestamp == at(130)  # type: ignore[attr-defined]


def test_a_period_beyond_all_dates() -> None:
    stored = up(pod("p"))
    endless = {**stored, key("Pod/p"): changed(stored[key("Pod/p")], terminationGracePeriodSeconds=2**63 - 1)}
    assert pods(delete(endless, "Pod/p", facts=Facts(None, NOW)))["p"].endswith("terminating")


def test_a_terminating_pod_is_replaced_meanwhile() -> None:
    stored = up(workload("Deployment", "replicas: 1", GRACE))
    (old,) = pods(stored)
    leaving = delete(stored, f"Pod/{old}")
    assert sorted(line.split()[2:] for line in pods(leaving).values()) == [[], ["terminating"]]
    stateful = up(workload("StatefulSet", "", GRACE))
    assert list(pods(delete(stateful, "Pod/web-0")).values()) == ["node1 10.244.1.2 terminating"]  # its name is taken


def test_up_without_the_pod_ends_it_and_up_with_it_calls_it_back() -> None:
    stored = up(pod("p", GRACE) + pod("q"))
    leaving = up(pod("q"), stored, Facts(None, at(0)))
    assert pods(leaving)["p"].endswith("terminating")
    assert pods(up(pod("p", GRACE) + pod("q"), leaving, Facts(None, at(1)))) == pods(stored)


def test_a_pod_does_not_outlive_its_node() -> None:
    stored = up(TWO + pod("p", GRACE + ", nodeName: node2"))
    assert pods(delete(delete(stored, "Pod/p"), "Node/node2")) == {}


# --- time and identity ------------------------------------------------------------------------------------------------


def test_everything_has_a_uid_and_the_time_it_was_first_seen() -> None:
    stored = up(workload("Deployment") + SVC, facts=Facts(None, at(0)))
    later = control.complete(stored, Facts(None, at(60)))
    assert not different(stored, later)
    for obj in later.values():
        if not isinstance(obj, model.SubnetLease):
            assert obj.metadata.uid
            assert obj.metadata.creationTimestamp == at(0), model.key_of(obj)
    assert all(obj.metadata.creationTimestamp is None for obj in up(pod("p")).values())


def test_deleting_a_namespace_takes_all_of_it() -> None:
    text = pod("p", meta=", namespace: shop") + SVC.replace("name: svc", "name: svc, namespace: shop") + pod("q")
    stored = up(text)
    assert one(stored, "Namespace/shop").metadata.labels == {"kubernetes.io/metadata.name": "shop"}  # type: ignore[attr-defined]
    assert "Namespace shop: NamespaceCreated: it is named in the manifests and nowhere declared" in events(stored)
    after = delete(stored, "Namespace/shop")
    assert [item for item in after if item.namespace == "shop" or item.name == "shop"] == []
    assert list(pods(after)) == ["q"]


def test_the_cluster_itself_is_not_deleted() -> None:
    with pytest.raises(InputError, match="cannot be deleted"):
        control.remove(up(pod("p")), [Key("Cluster", "", "demo")])
