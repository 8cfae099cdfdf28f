"""Endpoints and EndpointSlices as Kubernetes' three controllers write them.

- endpointslice: for a Service with a selector, one slice per distinct set of resolved ports (pods may have a named port
  at different numbers) and family, at most 100 endpoints each; at least one, if empty. Terminating pods stay in, marked
  so; a pod without an address of the family is left out.
- endpoints: the older form of the same, without terminating pods; addresses with the same ports share a subset.
- endpointslicemirroring: hand-written Endpoints of a Service without a selector become slices.

Hand-written slices are left alone. Which object is whose is in its labels and ownerReferences, as upstream.

Sources: `pkg/controller/{endpoint,endpointslice,endpointslicemirroring}`, `staging/src/k8s.io/endpointslice`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from nsnet import names
from nsnet.control import kubernetes, topology
from nsnet.control.addresses import number
from nsnet.control.scheduler import natural
from nsnet.control.table import Table, drop, of, owned_by, owner, settled
from nsnet.control.workloads import LONGEST
from nsnet.model import (
    API_FAMILIES,
    ENDED,
    SERVICE_NAME,
    Endpoint,
    EndpointAddress,
    EndpointConditions,
    EndpointPort,
    Endpoints,
    EndpointSlice,
    EndpointSubset,
    Key,
    Node,
    ObjectMeta,
    ObjectReference,
    Pod,
    Service,
    family_of,
    is_ready,
    is_terminating,
    pod_ips,
    selects,
    target_port,
)

MANAGED = "endpointslice.kubernetes.io/managed-by"
CONTROLLER = "endpointslice-controller.k8s.io"
MIRROR = "endpointslicemirroring-controller.k8s.io"
SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"
HEADLESS = "service.kubernetes.io/headless"
ENDPOINTS_MANAGED = "endpoints.kubernetes.io/managed-by"
TOLERATE = "service.alpha.kubernetes.io/tolerate-unready-endpoints"
LARGEST = 100  # endpoints per slice (--max-endpoints-per-slice)
MIRRORED = 1000  # of hand-written Endpoints, per subset

Ports = tuple[EndpointPort, ...]
Written = Endpoints | EndpointSlice


class _Kept(NamedTuple):
    """The last answer for a Service or Endpoints, and what it came from: found again by `is`."""

    source: Service | Endpoints
    members: tuple[Pod, ...]
    zones: topology.Zones | None
    written: tuple[Written, ...]


_kept: dict[Key, _Kept] = {}


def write(table: Table, now: str) -> None:
    """All Endpoints and EndpointSlices that follow from Services and pods."""
    services = of(table, Service)
    zones = topology.zones(of(table, Node))
    pods = _by_pair(services, of(table, Pod))
    wanted: set[Key] = set()
    used: dict[Key, _Kept] = {}
    for key, service in services.items():
        spec = service.spec
        if spec.selector and spec.type != "ExternalName":
            members = tuple(_members(key, service, pods))
            used[key] = _settle(table, _Kept(service, members, zones, ()), _kept.get(key), now)
            wanted.update(_key(item) for item in used[key].written)
    for key, endpoints in list(of(table, Endpoints).items()):
        if key not in wanted and _is_mirrored(key, endpoints, services):
            used[key] = _settle(table, _Kept(endpoints, (), None, ()), _kept.get(key), now)
            wanted.update(_key(item) for item in used[key].written)
    _kept.clear()
    _kept.update(used)
    drop(table, [key for key, item in of(table, Endpoints).items() if owned_by(item, "Service") and key not in wanted])
    drop(table, [key for key, item in of(table, EndpointSlice).items() if _is_managed(item) and key not in wanted])


def _key(item: Written) -> Key:
    return Key("Endpoints" if isinstance(item, Endpoints) else "EndpointSlice", *_place(item.metadata))


def _place(meta: ObjectMeta) -> tuple[str, str]:
    return meta.namespace, meta.name


def _is_managed(item: EndpointSlice) -> bool:
    return item.metadata.labels.get(MANAGED) in (CONTROLLER, MIRROR)


def _is_mirrored(key: Key, endpoints: Endpoints, services: Mapping[Key, Service]) -> bool:
    service = services.get(Key("Service", key.namespace, key.name))
    labels = endpoints.metadata.labels
    return (
        service is not None
        and not service.spec.selector
        and not kubernetes.is_ours(key)
        and not owned_by(endpoints, "Service")
        and labels.get(SKIP_MIRROR) != "true"
    )


def _settle(table: Table, asked: _Kept, last: _Kept | None, now: str) -> _Kept:
    """Writes what follows; nothing, where it was asked the same before and the answer stands there untouched."""
    if (
        last is not None
        and last.source is asked.source
        and len(last.members) == len(asked.members)
        and all(map(_is, last.members, asked.members))
        and last.zones == asked.zones
        and all(table[type(item).__name__].get(_key(item)) is item for item in last.written)
    ):
        return last
    written = []
    for new in _answer(table, asked):
        key = _key(new)
        objects = table[key.kind]
        item = settled(new, objects.get(key), now)
        objects[key] = item
        written.append(item)
    return asked._replace(written=tuple(written))


def _is(one: object, other: object) -> bool:
    return one is other


def _answer(table: Table, asked: _Kept) -> Iterator[Written]:
    source = asked.source
    if isinstance(source, Endpoints):
        yield from _mirrors(table, source)
        return
    assert asked.zones is not None
    members = sorted(asked.members, key=lambda pod: natural(Key("Pod", *_place(pod.metadata))))
    yield _endpoints(source, members)
    yield from _slices(table, source, members, asked.zones)


# --- which pods -------------------------------------------------------------------------------------------------------

_ByPair = Mapping[tuple[str, str, str], list[Pod]]


def _by_pair(services: Mapping[Key, Service], pods: Mapping[Key, Pod]) -> _ByPair:
    """Pods that can be endpoints, by namespace and label, for the first label of each selector."""
    found: dict[tuple[str, str, str], list[Pod]] = {}
    asked: set[tuple[str, str]] = set()
    for key, service in services.items():
        for label, value in (service.spec.selector or {}).items():
            found[key.namespace, label, value] = []
            asked.add((key.namespace, label))
            break
    by_namespace: defaultdict[str, list[str]] = defaultdict(list)
    for namespace, label in sorted(asked):
        by_namespace[namespace].append(label)
    for (_, namespace, _), pod in pods.items():
        if not pod.status.podIP or pod.status.phase in ENDED:
            continue
        labels = pod.metadata.labels
        for label in by_namespace.get(namespace, ()):
            there = found.get((namespace, label, labels.get(label, "")))
            if there is not None and label in labels:
                there.append(pod)
    return found


def _members(key: Key, service: Service, pods: _ByPair) -> Iterable[Pod]:
    selector = service.spec.selector or {}
    for label, value in selector.items():
        found = pods.get((key.namespace, label, value), [])
        return found if len(selector) == 1 else [pod for pod in found if selects(selector, pod.metadata.labels)]
    return ()


def _ports(service: Service, pod: Pod) -> Ports:
    """The Service's ports on this pod; one that the pod has not by name is left out."""
    found = []
    for port in service.spec.ports or ():
        target = target_port(pod, port)
        if target is not None:
            found.append(EndpointPort(target, port.name, port.protocol, port.appProtocol))
    return tuple(found)


