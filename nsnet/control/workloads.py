"""Deployment → ReplicaSet → Pods, StatefulSet, DaemonSet, ReplicationController, Job: who must exist, and who may go.

Level-triggered: from the objects as they are to the objects as they should be, with no memory of events. Names are
Kubernetes' (`web-<hash of the template>-<suffix>`, `web-0`), but suffixes are hashes with probing instead of dice, so
that the same manifests give the same pods. A pod belongs to a workload by its ownerReferences alone; a pod that stands
in a manifest is never adopted, or a scale-down would delete what the files declare.

A changed template of a Deployment makes a new ReplicaSet at full size; old pods go one for one as new ones are ready
(maxUnavailable 0; `strategy: Recreate` ends them first). Old ReplicaSets stay at 0, at most ten of them. StatefulSets
and DaemonSets replace all pods of an older revision at once, and start in parallel: a stand-in needs no warm-up.
ReplicaSet, ReplicationController and Job leave existing pods alone, as Kubernetes does. A Job's pods run on and serve.

Sources: `pkg/controller/{deployment,replicaset,statefulset,daemon,job}`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from nsnet import names
from nsnet.control import scheduler
from nsnet.control.lifecycle import end
from nsnet.control.table import Table, by_owner, of, ordered, owner, with_meta, with_spec
from nsnet.model import (
    ENDED,
    DaemonSet,
    Deployment,
    Job,
    Key,
    LabelSelector,
    Node,
    ObjectMeta,
    Pod,
    PodSpec,
    ReplicaSet,
    ReplicationController,
    StatefulSet,
    Toleration,
    Workload,
    WorkloadSpec,
    is_ready,
    is_terminating,
    key_of,
    to_doc,
)

HASH = "pod-template-hash"
REVISION = "controller-revision-hash"
NUMBER = "deployment.kubernetes.io/revision"
HISTORY = 10  # old ReplicaSets that are kept (revisionHistoryLimit)
LONGEST = 58  # of a generated name's base, so that the whole is a DNS label (apiserver names.SimpleNameGenerator)
DAEMON_TOLERATIONS = tuple(
    Toleration(f"node.kubernetes.io/{taint}", "Exists", effect=effect)
    for taint, effect in (
        ("not-ready", "NoExecute"), ("unreachable", "NoExecute"), ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"), ("pid-pressure", "NoSchedule"), ("unschedulable", "NoSchedule"),
    )
)  # fmt: skip

Owned = Mapping[tuple[str, str, str], list[Pod]]  # owner's key → its pods
_hashes: dict[Key, tuple[WorkloadSpec, str]] = {}  # the last answer for each workload, found again by `is`


def expand(table: Table) -> None:
    """Every pod that a workload wants is there afterwards, and none that no workload wants any more."""
    for key in [key for key in _hashes if key not in table[key.kind]]:
        del _hashes[key]
    sets = by_owner(of(table, ReplicaSet).values())
    pods = by_owner(of(table, Pod).values())
    for key, deployment in ordered(table, Deployment):
        _deployment(table, key, deployment, sets.get(key, []), pods)
    for key, item in ordered(table, ReplicaSet):
        _replicas(table, key, item, pods.get(key, []))
    for key, controller in ordered(table, ReplicationController):
        _replicas(table, key, controller, pods.get(key, []))
    for key, stateful in ordered(table, StatefulSet):
        _stateful(table, key, stateful, pods.get(key, []))
    for key, daemon in ordered(table, DaemonSet):
        _daemon(table, key, daemon, pods.get(key, []))
    for key, job in ordered(table, Job):
        _job(table, key, job, pods.get(key, []))


def active(pods: Iterable[Pod]) -> list[Pod]:
    """Without those that have ended, or are about to."""
    return [pod for pod in pods if pod.status.phase not in ENDED and not is_terminating(pod)]


def wanted(workload: Workload) -> int:
    """replicas; 1 where the manifest says none."""
    return 1 if workload.spec.replicas is None else workload.spec.replicas


# --- templates --------------------------------------------------------------------------------------------------------


def template_hash(key: Key, workload: Workload) -> str:
    """Ten characters that are the same for the same template, whatever was left to defaults."""
    last = _hashes.get(key)
    if last is None or last[0] is not workload.spec:
        last = _hashes[key] = workload.spec, names.suffix(_template(workload), 10)
    return last[1]


def _template(workload: Workload) -> str:
    """The template as text, without the label that the Deployment controller puts there."""
    doc = to_doc(workload).get("spec", {}).get("template", {})
    meta = {**doc.get("metadata", {})}
    meta["labels"] = {name: value for name, value in meta.get("labels", {}).items() if name != HASH}
    return msgspec.json.encode(_dense({**doc, "metadata": meta}), order="deterministic").decode()


def _dense(value: Any) -> Any:
    """Without empty fields: `resources: {}` says what nothing says."""
    if isinstance(value, dict):
        pairs = ((name, _dense(item)) for name, item in value.items())
        return {name: item for name, item in pairs if item not in (None, "", [], {})}
    if isinstance(value, list | tuple):
        return [_dense(item) for item in value]
    return value


def _raw(workload: Workload, *path: str) -> dict[str, Any]:
    """Part of what the manifest said besides the declared fields."""
    found: Any = workload.raw
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


# --- pods -------------------------------------------------------------------------------------------------------------


def generated(base: str, number: int) -> str:
    """`web-6d4cf56db6-x7k2p`: the `number`th name of a series, a function of the base's name."""
    return f"{base[: LONGEST - 1]}-{names.suffix(f'{base}#{number}')}"


