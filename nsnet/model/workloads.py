"""Namespaces, nodes, pods and what makes pods."""

from typing import Any

import msgspec

from nsnet.model.metadata import Condition, Labels, LabelSelector, ObjectMeta, Requirement


class Namespace(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    raw: dict[str, Any] = {}


class Taint(msgspec.Struct, frozen=True):
    key: str
    effect: str
    value: str = ""


class NodeSpec(msgspec.Struct, frozen=True):
    podCIDR: str = ""
    podCIDRs: tuple[str, ...] = ()
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False


class NodeAddress(msgspec.Struct, frozen=True):
    type: str  # InternalIP, ExternalIP or Hostname
    address: str


class NodeStatus(msgspec.Struct, frozen=True):
    addresses: tuple[NodeAddress, ...] = ()
    conditions: tuple[Condition, ...] = ()


class Node(msgspec.Struct, frozen=True):
    """A node. nsnet's own facts are annotations: `nsnet/network` (of the underlay), `nsnet/last-reserved-ip`."""

    metadata: ObjectMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()
    raw: dict[str, Any] = {}


class ContainerPort(msgspec.Struct, frozen=True):
    containerPort: int
    name: str = ""
    protocol: str = "TCP"
    hostPort: int | None = None
    hostIP: str = ""


class EnvVar(msgspec.Struct, frozen=True):
    name: str
    value: str | None = ""


class Container(msgspec.Struct, frozen=True):
    name: str
    image: str = ""
    ports: tuple[ContainerPort, ...] | None = ()
    env: tuple[EnvVar, ...] | None = ()


class HostAlias(msgspec.Struct, frozen=True):
    ip: str
    hostnames: tuple[str, ...] = ()


class NodeSelectorTerm(msgspec.Struct, frozen=True):
    matchExpressions: tuple[Requirement, ...] = ()
    matchFields: tuple[Requirement, ...] = ()


class NodeSelector(msgspec.Struct, frozen=True):
    nodeSelectorTerms: tuple[NodeSelectorTerm, ...] = ()


class NodeAffinity(msgspec.Struct, frozen=True):
    requiredDuringSchedulingIgnoredDuringExecution: NodeSelector | None = None


class PodAffinityTerm(msgspec.Struct, frozen=True):
    topologyKey: str
    labelSelector: LabelSelector | None = None
    namespaces: tuple[str, ...] | None = ()


class WeightedPodAffinityTerm(msgspec.Struct, frozen=True):
    podAffinityTerm: PodAffinityTerm
    weight: int = 1


class PodAntiAffinity(msgspec.Struct, frozen=True):
    requiredDuringSchedulingIgnoredDuringExecution: tuple[PodAffinityTerm, ...] | None = ()
    preferredDuringSchedulingIgnoredDuringExecution: tuple[WeightedPodAffinityTerm, ...] | None = ()


class Affinity(msgspec.Struct, frozen=True):
    nodeAffinity: NodeAffinity | None = None
    podAntiAffinity: PodAntiAffinity | None = None


class Toleration(msgspec.Struct, frozen=True):
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


class PodDNSConfigOption(msgspec.Struct, frozen=True):
    name: str = ""
    value: str | None = None


# What kubelet lets through to resolv.conf (`pkg/apis/core/validation`: MaxDNSNameservers, MaxDNSSearchPaths, …).
MOST_NAMESERVERS, MOST_SEARCHES, MOST_SEARCH_LETTERS = 3, 32, 2048


class PodDNSConfig(msgspec.Struct, frozen=True):
    nameservers: tuple[str, ...] | None = ()
    searches: tuple[str, ...] | None = ()
    options: tuple[PodDNSConfigOption, ...] | None = ()


class PodSpec(msgspec.Struct, frozen=True):
    containers: tuple[Container, ...] = ()
    nodeName: str = ""
    nodeSelector: Labels | None = None
    affinity: Affinity | None = None
    tolerations: tuple[Toleration, ...] | None = ()
    hostNetwork: bool = False
    hostname: str = ""
    subdomain: str = ""
    hostAliases: tuple[HostAlias, ...] | None = ()
    dnsPolicy: str = "ClusterFirst"
    dnsConfig: PodDNSConfig | None = None
    enableServiceLinks: bool | None = True
    terminationGracePeriodSeconds: int | None = None


class PodIP(msgspec.Struct, frozen=True):
    ip: str


class PodStatus(msgspec.Struct, frozen=True):
    phase: str = ""
    podIP: str = ""
    podIPs: tuple[PodIP, ...] = ()
    hostIP: str = ""
    conditions: tuple[Condition, ...] = ()
    reason: str = ""
    message: str = ""


class Pod(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()
    raw: dict[str, Any] = {}


class PodTemplateSpec(msgspec.Struct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()


class WorkloadSpec(msgspec.Struct, frozen=True):
    """What Deployment, ReplicaSet, ReplicationController, StatefulSet, DaemonSet and Job have in common."""

    selector: dict[str, Any] | None = None  # a LabelSelector, or a plain map in a ReplicationController: see `selector`
    template: PodTemplateSpec = PodTemplateSpec()
    replicas: int | None = None
    serviceName: str = ""  # StatefulSet
    parallelism: int | None = None  # Job
    completions: int | None = None


class WorkloadStatus(msgspec.Struct, frozen=True):
    replicas: int | None = None
    readyReplicas: int | None = None
    availableReplicas: int | None = None
    updatedReplicas: int | None = None
    currentNumberScheduled: int | None = None  # DaemonSet
    desiredNumberScheduled: int | None = None
    numberReady: int | None = None
    active: int | None = None  # Job


class Deployment(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: WorkloadSpec
    status: WorkloadStatus = WorkloadStatus()
    raw: dict[str, Any] = {}


class ReplicaSet(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: WorkloadSpec
    status: WorkloadStatus = WorkloadStatus()
    raw: dict[str, Any] = {}


class ReplicationController(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: WorkloadSpec
    status: WorkloadStatus = WorkloadStatus()
    raw: dict[str, Any] = {}


class StatefulSet(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: WorkloadSpec
    status: WorkloadStatus = WorkloadStatus()
    raw: dict[str, Any] = {}


class DaemonSet(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: WorkloadSpec
    status: WorkloadStatus = WorkloadStatus()
    raw: dict[str, Any] = {}


class Job(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: WorkloadSpec
    status: WorkloadStatus = WorkloadStatus()
    raw: dict[str, Any] = {}


Workload = Deployment | ReplicaSet | ReplicationController | StatefulSet | DaemonSet | Job
