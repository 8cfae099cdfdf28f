"""Events: what a person should know of the objects as they are. Level-triggered: each stands as long as its reason.

Events that manifests bring (a dump) are left alone.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, filterfalse

from nsnet import names
from nsnet.control import kubeproxy, loadbalancer, namespaces, policy, service_events, userspace
from nsnet.control.table import Table, of, owned_by, owner, settled
from nsnet.control.workloads import LONGEST
from nsnet.model import (
    MOST_NAMESERVERS,
    MOST_SEARCH_LETTERS,
    MOST_SEARCHES,
    PROXY_NAMESPACE,
    SERVICE_NAME,
    Cluster,
    Endpoints,
    EndpointSlice,
    Event,
    Fault,
    Key,
    Namespace,
    Node,
    Object,
    ObjectMeta,
    ObjectReference,
    Pod,
    PodDNSConfig,
    Service,
    annotation,
    container_ports,
    families_of,
    in_lab,
    is_unschedulable,
    key_of,
)

OURS = "Event"


def write(table: Table, cluster: Cluster, now: str, more: Iterable["Said"] = ()) -> None:
    """All events; `more` are what other controllers have to say."""
    events = of(table, Event)
    wanted = {}
    for obj, reason, message, kind in chain(_said(table, cluster), more):
        key, event = _event(obj, reason, message, kind)
        wanted[key] = settled(event, events.get(key), now)
    for key, event in list(events.items()):
        if event.metadata.ownerReferences and key not in wanted:
            del events[key]
    events.update(wanted)


Said = tuple[Object, str, str, str]


def _said(table: Table, cluster: Cluster) -> Iterator[Said]:
    for pod in of(table, Pod).values():
        if is_unschedulable(pod):
            yield pod, "FailedScheduling", pod.status.message, "Warning"
    yield from _without_endpoints(table)
    for key, namespace in of(table, Namespace).items():
        if owned_by(namespace, "Cluster") and key.name not in {*namespaces.BUILT_IN, PROXY_NAMESPACE}:
            yield namespace, "NamespaceCreated", "it is named in the manifests and nowhere declared", "Normal"
    for pod in of(table, Pod).values():
        if pod.spec.dnsConfig is not None:
            yield from ((pod, "DNSConfigForming", message, "Warning") for message in _cut(pod, pod.spec.dnsConfig))
    for fault in filterfalse(in_lab, of(table, Fault).values()):
        where = f" on {', '.join(fault.spec.on)}" if fault.spec.on else ""
        until = f" until {fault.spec.until}" if fault.spec.until else ""
        yield fault, "Broken", f"{fault.spec.fault}{where}{until}: on purpose, nsnet fault clear ends it", "Warning"
    yield from service_events.said(table, cluster)
    yield from _unreachable(table, cluster)
    yield from _doubtful(table)
    yield from userspace.warnings(table, cluster)
    yield from kubeproxy.warnings(table)
    yield from loadbalancer.events(table, cluster)
    yield from _not_yet(table, cluster)


def _not_yet(table: Table, cluster: Cluster) -> Iterator[Said]:
    for pod in of(table, Pod).values() if families_of(cluster)[0] == "ip6" else ():
        if any(port.hostPort for port in container_ports(pod)) and not pod.spec.hostNetwork:
            yield pod, "NotYet", "hostPort leads to IPv4 addresses alone, and this pod's first one is IPv6", "Warning"
    for pod in of(table, Pod).values():
        if annotation(pod, "nsnet/run") == "true":
            yield pod, "NotYet", "nsnet/run is not built yet: a stand-in serves its ports, no command runs", "Warning"


def _cut(pod: Pod, config: PodDNSConfig) -> Iterator[str]:
    """What its resolv.conf has no room for: one name server and three search domains come from its dnsPolicy."""
    own = pod.spec.dnsPolicy != "None"
    cluster = own and pod.spec.dnsPolicy != "Default"
    servers, searches = set(config.nameservers or ()), set(config.searches or ())
    if len(servers) + own > MOST_NAMESERVERS:
        yield f"name servers beyond the first {MOST_NAMESERVERS} are left out of its resolv.conf"
    if len(searches) + 3 * cluster > MOST_SEARCHES or sum(map(len, searches)) + len(searches) > MOST_SEARCH_LETTERS:
        yield (
            f"search domains beyond the first {MOST_SEARCHES}, or {MOST_SEARCH_LETTERS} letters, "
            "are left out of its resolv.conf"
        )


def _doubtful(table: Table) -> Iterator[Said]:
    """Policies that may not do what was meant."""
    policies = table.get(policy.KIND)
    if not policies:
        return
    spaces = {key.name: item.metadata.labels for key, item in of(table, Namespace).items()}
    known = policy.Known(of(table, Pod).values(), spaces)
    for obj in policies.values():
        found: dict[str, list[str]] = {}
        for reason, message in policy.doubts(policy.policy(obj), known):
            found.setdefault(reason, []).append(message)
        for reason, messages in found.items():
            yield obj, reason, "; ".join(dict.fromkeys(messages)), "Warning"


def _without_endpoints(table: Table) -> Iterator[Said]:
    services = [service for key, service in of(table, Service).items() if _is_empty(table, key, service)]
    selected = _selected(table) if services else set()
    for service in services:
        yield service, "NoEndpoints", _why_none(service, selected), "Warning"


def _is_empty(table: Table, key: Key, service: Service) -> bool:
    selects = bool(service.spec.selector) and service.spec.type != "ExternalName"
    return selects and not _has_endpoints(table, key)


def _has_endpoints(table: Table, key: Key) -> bool:
    endpoints = of(table, Endpoints).get(Key("Endpoints", key.namespace, key.name))
    return endpoints is not None and bool(endpoints.subsets)


def _selected(table: Table) -> set[tuple[str, str]]:
    """Namespace and name of the Services that have a pod in their slices, whether or not with a port."""
    slices = of(table, EndpointSlice).items()
    return {(key.namespace, item.metadata.labels.get(SERVICE_NAME, "")) for key, item in slices if item.endpoints}


def _why_none(service: Service, selected: set[tuple[str, str]]) -> str:
    """Nobody has the labels, or nobody the named ports."""
    meta = service.metadata
    if (meta.namespace, meta.name) in selected:
        return "no pod that its selector matches has a port of the name it targets, or all are terminating"
    labels = ",".join(f"{name}={value}" for name, value in (service.spec.selector or {}).items())
    return f"its selector {labels} matches no running pod in namespace {meta.namespace}"


def _unreachable(table: Table, cluster: Cluster) -> Iterator[Said]:
    """host-gw names the other node as gateway; across a router the kernel refuses that ("invalid gateway")."""
    if cluster.flannel.Backend.kind != "host-gw":
        return
    nodes = of(table, Node)
    networks = {key.name: annotation(node, "nsnet/network") for key, node in nodes.items()}
    for key, node in nodes.items():
        others = sorted(name for name, network in networks.items() if network != networks[key.name])
        if others:
            listed = ", ".join(others[:4]) + (" …" if len(others) > 4 else "")
            message = (
                f"host-gw: no route to the pods of {listed}: they are in another network, behind a router; "
                "the vxlan backend crosses it"
            )
            yield node, "RouteNotPossible", message, "Warning"


def _event(obj: Object, reason: str, message: str, kind: str) -> tuple[Key, Event]:
    about = key_of(obj)
    namespace = about.namespace or "default"
    name = f"{about.name[: LONGEST - 1]}-{names.suffix(f'{about}/{reason}')}"
    meta = ObjectMeta(name=name, namespace=namespace, ownerReferences=(owner(obj),))
    event = Event(meta, ObjectReference(about.kind, about.name, about.namespace), reason, message, kind)
    return Key(OURS, namespace, name), event
