"""What the objects say of themselves: pod phases and conditions, the counts of workloads.

A pod is ready when its annotation `nsnet/ready` does not say no (shown as a readiness gate) and every port it should
serve listens in its network namespace. HTTP, TCP and gRPC probes of a stand-in come to the same; exec probes pass. A
pod that serves no port is ready as soon as its namespace is there. One that serves the cluster's DNS must be healthy
as well.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from nsnet import model, names
from nsnet.control.facts import Facts, Listening
from nsnet.control.table import Table, by_owner, of
from nsnet.control.workloads import REVISION, active, revision, template_hash
from nsnet.model import (
    ENDED,
    Cluster,
    Condition,
    DaemonSet,
    Deployment,
    Job,
    Key,
    Node,
    ObjectMeta,
    Pod,
    PodStatus,
    ReplicaSet,
    ReplicationController,
    Service,
    StatefulSet,
    Workload,
    WorkloadStatus,
    container_ports,
    dns_service,
    is_ready,
    key_of,
    served_ports,
    serves_dns,
)

GATE = "nsnet/ready"
HEALTHY = ("HTTP", 8080)  # exechealthz is there, and every check of its succeeds
DNS = model.DNS_PORTS | {HEALTHY}
SERVED = ("TCP", "UDP")  # what the pod server speaks: an SCTP port is declared and never listens
INITIALIZED = Condition("Initialized", "True")
SCHEDULED = Condition("PodScheduled", "True")
READY = (INITIALIZED, Condition("Ready", "True"), Condition("ContainersReady", "True"), SCHEDULED)
GATED = (
    INITIALIZED,
    Condition("Ready", "False", "ReadinessGatesNotReady", f'the status of pod readiness gate "{GATE}" is not "True"'),
    Condition("ContainersReady", "True"),
    SCHEDULED,
)


def _unready(message: str) -> tuple[Condition, ...]:
    pair = (Condition(kind, "False", "ContainersNotReady", message) for kind in ("Ready", "ContainersReady"))
    return (INITIALIZED, *pair, SCHEDULED)


# --- pods -------------------------------------------------------------------------------------------------------------


class _Judged(NamedTuple):
    """The last answer for a pod, and what it came from: asked again, it is found by `is`."""

    pod: Pod
    heard: frozenset[tuple[str, int]] | None
    looked: bool
    dns: bool


_judged: dict[Key, _Judged] = {}


def judge(table: Table, cluster: Cluster, facts: Facts) -> None:
    """Phase and conditions of every pod that has a node."""
    pods = of(table, Pod)
    services: Mapping[tuple[str, str, str], list[Service]] | None = None
    nodes = {key.name for key in of(table, Node)}
    name, listening = cluster.metadata.name, facts.listening
    asked = dns_service(of(table, Service), cluster)
    for key in _judged.keys() - pods.keys():
        del _judged[key]
    for key, pod in pods.items():
        if pod.spec.nodeName not in nodes or pod.status.phase in ENDED:
            continue
        heard = _heard(name, pod, listening)
        last = _judged.get(key)
        dns = serves_dns(pod, asked)
        if last is not None and last.pod is pod and last[1:] == (heard, listening is not None, dns):
            continue
        declared = any(True for _ in container_ports(pod))
        if not declared and services is None:
            services = _services_by_pair(table)
        candidates = [] if declared else list(_candidates(services or {}, pod.metadata))
        wanted = served_ports(pod, candidates) | (DNS if dns else frozenset())
        conditions = _conditions(pod, wanted, heard, looked=listening is not None)
        pods[key] = _judgement(pod, conditions)
        if declared:
            _judged[key] = _Judged(pods[key], heard, listening is not None, dns)


def _heard(cluster: str, pod: Pod, listening: Listening | None) -> frozenset[tuple[str, int]] | None:
    """What listens in the pod's namespace; None where that is not there (or nobody looked)."""
    if listening is None:
        return None
    meta, spec = pod.metadata, pod.spec
    if spec.hostNetwork:
        return listening.get(names.node_netns(cluster, spec.nodeName))
    return listening.get(names.pod_netns(cluster, meta.namespace, meta.name))


def _conditions(
    pod: Pod, wanted: Collection[tuple[str, int]], heard: frozenset[tuple[str, int]] | None, *, looked: bool
) -> tuple[Condition, ...]:
    missing = _missing(wanted, heard) if looked else _as_before(pod)
    if missing:
        return _unready(missing)
    return GATED if pod.metadata.annotations.get(GATE) == "false" else READY


