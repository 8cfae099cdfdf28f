"""What is asked of one object."""

from collections.abc import Iterator, Mapping
from functools import lru_cache

import msgspec

from nsnet.model.cluster import Cluster
from nsnet.model.metadata import Condition, Family, Labels, LabelSelector, Requirement
from nsnet.model.objects import Object
from nsnet.model.services import Service, ServicePort, ServiceSpec
from nsnet.model.workloads import ContainerPort, Node, Pod, ReplicationController, Workload


def selects(selector: LabelSelector | Labels | None, labels: Mapping[str, str]) -> bool:
    """Does the selector match the labels? An empty or absent selector matches everything; callers decide otherwise."""
    if selector is None:
        return True
    if isinstance(selector, dict):
        return all(labels.get(name) == value for name, value in selector.items())
    pairs = selector.matchLabels or {}
    return all(labels.get(name) == value for name, value in pairs.items()) and all(
        meets(requirement, labels) for requirement in selector.matchExpressions or ()
    )


def selector(workload: Workload) -> LabelSelector | Labels:
    """A workload's selector; where it has none, its template's labels (as the API server defaults it)."""
    said = workload.spec.selector
    if not said:
        return dict(workload.spec.template.metadata.labels)
    if isinstance(workload, ReplicationController):
        return said
    return msgspec.convert(said, LabelSelector)


def meets(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    """One matchExpressions item; NotIn and DoesNotExist match where the key is absent (apimachinery labels)."""
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and value.isdigit() and int(value) > int(requirement.values[0])
        case "Lt":
            return value is not None and value.isdigit() and int(value) < int(requirement.values[0])
    return False


def condition(conditions: tuple[Condition, ...], kind: str) -> bool:
    """Is the condition of this type there and True?"""
    return any(item.type == kind and item.status == "True" for item in conditions)


ENDED = frozenset({"Succeeded", "Failed"})  # phases of a pod whose containers run no more


def is_ready(pod: Pod) -> bool:
    return condition(pod.status.conditions, "Ready")


def is_terminating(pod: Pod) -> bool:
    """Has it been deleted, and is its grace period not over yet? Without a clock only the period is known."""
    return pod.metadata.deletionTimestamp is not None or pod.metadata.deletionGracePeriodSeconds is not None


def is_unschedulable(pod: Pod) -> bool:
    """Has the scheduler found no node for it?"""
    return any(item.reason == "Unschedulable" for item in pod.status.conditions)


def internal_ip(node: Node) -> str:
    return next((item.address for item in node.status.addresses if item.type == "InternalIP"), "")


API_FAMILIES: Mapping[Family, str] = {"ip": "IPv4", "ip6": "IPv6"}


def family_of(address: str) -> Family:
    """The family of an address or subnet."""
    return "ip6" if ":" in address else "ip"


@lru_cache(256)
def subnets(said: str) -> tuple[str, ...]:
    """`10.244.0.0/16,fd00:10:244::/56` → its parts, in order."""
    return tuple(part for item in said.split(",") if (part := item.strip()))


def subnet_of(said: str, family: Family) -> str:
    """The part of a pair that is of the family; empty where there is none."""
    return next((part for part in subnets(said) if family_of(part) == family), "")


def families_of(cluster: Cluster) -> tuple[Family, ...]:
    """The families of the cluster's pods and Services; the first is the one that is meant where none is named."""
    return tuple(map(family_of, subnets(cluster.networking.podSubnet)))


def pod_ips(pod: Pod) -> tuple[str, ...]:
    """Every address of the pod, the first of which is podIP."""
    return tuple(item.ip for item in pod.status.podIPs) or ((pod.status.podIP,) if pod.status.podIP else ())


def cluster_ips(spec: ServiceSpec) -> tuple[str, ...]:
    """Every clusterIP; none where it is headless or an ExternalName."""
    if spec.type == "ExternalName" or spec.clusterIP == "None":
        return ()
    return tuple(filter(None, spec.clusterIPs or (spec.clusterIP,)))


def internal_ips(node: Node) -> tuple[str, ...]:
    return tuple(item.address for item in node.status.addresses if item.type == "InternalIP")


def pod_cidrs(node: Node) -> tuple[str, ...]:
    """The node's subnets, one per family."""
    return node.spec.podCIDRs or tuple(filter(None, (node.spec.podCIDR,)))


def annotation(obj: Object, name: str) -> str:
    return obj.metadata.annotations.get(name, "")


def container_ports(pod: Pod) -> Iterator[ContainerPort]:
    for container in pod.spec.containers:
        yield from container.ports or ()


def target_port(pod: Pod, port: ServicePort) -> int | None:
    """The number `port` reaches on this pod; None where it names a port the pod does not have."""
    target = port.targetPort or port.port
    if isinstance(target, int):
        return target
    for item in container_ports(pod):
        if item.name == target and item.protocol == port.protocol:
            return item.containerPort
    return None


def served_ports(pod: Pod, services: list[Service]) -> set[tuple[str, int]]:
    """(protocol, port) pairs the pod's stand-in listens on: what its containers declare, else what Services target.

    `services` are those of the pod's namespace.
    """
    declared = {(item.protocol, item.containerPort) for item in container_ports(pod)}
    if declared:
        return declared
    wanted = set()
    for service in services:
        if service.spec.selector and selects(service.spec.selector, pod.metadata.labels):
            for port in service.spec.ports or ():
                number = target_port(pod, port)
                if number is not None:
                    wanted.add((port.protocol, number))
    return wanted
