"""`describe`: one object, what belongs to it, and its events, laid out as kubectl does."""

import base64
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import click

from nsnet import model, names
from nsnet.cli import options
from nsnet.cli.columns import NONE, Look, external_ip, pod_netns, pod_status
from nsnet.cli.context import Running, running
from nsnet.cli.get import Query, select
from nsnet.cli.output import out, table
from nsnet.cli.redact import LAST_APPLIED
from nsnet.cli.target import pods_of
from nsnet.control.environment import changed_since, started_with
from nsnet.control.policy import KIND, account, policy
from nsnet.errors import InputError
from nsnet.model import Endpoint, EndpointSlice, Event, Node, Object, Objects, Pod, Service, SubnetLease
from nsnet.routes.world import port_of
from nsnet.state import socket_address

WIDTH = 22
Pair = tuple[str, str | Iterable[str]]
SHOWN_ELSEWHERE = {"apiVersion", "kind", "metadata"}


@options.verb("describe")
@click.argument("kind", metavar="KIND[/NAME]")
@click.argument("wanted", nargs=-1, metavar="[NAME…]")
@options.namespace
@options.cluster
def describe(kind: str, wanted: tuple[str, ...], namespace: str, cluster: str | None) -> None:
    """Show objects in full: what they say, what belongs to them, and their events."""
    word, slash, name = kind.partition("/")
    now = running("describe", cluster)
    found = select(now.objects, Query(word, (name, *wanted) if slash else wanted, namespace))
    if not found:
        raise InputError(f"there is no {word} in namespace {namespace}", f"nsnet get {word} -A")
    for index, obj in enumerate(found):
        if index:
            out("\n")
        for line in lines(now, obj):
            out(line)


def lines(now: Running, obj: Object) -> Iterator[str]:
    """The description of one object."""
    for label, value in (*_head(obj), *_body(now, obj)):
        yield from _field(label, value)
    if model.kind_of(obj) == KIND:  # as kubectl tells it; `nsnet policy why` says what it comes to
        yield "Spec:"
        yield from (f"  {line}" for line in account(policy(obj)))
    yield from _events(now, obj)


def _field(label: str, value: str | Iterable[str]) -> Iterator[str]:
    several = [value] if isinstance(value, str) else list(value)
    first, *others = several or [NONE]
    yield f"{label + ':':<{WIDTH}} {first}".rstrip()
    yield from (f"{'':<{WIDTH}} {item}" for item in others)


def _head(obj: Object) -> Iterator[Pair]:
    meta = obj.metadata
    yield "Name", meta.name
    if meta.namespace:
        yield "Namespace", meta.namespace
    yield "Labels", (f"{name}={value}" for name, value in sorted(meta.labels.items()))
    yield "Annotations", (f"{key}: {text}" for key, text in sorted(meta.annotations.items()) if key != LAST_APPLIED)
    if meta.ownerReferences:
        yield "Controlled By", (f"{owner.kind}/{owner.name}" for owner in meta.ownerReferences)


def _body(now: Running, obj: Object) -> Iterable[Pair]:
    match obj:
        case Pod():
            return _pod(now, obj)
        case Service():
            return _service(now.objects, obj)
        case Node():
            return _node(now, obj)
        case model.Other(kind=found) if found == KIND:
            return ()
        case model.Other(kind="Secret"):
            return _secret(obj)
        case model.Ingress():
            return _ingress(now.objects, obj)
        case _ if isinstance(obj, model.WORKLOADS):
            return _workload(now.objects, obj)
    return _plain(obj)


def _pod(now: Running, pod: Pod) -> Iterator[Pair]:
    yield "Node", f"{pod.spec.nodeName or NONE}{f'/{pod.status.hostIP}' if pod.status.hostIP else ''}"
    yield "Status", pod_status(pod)
    if pod.status.message:
        yield "Message", pod.status.message
    yield "IP", pod.status.podIP or NONE
    if len(model.pod_ips(pod)) > 1:
        yield "IPs", model.pod_ips(pod)
    if pod.spec.nodeName:
        yield "Network Namespace", f"/run/netns/{pod_netns(pod, now.cluster)}"
    yield (
        "Containers",
        (
            f"{item.name} ({item.image or 'no image'}): "
            + (", ".join(f"{port.containerPort}/{port.protocol}" for port in item.ports or ()) or "no ports declared")
            for item in pod.spec.containers
        ),
    )
    yield "Conditions", (f"{item.type}={item.status} {item.reason}".rstrip() for item in pod.status.conditions)
    yield "Environment", _environment(now.objects, pod)
    services = [item for item in model.of(now.objects, Service) if item.metadata.namespace == pod.metadata.namespace]
    yield (
        "Selected By",
        (
            f"Service/{item.metadata.name}"
            for item in services
            if item.spec.selector and model.selects(item.spec.selector, pod.metadata.labels)
        ),
    )