def _missing(wanted: Collection[tuple[str, int]], heard: frozenset[tuple[str, int]] | None) -> str:
    """What keeps the containers from being ready, as a sentence; empty where nothing does."""
    if heard is None:
        return "the network namespace is not there"
    silent = sorted(port for port in set(wanted) - heard if port[0] in SERVED)
    if not silent and HEALTHY in set(wanted) - heard:
        return f"the health check on port {HEALTHY[1]} fails"
    return f"not listening: {', '.join(f'{port}/{protocol}' for protocol, port in silent)}" if silent else ""


def _as_before(pod: Pod) -> str:
    """Where nobody looked, what was last seen holds; of a new pod nothing was seen, so nothing is missing."""
    before = (
        item.message for item in pod.status.conditions if item.type == "ContainersReady" and item.status != "True"
    )
    return next(before, "") if pod.status.phase == "Running" else ""


def _judgement(pod: Pod, conditions: tuple[Condition, ...]) -> Pod:
    status = pod.status
    if not status.podIP:
        waiting = PodStatus("Pending", conditions=_unready("no address of the node's subnet is free"))
        return pod if status == waiting else msgspec.structs.replace(pod, status=waiting)
    if status.phase == "Running" and status.conditions == conditions and not status.message and not status.reason:
        return pod
    running = msgspec.structs.replace(status, phase="Running", conditions=conditions, reason="", message="")
    return msgspec.structs.replace(pod, status=running)


def _services_by_pair(table: Table) -> Mapping[tuple[str, str, str], list[Service]]:
    """Services by namespace and the first label they select by, so that no pod is held against every Service."""
    found: defaultdict[tuple[str, str, str], list[Service]] = defaultdict(list)
    for key, service in of(table, Service).items():
        for label, value in (service.spec.selector or {}).items():
            found[key.namespace, label, value].append(service)
            break
    return found


def _candidates(services: Mapping[tuple[str, str, str], list[Service]], meta: ObjectMeta) -> Iterator[Service]:
    for label, value in meta.labels.items():
        yield from services.get((meta.namespace, label, value), ())


# --- workloads --------------------------------------------------------------------------------------------------------


def count(table: Table) -> None:
    """The status of every workload."""
    pods = by_owner(of(table, Pod).values())
    for kind in (ReplicaSet, ReplicationController):
        _each(table, kind, lambda key, _workload: _of_set(pods.get(key, [])))
    sets = by_owner(of(table, ReplicaSet).values())
    _each(table, Deployment, lambda key, workload: _of_deployment(key, workload, sets.get(key, [])))
    _each(table, StatefulSet, lambda key, workload: _of_stateful(key, workload, pods.get(key, [])))
    _each(table, DaemonSet, lambda key, _workload: _of_daemon(pods.get(key, [])))
    _each(table, Job, lambda key, _workload: WorkloadStatus(active=len(active(pods.get(key, []))) or None))


def _each(table: Table, kind: type[Workload], status: Callable[[Key, Any], WorkloadStatus]) -> None:
    workloads = table[kind.__name__]
    for key, workload in workloads.items():
        new = status(key, workload)
        if workload.status != new:
            workloads[key] = msgspec.structs.replace(workload, status=new)


def _of_set(owned: list[Pod]) -> WorkloadStatus:
    there = active(owned)
    ready = sum(map(is_ready, there))
    return WorkloadStatus(len(there), ready or None, ready or None)


def _of_deployment(key: Key, deployment: Deployment, sets: list[ReplicaSet]) -> WorkloadStatus:
    current = template_hash(key, deployment)
    ready = sum(item.status.readyReplicas or 0 for item in sets)
    updated = sum(item.status.replicas or 0 for item in sets if template_hash(key_of(item), item) == current)
    return WorkloadStatus(
        sum(item.status.replicas or 0 for item in sets), ready or None, ready or None, updated or None
    )


def _of_stateful(key: Key, workload: StatefulSet, owned: list[Pod]) -> WorkloadStatus:
    there = active(owned)
    updated = sum(pod.metadata.labels.get(REVISION) == revision(key, workload) for pod in there)
    ready = sum(map(is_ready, there))
    return WorkloadStatus(len(there), ready or None, ready or None, updated or None)


def _of_daemon(owned: list[Pod]) -> WorkloadStatus:
    there = active(owned)
    ready = sum(map(is_ready, there))
    return WorkloadStatus(currentNumberScheduled=len(there), desiredNumberScheduled=len(there), numberReady=ready)