class _Mould:
    """What all pods of a workload have in common, made once."""

    def __init__(self, workload: Workload, labels: Mapping[str, str], spec: PodSpec | None = None) -> None:
        template = workload.spec.template
        self.namespace = workload.metadata.namespace
        self.labels = {**template.metadata.labels, **labels}
        self.annotations = template.metadata.annotations
        self.owners = (owner(workload),)
        self.spec = spec or template.spec
        raw = _raw(workload, "spec", "template", "spec")
        self.raw = {"spec": raw} if raw else {}

    def pod(self, name: str, generate: str = "", labels: Mapping[str, str] | None = None, **spec: Any) -> Pod:
        meta = ObjectMeta(
            name=name,
            namespace=self.namespace,
            generateName=generate,
            labels={**self.labels, **labels} if labels else self.labels,
            annotations=self.annotations,
            ownerReferences=self.owners,
            uid=names.uid("Pod", self.namespace, name),
        )
        return Pod(meta, msgspec.structs.replace(self.spec, **spec) if spec else self.spec, raw=self.raw)


def _generate(table: Table, mould: _Mould, base: str, count: int) -> None:
    """`count` more pods with generated names, the first of the series that are free."""
    pods = of(table, Pod)
    number = 0
    while count > 0:
        name = generated(base, number)
        number += 1
        key = Key("Pod", mould.namespace, name)
        if key not in pods:
            pods[key] = mould.pod(name, f"{base}-")
            count -= 1


def _spare(pods: list[Pod], base: str, count: int) -> list[Pod]:
    """The `count` pods a scale-down takes: unplaced ones, then unready ones, then the youngest names of the series."""
    series = {generated(base, number): number for number in range(2 * len(pods) + 8)}

    def rank(pod: Pod) -> tuple[bool, bool, int, str]:
        name = pod.metadata.name
        return bool(pod.spec.nodeName), is_ready(pod), -series.get(name, -1), name

    return sorted(pods, key=rank)[:count]


def _replicas(table: Table, key: Key, workload: ReplicaSet | ReplicationController, owned: list[Pod]) -> None:
    there = active(owned)
    want = wanted(workload)
    if len(there) < want:
        _generate(table, _Mould(workload, {}), key.name, want - len(there))
    for pod in _spare(there, key.name, len(there) - want) if len(there) > want else ():
        end(table, pod)


# --- Deployment -------------------------------------------------------------------------------------------------------