def _reference(pod: Pod) -> ObjectReference:
    return ObjectReference("Pod", pod.metadata.name, pod.metadata.namespace)


def _hostname(service: Service, pod: Pod) -> str:
    return pod.spec.hostname if pod.spec.subdomain == service.metadata.name else ""


# --- EndpointSlices ---------------------------------------------------------------------------------------------------


def _slices(table: Table, service: Service, pods: Sequence[Pod], zones: topology.Zones) -> Iterator[EndpointSlice]:
    labels = {
        **service.metadata.labels,
        SERVICE_NAME: service.metadata.name,
        MANAGED: CONTROLLER,
        **({HEADLESS: ""} if service.spec.clusterIP == "None" else {}),
    }
    for kind in service.spec.ipFamilies or ("IPv4",):
        groups: dict[Ports, list[Endpoint]] = {}
        mine = [(pod, address) for pod in pods if (address := _address(pod, kind))]
        endpoints = topology.hinted(service, [_endpoint(service, pod, zones.of, at) for pod, at in mine], zones)
        for (pod, _), endpoint in zip(mine, endpoints, strict=True):
            groups.setdefault(_ports(service, pod), []).append(endpoint)
        yield from _chunked(table, service, labels, groups or {(): []}, LARGEST, kind)


def _address(pod: Pod, kind: str) -> str:
    """The pod's address of an addressType (or ipFamily); empty where it has none."""
    return next((ip for ip in pod_ips(pod) if API_FAMILIES[family_of(ip)] == kind), "")


def _chunked(
    table: Table,
    source: Service | Endpoints,
    labels: dict[str, str],
    groups: Mapping[Ports, Sequence[Endpoint]],
    largest: int,
    kind: str = "IPv4",
) -> Iterator[EndpointSlice]:
    """Slices of at most `largest` endpoints; their names are functions of the ports and of their place in the row."""
    above, taken = owner(source), set[str]()
    for ports, endpoints in sorted(groups.items(), key=lambda group: repr(group[0])):
        said = ",".join(f"{port.name}/{port.protocol}/{port.port}" for port in ports)
        for start in range(0, max(1, len(endpoints)), largest):
            name = _slice_name(table, source.metadata, f"{kind}:{said}#{start}", taken)
            taken.add(name)
            meta = ObjectMeta(
                name=name,
                namespace=source.metadata.namespace,
                generateName=f"{source.metadata.name}-",
                labels=labels,
                ownerReferences=(above,),
            )
            yield EndpointSlice(meta, kind, tuple(endpoints[start : start + largest]), ports)


