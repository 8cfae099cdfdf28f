"""kubectl's columns for each kind.

Source: Kubernetes `pkg/printers/internalversion/printers.go`. What that prints from fields that stand-ins do not have
(container restarts, node images) is 0 or left out; where nsnet has something of its own to show, `-o wide` has it.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from nsnet import __version__, model, names
from nsnet.control.policy import policy, written
from nsnet.model import (
    Cluster,
    DaemonSet,
    Deployment,
    Endpoint,
    EndpointAddress,
    Endpoints,
    EndpointSlice,
    Event,
    Fault,
    Gateway,
    GatewayClass,
    HTTPRoute,
    Ingress,
    IngressClass,
    Job,
    MetaCondition,
    Namespace,
    Node,
    Object,
    Pod,
    ReplicaSet,
    ReplicationController,
    Service,
    ServicePort,
    StatefulSet,
    SubnetLease,
    Workload,
    internal_ip,
    is_ready,
)
from nsnet.state import socket_address

NONE = "<none>"
Cells = list[str]


class Look(msgspec.Struct, frozen=True):
    """What columns need besides the object: the cluster's name (for NETNS) and the time it is (for AGE)."""

    cluster: str
    now: datetime

    def age(self, obj: Object) -> str:
        """Since creationTimestamp; `<unknown>` without one, as kubectl has it."""
        stamp = obj.metadata.creationTimestamp
        if not stamp:
            return "<unknown>"
        try:
            return human((self.now - datetime.fromisoformat(stamp)).total_seconds())
        except (ValueError, TypeError):
            return "<invalid>"