def _deployment(
    table: Table,
    key: Key,
    deployment: Deployment,
    sets: list[ReplicaSet],
    pods: Owned,
) -> None:
    current = _current(table, key, deployment, sets)
    want = wanted(deployment)
    old = sorted((item for item in sets if item.metadata.name != current.metadata.name), key=_age)
    new_pods = active(pods.get(("ReplicaSet", key.namespace, current.metadata.name), []))
    left = max(0, want - sum(is_ready(pod) or scheduler.no_room(pod) for pod in new_pods))
    if _raw(deployment, "spec", "strategy").get("type") == "Recreate":
        left = 0
    for item in reversed(old):
        kept = min(wanted(item), left)
        left -= kept
        _scale(table, item, kept)
    _scale(table, current, want)
    empty = [item for item in old if not table["ReplicaSet"][key_of(item)].spec.replicas]
    for item in empty[:-HISTORY]:
        del table["ReplicaSet"][key_of(item)]


def _number(item: ReplicaSet) -> int:
    said = item.metadata.annotations.get(NUMBER, "")
    return int(said) if said.isdecimal() else 0


def _age(item: ReplicaSet) -> tuple[int, str]:
    return _number(item), item.metadata.name


def _scale(table: Table, item: ReplicaSet, replicas: int) -> None:
    if item.spec.replicas != replicas:
        table["ReplicaSet"][key_of(item)] = with_spec(item, replicas=replicas)


def _current(table: Table, key: Key, deployment: Deployment, sets: list[ReplicaSet]) -> ReplicaSet:
    """The ReplicaSet of the template as it is now: one that is there, the newest if there are several, or a new one."""
    wanted_hash = template_hash(key, deployment)
    same = [item for item in sets if template_hash(key_of(item), item) == wanted_hash]
    highest = max(map(_number, sets), default=0)
    if not same:
        return _new_set(table, key, deployment, wanted_hash, highest + 1)
    found = max(same, key=_age)
    if _number(found) < highest or not _number(found):  # a rollback: an old template is the newest again
        number = str(highest + 1)
        found = with_meta(found, annotations={**found.metadata.annotations, NUMBER: number})
        table["ReplicaSet"][key_of(found)] = found
    return found


def _new_set(table: Table, key: Key, deployment: Deployment, template: str, number: int) -> ReplicaSet:
    """Probes the name: it may be taken by a ReplicaSet of somebody else."""
    tries = 0
    while True:
        label = names.suffix(f"{template}#{tries}", 10) if tries else template
        name = f"{key.name}-{label}"
        if Key("ReplicaSet", key.namespace, name) not in table["ReplicaSet"]:
            break
        tries += 1
    said = deployment.spec.template
    labels = {**said.metadata.labels, HASH: label}
    meta = ObjectMeta(
        name=name,
        namespace=key.namespace,
        labels=labels,
        annotations={NUMBER: str(number)},
        ownerReferences=(owner(deployment),),
        uid=names.uid("ReplicaSet", key.namespace, name),
    )
    template_meta = msgspec.structs.replace(said.metadata, labels=labels)
    spec = WorkloadSpec(
        selector=_with_hash(deployment, label),
        template=msgspec.structs.replace(said, metadata=template_meta),
        replicas=0,
    )
    raw = _raw(deployment, "spec", "template")
    found = ReplicaSet(meta, spec, raw={"spec": {"template": raw}} if raw else {})
    table["ReplicaSet"][key_of(found)] = found
    return found


def _with_hash(deployment: Deployment, label: str) -> dict[str, Any]:
    """The Deployment's selector, and the label that tells its ReplicaSets apart."""
    said = deployment.spec.selector or {"matchLabels": dict(deployment.spec.template.metadata.labels)}
    selector = msgspec.convert(said, LabelSelector)
    expressions = {"matchExpressions": said["matchExpressions"]} if selector.matchExpressions else {}
    return {"matchLabels": {**(selector.matchLabels or {}), HASH: label}, **expressions}


def rolling(table: Table) -> bool:
    """Is there a Deployment that waits for new pods to become ready before old ones go?"""
    several = [sets for sets in by_owner(of(table, ReplicaSet).values()).values() if len(sets) > 1]
    if not several:
        return False
    pods = by_owner(of(table, Pod).values())
    return any(sum(bool(active(pods.get(key_of(item), []))) for item in sets) > 1 for sets in several)


# --- StatefulSet, DaemonSet, Job --------------------------------------------------------------------------------------