def _environment(objects: Objects, pod: Pod) -> Iterator[str]:
    """Which Services its variables name, and in what they are out of date: they are as the pod found them."""
    found = [item.name for item in started_with(objects, pod)]
    yield f"names {', '.join(found)}" if found else "names no Service"
    for name, how in changed_since(objects, pod).items():
        yield f"service {name}: {how}"


def _service(objects: Objects, service: Service) -> Iterator[Pair]:
    spec = service.spec
    yield "Selector", ",".join(f"{name}={value}" for name, value in (spec.selector or {}).items()) or NONE
    yield "Type", spec.type
    if set(spec.ipFamilies or ()) - {"IPv4"}:
        yield "IP Family Policy", spec.ipFamilyPolicy or NONE
        yield "IP Families", ",".join(spec.ipFamilies or ())
    yield "IP", spec.clusterIP or NONE
    if len(spec.clusterIPs or ()) > 1:
        yield "IPs", ",".join(spec.clusterIPs or ())
    if spec.type in {"LoadBalancer", "ExternalName"} or spec.externalIPs:
        yield "External IP", external_ip(service)
    if model.balanced_addresses(service):
        yield "Balanced To", ", ".join(model.balanced_nodes(service)) or "no node"
        port_asked = model.health_port(service, model.cluster_of(objects), model.kube_proxy_of(objects))
        yield "Health Checks", f"every node, port {port_asked}"
    for port in spec.ports or ():
        named = f"{port.name}  " if port.name else ""
        yield "Port", f"{named}{port.port}/{port.protocol}"
        yield "TargetPort", f"{port.targetPort or port.port}/{port.protocol}"
        if port.nodePort:
            yield "NodePort", f"{named}{port.nodePort}/{port.protocol}"
        yield "Endpoints", ",".join(_endpoints(objects, service, port.name)) or NONE
        chain = names.service_port(service.metadata.namespace, service.metadata.name, port.name)
        yield "Chain", names.kube_chain("SVC", chain, port.protocol)
    yield "Session Affinity", getattr(spec, "sessionAffinity", "") or "None"


def _endpoints(objects: Objects, service: Service, port_name: str) -> Iterator[str]:
    for item in model.of(objects, EndpointSlice):
        mine = item.metadata.labels.get("kubernetes.io/service-name") == service.metadata.name
        if not mine or item.metadata.namespace != service.metadata.namespace:
            continue
        numbers = [port.port for port in item.ports or () if (port.name or "") == port_name]
        for endpoint in item.endpoints or ():
            yield from (f"{socket_address(endpoint.addresses[0], number or 0)}{_state(endpoint)}" for number in numbers)


def _ingress(objects: Objects, ingress: model.Ingress) -> Iterator[Pair]:
    """As kubectl has it: each host and path with its Service and the endpoints behind it now."""
    spec = ingress.spec
    yield "Address", ",".join(item.ip or item.hostname for item in ingress.status.loadBalancer.ingress or ()) or NONE
    yield "Ingress Class", spec.ingressClassName or NONE
    yield "Default backend", _backend(objects, ingress, spec.defaultBackend) if spec.defaultBackend else NONE
    if spec.tls:
        yield "TLS", (f"{item.secretName or NONE} terminates {','.join(item.hosts or ())}" for item in spec.tls)
    rows = [
        [rule.host or "*", f"{path.path or '/'} ({path.pathType})", _backend(objects, ingress, path.backend)]
        for rule in spec.rules or ()
        for path in (rule.http.paths if rule.http else ())
    ]
    yield "Rules", table([["Host", "Path", "Backends"], *rows])