def human(seconds: float) -> str:
    """A duration as kubectl prints it: 59s, 119s, 3m4s, 15m, 5h7m, 30h, 3d4h, 20d, 2y30d (apimachinery duration)."""
    whole = int(seconds)
    if whole < 0:
        return "0s" if whole >= -1 else "<invalid>"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 120:
        return f"{whole}s"
    if minutes < 10:
        return _pair(minutes, "m", whole % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _pair(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _pair(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    return _pair(days // 365, "y", days % 365, "d") if days < 8 * 365 else f"{days // 365}y"


def _pair(large: int, unit: str, small: int, part: str) -> str:
    return f"{large}{unit}{small}{part}" if small else f"{large}{unit}"


def header(kind: str, *, wide: bool) -> Cells:
    """The header of a kind's table."""
    plain, further, _ = _COLUMNS.get(kind, _OTHER)
    return [*plain, *(further if wide else ())]


def cells(obj: Object, look: Look, *, wide: bool) -> Cells:
    """The object's row."""
    plain, further, row = _COLUMNS.get(model.kind_of(obj), _OTHER)
    return row(obj, look)[: len(plain) + (len(further) if wide else 0)]


# --- one row per kind -------------------------------------------------------------------------------------------------


def pod_status(pod: Pod) -> str:
    """The STATUS column: Terminating, the reason, or the phase."""
    if model.is_terminating(pod):
        return "Terminating"
    return pod.status.reason or pod.status.phase or "Pending"


def pod_netns(pod: Pod, cluster: str) -> str:
    """The namespace in /run/netns in which the pod lives; its node's for hostNetwork."""
    if pod.spec.hostNetwork:
        return names.node_netns(cluster, pod.spec.nodeName)
    return names.pod_netns(cluster, pod.metadata.namespace, pod.metadata.name)


def _pod(pod: Pod, look: Look) -> Cells:
    containers = len(pod.spec.containers) or 1
    ready = f"{containers if is_ready(pod) else 0}/{containers}"
    node = pod.spec.nodeName or NONE
    netns = pod_netns(pod, look.cluster) if pod.spec.nodeName else NONE
    return [
        pod.metadata.name, ready, pod_status(pod), "0", look.age(pod),
        pod.status.podIP or NONE, node, NONE, NONE, netns,
    ]  # fmt: skip


def _service(service: Service, look: Look) -> Cells:
    spec = service.spec
    return [
        service.metadata.name, spec.type, spec.clusterIP or NONE, external_ip(service),
        ",".join(map(_port, spec.ports or ())) or NONE, look.age(service), pairs(spec.selector),
    ]  # fmt: skip


def external_ip(service: Service) -> str:
    """The EXTERNAL-IP column."""
    spec = service.spec
    if spec.type == "ExternalName":
        return spec.externalName
    ingress = service.status.loadBalancer.ingress or ()
    given = [item.ip or item.hostname for item in ingress] if spec.type == "LoadBalancer" else []
    found = [*given, *(spec.externalIPs or ())]
    return ",".join(found) or ("<pending>" if spec.type == "LoadBalancer" else NONE)


def _port(port: ServicePort) -> str:
    return f"{port.port}:{port.nodePort}/{port.protocol}" if port.nodePort else f"{port.port}/{port.protocol}"


def _endpoints(endpoints: Endpoints, look: Look) -> Cells:
    found = [
        socket_address(address.ip, port.port or 0) if port else address.ip
        for subset in endpoints.subsets or ()
        for port in subset.ports or (None,)
        for address in _addresses(subset.addresses)
    ]
    return [endpoints.metadata.name, shortened(found), look.age(endpoints)]


def _addresses(addresses: tuple[EndpointAddress, ...] | None) -> tuple[EndpointAddress, ...]:
    return addresses or ()


def shortened(items: Sequence[str], limit: int = 3) -> str:
    """`a,b,c + 2 more...`."""
    more = f" + {len(items) - limit} more..." if len(items) > limit else ""
    return (",".join(items[:limit]) or NONE) + more


def _slice(item: EndpointSlice, look: Look) -> Cells:
    ports = [str(port.port) if port.port else "*" for port in item.ports or ()]
    found = [address for endpoint in _slice_endpoints(item) for address in endpoint.addresses]
    listed = shortened(ports) if ports else "<unset>"
    return [item.metadata.name, item.addressType, listed, shortened(found) if found else "<unset>", look.age(item)]


def _slice_endpoints(item: EndpointSlice) -> tuple[Endpoint, ...]:
    return item.endpoints or ()


def _deployment(deployment: Deployment, look: Look) -> Cells:
    status = deployment.status
    ready = f"{status.readyReplicas or 0}/{_replicas(deployment)}"
    counts = [str(status.updatedReplicas or 0), str(status.availableReplicas or 0)]
    return [deployment.metadata.name, ready, *counts, look.age(deployment), *_images(deployment), _selector(deployment)]


def _replicas(workload: Workload) -> int:
    return 1 if workload.spec.replicas is None else workload.spec.replicas


def _replica_set(workload: ReplicaSet | ReplicationController, look: Look) -> Cells:
    counts = [_replicas(workload), workload.status.replicas or 0, workload.status.readyReplicas or 0]
    return [
        workload.metadata.name, *map(str, counts), look.age(workload), *_images(workload), _selector(workload),
    ]  # fmt: skip


def _stateful_set(workload: StatefulSet, look: Look) -> Cells:
    ready = f"{workload.status.readyReplicas or 0}/{_replicas(workload)}"
    return [workload.metadata.name, ready, look.age(workload), *_images(workload)]


def _daemon_set(workload: DaemonSet, look: Look) -> Cells:
    status = workload.status
    ready = status.numberReady or 0
    counts = [status.desiredNumberScheduled or 0, status.currentNumberScheduled or 0, ready]
    rest = [status.updatedReplicas or counts[1], status.availableReplicas or ready]
    chosen = pairs(workload.spec.template.spec.nodeSelector)
    return [
        workload.metadata.name, *map(str, counts + rest), chosen, look.age(workload), *_images(workload),
        _selector(workload),
    ]  # fmt: skip


def _job(job: Job, look: Look) -> Cells:
    wanted = 1 if job.spec.completions is None else job.spec.completions
    return [job.metadata.name, "Running", f"0/{wanted}", look.age(job), look.age(job), *_images(job), _selector(job)]


def _images(workload: Workload) -> Cells:
    containers = workload.spec.template.spec.containers
    return [",".join(item.name for item in containers), ",".join(item.image for item in containers)]


def _selector(workload: Workload) -> str:
    chosen = model.selector(workload)
    if isinstance(chosen, dict):
        return pairs(chosen)
    further = [
        f"{item.key} {item.operator.lower()} ({','.join(item.values)})" if item.values else item.key
        for item in chosen.matchExpressions or ()
    ]
    return ",".join([*(f"{name}={value}" for name, value in (chosen.matchLabels or {}).items()), *further]) or NONE


def pairs(labels: Mapping[str, str] | None) -> str:
    """`a=b,c=d`, or `<none>`."""
    return ",".join(f"{name}={value}" for name, value in sorted((labels or {}).items())) or NONE


ROLE = "node-role.kubernetes.io/"


def _node(node: Node, look: Look) -> Cells:
    roles = sorted(name.removeprefix(ROLE) for name in node.metadata.labels if name.startswith(ROLE))
    ready = "Ready" if model.condition(node.status.conditions, "Ready") else "NotReady"
    status = f"{ready},SchedulingDisabled" if node.spec.unschedulable else ready
    external = next((item.address for item in node.status.addresses if item.type == "ExternalIP"), NONE)
    return [
        node.metadata.name, status, ",".join(roles) or NONE, look.age(node), f"nsnet-{__version__}",
        internal_ip(node) or NONE, external, ",".join(node.spec.podCIDRs) or node.spec.podCIDR or NONE,
        names.node_netns(look.cluster, node.metadata.name),
    ]  # fmt: skip


def _namespace(namespace: Namespace, look: Look) -> Cells:
    return [namespace.metadata.name, "Active", look.age(namespace)]


def _event(event: Event, look: Look) -> Cells:
    about = event.involvedObject
    return [look.age(event), event.type, event.reason, f"{about.kind.lower()}/{about.name}", event.message]


def _lease(lease: SubnetLease, look: Look) -> Cells:
    return [lease.metadata.name, lease.PublicIP, lease.BackendType or NONE, look.age(lease)]


def _fault(fault: Fault, look: Look) -> Cells:
    spec = fault.spec
    kind = " ".join([spec.fault, *(f"{name}={value}" for name, value in spec.options.items())])
    return [fault.metadata.name, kind, ",".join(spec.on) or NONE, ",".join(spec.to) or NONE, spec.until or NONE,
            look.age(fault)]  # fmt: skip


def _cluster(cluster: Cluster, look: Look) -> Cells:
    net = cluster.networking
    return [
        cluster.metadata.name, net.podSubnet, net.serviceSubnet, cluster.flannel.Backend.Type, net.kubeProxyMode,
        look.age(cluster),
    ]  # fmt: skip


def _raw(obj: Object, *path: str) -> Any:
    """A field of a kind that has no struct."""
    value: Any = obj.raw
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _ingress(ingress: Ingress, look: Look) -> Cells:
    spec = ingress.spec
    hosts = shortened(list(dict.fromkeys(rule.host or "*" for rule in spec.rules or ()))) if spec.rules else "*"
    given = ",".join(item.ip or item.hostname for item in ingress.status.loadBalancer.ingress or ())
    named = spec.ingressClassName or model.annotation(ingress, "kubernetes.io/ingress.class") or NONE
    return [ingress.metadata.name, named, hosts, given, "80, 443" if spec.tls else "80", look.age(ingress)]


def _ingress_class(item: IngressClass, look: Look) -> Cells:
    return [item.metadata.name, item.spec.controller, NONE, look.age(item)]


def _gateway_class(item: GatewayClass, look: Look) -> Cells:
    return [item.metadata.name, item.spec.controllerName, _holds(item.status.conditions, "Accepted"), look.age(item)]


def _gateway(gateway: Gateway, look: Look) -> Cells:
    given = ",".join(item.value for item in gateway.status.addresses)
    programmed = _holds(gateway.status.conditions, "Programmed")
    return [gateway.metadata.name, gateway.spec.gatewayClassName, given, programmed, look.age(gateway)]


def _holds(conditions: Sequence[MetaCondition], kind: str) -> str:
    return next((item.status for item in conditions if item.type == kind), "Unknown")


def _http_route(route: HTTPRoute, look: Look) -> Cells:
    """The hostnames as gateway-api's printer column has them, a JSON list."""
    names = "[" + ",".join(f'"{name}"' for name in route.spec.hostnames or ()) + "]" if route.spec.hostnames else ""
    return [route.metadata.name, names, look.age(route)]


def _policy(obj: Object, look: Look) -> Cells:
    return [obj.metadata.name, written(policy(obj).selector), look.age(obj)]


def _config_map(obj: Object, look: Look) -> Cells:
    return [obj.metadata.name, str(_size(obj)), look.age(obj)]


def _size(obj: Object) -> int:
    return len(_raw(obj, "data") or ()) + len(_raw(obj, "binaryData") or ()) + len(_raw(obj, "stringData") or ())


def _secret(obj: Object, look: Look) -> Cells:
    return [obj.metadata.name, str(_raw(obj, "type") or "Opaque"), str(_size(obj)), look.age(obj)]


def _other(obj: Object, look: Look) -> Cells:
    return [obj.metadata.name, look.age(obj)]


Row = Callable[[Any, Look], Cells]
_TEMPLATE = ("CONTAINERS", "IMAGES", "SELECTOR")
_SETS = (("NAME", "DESIRED", "CURRENT", "READY", "AGE"), _TEMPLATE, _replica_set)
_OTHER: tuple[tuple[str, ...], tuple[str, ...], Row] = (("NAME", "AGE"), (), _other)
_COLUMNS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], Row]] = {
    "Pod": (
        ("NAME", "READY", "STATUS", "RESTARTS", "AGE"),
        ("IP", "NODE", "NOMINATED NODE", "READINESS GATES", "NETNS"),
        _pod,
    ),
    "Service": (("NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"), ("SELECTOR",), _service),
    "Endpoints": (("NAME", "ENDPOINTS", "AGE"), (), _endpoints),
    "EndpointSlice": (("NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"), (), _slice),
    "Deployment": (("NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"), _TEMPLATE, _deployment),
    "ReplicaSet": _SETS,
    "ReplicationController": _SETS,
    "StatefulSet": (("NAME", "READY", "AGE"), _TEMPLATE[:2], _stateful_set),
    "DaemonSet": (
        ("NAME", "DESIRED", "CURRENT", "READY", "UP-TO-DATE", "AVAILABLE", "NODE SELECTOR", "AGE"),
        _TEMPLATE,
        _daemon_set,
    ),
    "Job": (("NAME", "STATUS", "COMPLETIONS", "DURATION", "AGE"), _TEMPLATE, _job),
    "Node": (
        ("NAME", "STATUS", "ROLES", "AGE", "VERSION"),
        ("INTERNAL-IP", "EXTERNAL-IP", "POD-CIDR", "NETNS"),
        _node,
    ),
    "Namespace": (("NAME", "STATUS", "AGE"), (), _namespace),
    "Event": (("LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"), (), _event),
    "SubnetLease": (("NAME", "PUBLIC-IP", "BACKEND", "AGE"), (), _lease),
    "Fault": (("NAME", "FAULT", "ON", "TO", "UNTIL", "AGE"), (), _fault),
    "Cluster": (("NAME", "POD-SUBNET", "SERVICE-SUBNET", "BACKEND", "PROXY-MODE", "AGE"), (), _cluster),
    "Ingress": (("NAME", "CLASS", "HOSTS", "ADDRESS", "PORTS", "AGE"), (), _ingress),
    "IngressClass": (("NAME", "CONTROLLER", "PARAMETERS", "AGE"), (), _ingress_class),
    "GatewayClass": (("NAME", "CONTROLLER", "ACCEPTED", "AGE"), (), _gateway_class),
    "Gateway": (("NAME", "CLASS", "ADDRESS", "PROGRAMMED", "AGE"), (), _gateway),
    "HTTPRoute": (("NAME", "HOSTNAMES", "AGE"), (), _http_route),
    "NetworkPolicy": (("NAME", "POD-SELECTOR", "AGE"), (), _policy),
    "ConfigMap": (("NAME", "DATA", "AGE"), (), _config_map),
    "Secret": (("NAME", "TYPE", "DATA", "AGE"), (), _secret),
}