def _slice_name(table: Table, meta: ObjectMeta, series: str, taken: set[str]) -> str:
    """Probes where a name is taken by a slice of somebody else."""
    base = meta.name[: LONGEST - 1]
    slices, number = of(table, EndpointSlice), 0
    while True:
        name = f"{base}-{names.suffix(f'{meta.namespace}/{meta.name}/{series}/{number}')}"
        other = slices.get(Key("EndpointSlice", meta.namespace, name))
        mine = other is None or (_is_managed(other) and other.metadata.labels.get(SERVICE_NAME) == meta.name)
        if mine and name not in taken:
            return name
        number += 1


def _endpoint(service: Service, pod: Pod, zones: Mapping[str, str], address: str) -> Endpoint:
    serving, terminating = is_ready(pod), is_terminating(pod)
    ready = publishes_unready(service) or (serving and not terminating)
    zone = zones.get(pod.spec.nodeName) or None
    return Endpoint(
        (address,),
        EndpointConditions(ready, serving, terminating),
        _hostname(service, pod) or None,
        pod.spec.nodeName,
        zone,
        _reference(pod),
    )


def publishes_unready(service: Service) -> bool:
    """By its field, or by the annotation that the field replaced, which the controllers still read."""
    return service.spec.publishNotReadyAddresses or service.metadata.annotations.get(TOLERATE) == "true"


# --- Endpoints --------------------------------------------------------------------------------------------------------


def _endpoints(service: Service, pods: Iterable[Pod]) -> Endpoints:
    unready_too, kind = publishes_unready(service), next(iter(service.spec.ipFamilies or ()), "IPv4")
    groups: dict[Ports, tuple[list[EndpointAddress], list[EndpointAddress]]] = {}
    for pod in pods:
        ports, address = _ports(service, pod), _address(pod, kind)
        if (is_terminating(pod) and not unready_too) or (service.spec.ports and not ports) or not address:
            continue
        ready, unready = groups.setdefault(tuple(sorted(ports, key=_port_order)), ([], []))
        place = ready if unready_too or is_ready(pod) else unready
        place.append(EndpointAddress(address, _hostname(service, pod), pod.spec.nodeName, _reference(pod)))
    subsets = tuple(EndpointSubset(_by_ip(ready), _by_ip(unready), ports) for ports, (ready, unready) in groups.items())
    meta = ObjectMeta(
        name=service.metadata.name,
        namespace=service.metadata.namespace,
        labels={
            **service.metadata.labels,
            ENDPOINTS_MANAGED: "endpoint-controller",
            **({HEADLESS: ""} if service.spec.clusterIP == "None" else {}),
        },
        ownerReferences=(owner(service),),
    )
    return Endpoints(meta, tuple(sorted(subsets, key=lambda subset: repr(subset.ports))))


def _port_order(port: EndpointPort) -> tuple[str, str, int]:
    return port.name or "", port.protocol or "", port.port or 0


def _by_ip(addresses: list[EndpointAddress]) -> tuple[EndpointAddress, ...]:
    return tuple(sorted(addresses, key=lambda address: number(address.ip)))


# --- mirroring --------------------------------------------------------------------------------------------------------


def _mirrors(table: Table, endpoints: Endpoints) -> Iterator[EndpointSlice]:
    meta = endpoints.metadata
    labels = {**meta.labels, SERVICE_NAME: meta.name, MANAGED: MIRROR}
    for kind in ("IPv4", "IPv6"):
        groups: dict[Ports, list[Endpoint]] = {}
        for subset in endpoints.subsets or ():
            found = [*_mirrored(subset.addresses, kind, True), *_mirrored(subset.notReadyAddresses, kind, False)]
            if found:
                groups.setdefault(tuple(subset.ports or ()), []).extend(found[:MIRRORED])
        yield from _chunked(table, endpoints, labels, groups, MIRRORED, kind)


def _mirrored(addresses: tuple[EndpointAddress, ...] | None, kind: str, ready: bool) -> Iterator[Endpoint]:
    for address in addresses or ():
        if (":" in address.ip) == (kind == "IPv6"):
            yield Endpoint(
                (address.ip,),
                EndpointConditions(ready=ready),
                address.hostname or None,
                address.nodeName,
                targetRef=address.targetRef,
            )