def _backend(objects: Objects, ingress: model.Ingress, backend: model.IngressBackend) -> str:
    """`web:80 (10.244.1.2:8080,10.244.2.2:8080)`."""
    said = backend.service
    if said is None:
        return "a resource, which is not served"
    wanted = said.port.name or said.port.number or 0
    service = objects.get(model.Key("Service", ingress.metadata.namespace, said.name))
    port = port_of(service, wanted) if isinstance(service, Service) else None
    if not isinstance(service, Service) or port is None:
        return f"{said.name}:{wanted} (<error: {'no such port' if service else 'services not found'}>)"
    return f"{said.name}:{wanted} ({','.join(_endpoints(objects, service, port.name)) or NONE})"


def _state(endpoint: Endpoint) -> str:
    said = endpoint.conditions
    if said is None or said.ready is not False:
        return ""
    return " (terminating)" if said.terminating else " (not ready)"


def _node(now: Running, node: Node) -> Iterator[Pair]:
    yield "Addresses", (f"{item.type}: {item.address}" for item in node.status.addresses)
    yield "PodCIDR", ",".join(model.pod_cidrs(node)) or NONE
    lease = next((item for item in model.of(now.objects, SubnetLease) if node.spec.podCIDR in item.subnets), None)
    if lease is not None:
        public = (lease.PublicIP, lease.PublicIPv6 or "")
        at = ((subnet, public[":" in subnet]) for subnet in lease.subnets)
        held = ", ".join(f"{subnet} at {address}" for subnet, address in at)
        yield "Lease", f"{held}, backend {lease.BackendType or NONE}"
    yield "Taints", (f"{taint.key}={taint.value}:{taint.effect}" for taint in node.spec.taints)
    yield "Network Namespace", f"/run/netns/{names.node_netns(now.cluster, node.metadata.name)}"
    yield "Pods", _pod_rows([pod for pod in model.of(now.objects, Pod) if pod.spec.nodeName == node.metadata.name])


def _pod_rows(pods: list[Pod]) -> list[str]:
    return table(
        [pod.metadata.namespace, pod.metadata.name, pod.status.podIP or NONE, pod_status(pod)] for pod in pods
    )  # fmt: skip


def _workload(objects: Objects, workload: model.Workload) -> Iterator[Pair]:
    chosen = model.selector(workload)
    labels = chosen if isinstance(chosen, dict) else (chosen.matchLabels or {})
    yield "Selector", ",".join(f"{name}={value}" for name, value in labels.items()) or NONE
    pods = pods_of(objects, workload)
    ready = len([pod for pod in pods if model.is_ready(pod)])
    wanted = "" if workload.spec.replicas is None else f"{workload.spec.replicas} desired, "
    yield "Replicas", f"{wanted}{len(pods)} there, {ready} ready"
    yield "Pods", _pod_rows(pods)


def _secret(secret: model.Other) -> Iterator[Pair]:
    """How long its values are, and none of them: a description is read over shoulders, and pasted."""
    said = {key: base64.b64decode(value) for key, value in (secret.raw.get("data") or {}).items()}
    said |= {key: value.encode() for key, value in (secret.raw.get("stringData") or {}).items()}
    yield "Type", secret.raw.get("type") or "Opaque"
    yield "Data", (f"{key}:  {len(value)} bytes" for key, value in sorted(said.items()))


def _plain(obj: Object) -> Iterator[Pair]:
    """Any other kind: its fields as YAML."""
    import yaml

    for name, value in model.to_doc(obj).items():
        if name not in SHOWN_ELSEWHERE and value:
            yield name[:1].upper() + name[1:], _yaml(yaml.safe_dump(value, sort_keys=False, width=100))


def _yaml(text: Any) -> list[str]:
    return [line for line in str(text).splitlines() if line != "..."]


def _events(now: Running, obj: Object) -> Iterator[str]:
    kind, meta = model.kind_of(obj), obj.metadata
    about = (kind, meta.namespace, meta.name)
    look = Look(now.cluster, datetime.now(UTC))
    found = [
        [event.type, event.reason, look.age(event), event.message]
        for event in model.of(now.objects, Event)
        if (event.involvedObject.kind, event.involvedObject.namespace, event.involvedObject.name) == about
    ]
    if not found:
        yield f"{'Events:':<{WIDTH}} {NONE}"
        return
    yield "Events:"
    yield from (f"  {line}" for line in table([("Type", "Reason", "Age", "Message"), *found]))