def revision(key: Key, workload: StatefulSet | DaemonSet) -> str:
    """The value of the label controller-revision-hash of its pods."""
    found = template_hash(key, workload)
    return f"{key.name}-{found}" if key.kind == "StatefulSet" else found


def _stateful(table: Table, key: Key, workload: StatefulSet, owned: list[Pod]) -> None:
    pods = of(table, Pod)
    current = revision(key, workload)
    start = _raw(workload, "spec", "ordinals").get("start") or 0
    ordinals = {f"{key.name}-{number}": number for number in range(start, start + wanted(workload))}
    for pod in owned:
        if pod.metadata.name not in ordinals or _outdated(pod, current):
            end(table, pod)
    mould = None
    for name, number in ordinals.items():
        pod_key = Key("Pod", key.namespace, name)
        if pod_key in pods:
            continue
        mould = mould or _Mould(workload, {REVISION: current})
        labels = {"statefulset.kubernetes.io/pod-name": name, "apps.kubernetes.io/pod-index": str(number)}
        pods[pod_key] = mould.pod(
            name, labels=labels, hostname=name, subdomain=workload.spec.serviceName or mould.spec.subdomain
        )


def _outdated(pod: Pod, current: str) -> bool:
    return pod.metadata.labels.get(REVISION) != current or pod.status.phase in ENDED


def _daemon(table: Table, key: Key, workload: DaemonSet, owned: list[Pod]) -> None:
    current = revision(key, workload)
    spec = workload.spec.template.spec
    tolerations = (*(spec.tolerations or ()), *DAEMON_TOLERATIONS)
    if spec.hostNetwork:
        tolerations += (Toleration("node.kubernetes.io/network-unavailable", "Exists", effect="NoSchedule"),)
    spec = msgspec.structs.replace(spec, tolerations=tolerations)
    nodes = {name: node for (_, _, name), node in sorted(of(table, Node).items()) if spec.nodeName in {"", name}}
    stays = {name for name, node in nodes.items() if not scheduler.why_not(spec, node, running=True)}
    served = _one_per_node(table, owned, stays, current)
    mould = _Mould(workload, {REVISION: current}, spec)
    for name, node in nodes.items():
        if name not in served and not scheduler.why_not(spec, node):
            _put_daemon(table, mould, key.name, f"{key.name}/{current}/{name}", name)


def _one_per_node(table: Table, owned: list[Pod], places: set[str], current: str) -> set[str]:
    """The nodes that have their pod; ends those that are outdated, misplaced or second on a node."""
    served: set[str] = set()
    for pod in sorted(owned, key=lambda item: item.metadata.name):
        if is_terminating(pod):
            continue
        node = pod.spec.nodeName
        if node in places and node not in served and not _outdated(pod, current):
            served.add(node)
        else:
            end(table, pod)
    return served


def _put_daemon(table: Table, mould: _Mould, base: str, series: str, node: str) -> None:
    pods = of(table, Pod)
    number = 0
    while True:
        name = f"{base[: LONGEST - 1]}-{names.suffix(f'{series}#{number}')}"
        key = Key("Pod", mould.namespace, name)
        if key not in pods:
            pods[key] = mould.pod(name, f"{base}-", nodeName=node)
            return
        number += 1


def _job(table: Table, key: Key, job: Job, owned: list[Pod]) -> None:
    """As many pods as run at once; completed ones of a dump count, so that a Job that is done stays done."""
    spec = job.spec
    parallel = 1 if spec.parallelism is None else spec.parallelism
    want = parallel if spec.completions is None else min(parallel, spec.completions)
    want = 0 if _raw(job, "spec").get("suspend") else want
    there = [pod for pod in owned if not is_terminating(pod)]
    uid = job.metadata.uid or names.uid(*key)
    labels = {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": key.name,
        "controller-uid": uid,
        "job-name": key.name,
    }
    if spec.selector is None:
        selector = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
        table["Job"][key] = with_spec(job, selector=selector)
    if len(there) < want:
        _generate(table, _Mould(job, labels), key.name, want - len(there))
    running = active(there)
    for pod in _spare(running, key.name, len(there) - want) if len(there) > want else ():
        end(table, pod)
