"""The proxy that serves Ingress and Gateway objects, and what those say of themselves.

As soon as one of them asks for it there are, in a namespace of their own and owned by the Cluster: a Deployment whose
pods are like any others (scheduled, addressed, scaled) and in which `render` runs HAProxy, a LoadBalancer Service in
front of it, the certificate for names that brought none, and a default class. What manifests bring under these names is
taken, and not doubled. `routes` knows which object is served and what is wrong with the others; here that becomes
status and events.

Source: Kubernetes' Ingress concept page, gateway-api's status conditions.
"""

import base64
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from nsnet import model
from nsnet.control.certificate import default_certificate
from nsnet.control.dns import REPLICAS, rather_apart
from nsnet.control.facts import Facts
from nsnet.control.table import Table, drop_own, of, owned_by, owner, put, with_spec
from nsnet.model import (
    DEFAULT_CERTIFICATE,
    PROXY,
    PROXY_LABELS,
    PROXY_NAMESPACE,
    Cluster,
    Container,
    ContainerPort,
    Deployment,
    Gateway,
    GatewayAddress,
    GatewayClass,
    GatewayClassSpec,
    GatewayClassStatus,
    GatewayStatus,
    HTTPRoute,
    HTTPRouteStatus,
    Ingress,
    IngressClass,
    IngressClassSpec,
    IngressStatus,
    Key,
    LabelSelector,
    ListenerStatus,
    LoadBalancerIngress,
    LoadBalancerStatus,
    MetaCondition,
    Object,
    ObjectMeta,
    Other,
    PodSpec,
    PodTemplateSpec,
    RouteGroupKind,
    RouteParentStatus,
    Service,
    ServicePort,
    ServiceSpec,
    WorkloadSpec,
)
from nsnet.names import pod_netns
from nsnet.routes import ASKING, READ, Compiled, compiled
from nsnet.routes import gateway as gateways
from nsnet.routes import ingress as ingresses
from nsnet.routes.gateway import Verdict

SERVICE = Key("Service", PROXY_NAMESPACE, PROXY)
DEPLOYMENT = Key("Deployment", PROXY_NAMESPACE, PROXY)
NAMED = {80: "http", 443: "https"}
CONTAINER = Container(
    "haproxy", "haproxy", tuple(ContainerPort(number, name) for number, name in NAMED.items())
)  # every other port of a Gateway is reached by the Service's targetPort: a new one must not restart the proxy
APART = rather_apart(LabelSelector(matchLabels=PROXY_LABELS))
REFUSED = "REFUSED "  # before the reason, where a program tells that it refused its file (see `Facts`)

T = TypeVar("T")
Said = tuple[Object, str, str, str]


def routes_of(table: Table) -> Compiled:
    asked = READ if any(table.get(kind) for kind in ASKING) else ()
    return compiled({key: obj for kind in asked for key, obj in table.get(kind, {}).items()})


def write(table: Table, cluster: Cluster) -> None:
    """The classes, and what the proxy consists of, as long as they are needed."""
    _class(table, cluster)
    _gateway_class(table, cluster)
    _admit(table)
    routes = routes_of(table)
    if not routes.needs_proxy:
        for key in (SERVICE, DEPLOYMENT, DEFAULT_CERTIFICATE):
            drop_own(table, key)
        return
    _certificate(table, cluster)
    _service(table, cluster, [frontend.port for frontend in routes.table.frontends])
    _deployment(table, cluster)


def _meta(cluster: Cluster, key: Key, **more: Any) -> ObjectMeta:
    return ObjectMeta(name=key.name, namespace=key.namespace, ownerReferences=(owner(cluster),), **more)


# --- classes ----------------------------------------------------------------------------------------------------------


def _class(table: Table, cluster: Cluster) -> None:
    """Most manifests name no class: one of ours is the default, unless they bring a default of their own."""
    key = Key("IngressClass", "", ingresses.CLASS)
    others = [item for other, item in of(table, IngressClass).items() if other != key]
    if not of(table, Ingress):
        drop_own(table, key)
    elif key not in of(table, IngressClass) or owned_by(of(table, IngressClass)[key], "Cluster"):
        notes = {} if ingresses.default_class(others) else {ingresses.DEFAULT_CLASS: "true"}
        spec = IngressClassSpec(ingresses.CONTROLLER)
        put(table, IngressClass(_meta(cluster, key, annotations=notes), spec))


def _admit(table: Table) -> None:
    """An Ingress that names no class is given the default one (upstream an admission plugin, DefaultIngressClass)."""
    name = ingresses.default_class(list(of(table, IngressClass).values()))
    for key, item in list(of(table, Ingress).items()) if name else ():
        if item.spec.ingressClassName is None and not model.annotation(item, ingresses.OLD_ANNOTATION):
            of(table, Ingress)[key] = with_spec(item, ingressClassName=name)


def _gateway_class(table: Table, cluster: Cluster) -> None:
    key = Key("GatewayClass", "", gateways.CLASS)
    there = of(table, GatewayClass).get(key)
    if not of(table, Gateway):
        drop_own(table, key)
    elif there is None:
        put(table, GatewayClass(_meta(cluster, key), GatewayClassSpec(gateways.CONTROLLER)))


# --- the proxy --------------------------------------------------------------------------------------------------------


def _certificate(table: Table, cluster: Cluster) -> None:
    if DEFAULT_CERTIFICATE in table["Secret"]:
        return
    texts = zip(("tls.crt", "tls.key"), default_certificate(cluster.metadata.name), strict=True)
    data = {name: base64.b64encode(text.encode()).decode() for name, text in texts}
    raw = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "data": data}
    put(table, Other(_meta(cluster, DEFAULT_CERTIFICATE), "Secret", raw))


def _service(table: Table, cluster: Cluster, ports: Iterable[int]) -> None:
    """A port that is there keeps what it was given (its node port)."""
    there = of(table, Service).get(SERVICE)
    if there is not None and not owned_by(there, "Cluster"):
        return
    old = {port.port: port for port in (there.spec.ports or () if there else ())}
    wanted = tuple(old.get(number) or _port(number) for number in sorted({*NAMED, *ports}))
    policy = cluster.ingress.externalTrafficPolicy
    if there is None:
        spec = ServiceSpec(type="LoadBalancer", selector=PROXY_LABELS, ports=wanted, externalTrafficPolicy=policy)
        put(table, Service(_meta(cluster, SERVICE, labels=PROXY_LABELS), spec))
    elif (there.spec.ports, there.spec.externalTrafficPolicy) != (wanted, policy):
        spec = msgspec.structs.replace(there.spec, ports=wanted, externalTrafficPolicy=policy)
        put(table, msgspec.structs.replace(there, spec=spec))


def _port(number: int) -> ServicePort:
    return ServicePort(number, NAMED.get(number) or f"port-{number}", targetPort=number)


def _deployment(table: Table, cluster: Cluster) -> None:
    """As large as the Cluster document says when it is made, or says otherwise than before; `scale` holds till then."""
    old = of(table, Deployment).get(DEPLOYMENT)
    said = str(cluster.ingress.replicas)
    template = PodTemplateSpec(ObjectMeta(labels=PROXY_LABELS), PodSpec((CONTAINER,), affinity=APART))
    if old is not None and (not owned_by(old, "Cluster") or old.metadata.annotations.get(REPLICAS) == said):
        return
    meta = _meta(cluster, DEPLOYMENT, labels=PROXY_LABELS, annotations={REPLICAS: said})
    spec = WorkloadSpec({"matchLabels": PROXY_LABELS}, template, cluster.ingress.replicas)
    new = Deployment(meta, spec)
    put(table, new if old is None else msgspec.structs.replace(new, status=old.status))


# --- status -----------------------------------------------------------------------------------------------------------


def tell(table: Table, now: str) -> None:
    """The status of everything that is served, and only of that."""
    routes = routes_of(table)
    address = _address(of(table, Service).get(SERVICE)) if routes.needs_proxy else ()
    for key, item in of(table, Ingress).items():
        given = LoadBalancerStatus(address if key in routes.served else ())
        _settle(table, key, item, IngressStatus(given))
    for key, verdicts in routes.verdicts.classes.items():
        there = of(table, GatewayClass)[key]
        _settle(table, key, there, GatewayClassStatus(_conditions(there, verdicts, there.status.conditions, now)))
    for key in routes.verdicts.gateways:
        _settle(table, key, of(table, Gateway)[key], _of_gateway(of(table, Gateway)[key], routes, address, now))
    for key, route in of(table, HTTPRoute).items():
        _settle(table, key, route, _of_route(route, routes, now))


def _settle(table: Table, key: Key, obj: Any, status: Any) -> None:
    if obj.status != status:
        table[key.kind][key] = msgspec.structs.replace(obj, status=status)


def _address(service: Service | None) -> tuple[LoadBalancerIngress, ...]:
    given = (service.status.loadBalancer.ingress if service else None) or ()
    return tuple(LoadBalancerIngress(ip=item.ip, hostname=item.hostname) for item in given)


def _of_gateway(
    gateway: Gateway, routes: Compiled, address: tuple[LoadBalancerIngress, ...], now: str
) -> GatewayStatus:
    key = model.key_of(gateway)
    verdicts = routes.verdicts.gateways[key]
    if not address:
        verdicts = tuple(_without_address(item) for item in verdicts)
    before = {item.name: item for item in gateway.status.listeners}
    listeners = []
    for item in routes.verdicts.listeners[key]:
        old = before[item.listener.name].conditions if item.listener.name in before else ()
        kinds = tuple(RouteGroupKind(kind) for kind in item.kinds)
        conditions = _conditions(gateway, item.verdicts, old, now)
        listeners.append(ListenerStatus(item.listener.name, item.attached, kinds, conditions))
    addresses = tuple(
        GatewayAddress(item.ip or item.hostname, "IPAddress" if item.ip else "Hostname") for item in address
    )
    return GatewayStatus(addresses, _conditions(gateway, verdicts, gateway.status.conditions, now), tuple(listeners))


def _without_address(verdict: Verdict) -> Verdict:
    if verdict.type != "Programmed" or not verdict.holds:
        return verdict
    message = "the load balancer has given no address; node ports work"
    return Verdict("Programmed", holds=False, reason="AddressNotAssigned", message=message)


def _of_route(route: HTTPRoute, routes: Compiled, now: str) -> HTTPRouteStatus:
    """What other controllers say of their parents stays."""
    before = {item.parentRef: item for item in route.status.parents if item.controllerName == gateways.CONTROLLER}
    others = tuple(item for item in route.status.parents if item.controllerName != gateways.CONTROLLER)
    mine = []
    for item in routes.verdicts.routes.get(model.key_of(route), ()):
        old = before[item.parent].conditions if item.parent in before else ()
        conditions = _conditions(route, item.verdicts, old, now)
        mine.append(RouteParentStatus(item.parent, gateways.CONTROLLER, conditions))
    return HTTPRouteStatus((*others, *mine))


def _conditions(
    obj: Object, verdicts: Iterable[Verdict], before: tuple[MetaCondition, ...], now: str
) -> tuple[MetaCondition, ...]:
    """As conditions of the object's generation; the time is that of the last change of the answer."""
    generation = (obj.raw.get("metadata") or {}).get("generation") or 1
    old = {item.type: item for item in before}
    found = []
    for item in verdicts:
        status = "True" if item.holds else "False"
        there = old.get(item.type)
        same = there is not None and there.status == status and there.lastTransitionTime
        since = there.lastTransitionTime if there is not None and same else now or None
        found.append(MetaCondition(item.type, status, item.reason, item.message, generation, since))
    return tuple(found)


# --- events -----------------------------------------------------------------------------------------------------------

MOST = 4  # sentences of one reason about one object


def said(table: Table, cluster: Cluster, facts: Facts) -> Iterator[Said]:
    """What is wrong with objects that are to be served, and with the proxy's configuration as a whole."""
    routes = routes_of(table)
    together: dict[tuple[Key, str, str], list[str]] = {}
    for note in routes.notes:
        together.setdefault((note.about, note.reason, note.kind), []).append(note.message)
    for (key, reason, kind), messages in together.items():
        more = f" (and {len(messages) - MOST} more)" if len(messages) > MOST else ""
        yield table[key.kind][key], reason, "; ".join(messages[:MOST]) + more, kind
    yield from _of_routes(table, routes)
    yield from _refusals(table, cluster, facts)


def _of_routes(table: Table, routes: Compiled) -> Iterator[Said]:
    """A condition that does not hold is easily overlooked: it is an event, too."""
    for key, parents in routes.verdicts.routes.items():
        wrong = {item.reason: item for parent in parents for item in parent.verdicts if not item.holds}
        for item in wrong.values():
            yield of(table, HTTPRoute)[key], item.reason, item.message, "Warning"
    for key, listeners in routes.verdicts.listeners.items():
        for listener in listeners:
            for item in listener.verdicts:
                if not item.holds and item.message:
                    message = f"listener {listener.listener.name}: {item.message}"
                    yield of(table, Gateway)[key], item.reason, message, "Warning"


def _refusals(table: Table, cluster: Cluster, facts: Facts) -> Iterator[Said]:
    for pod in of(table, model.Pod).values():
        if facts.listening and model.runs_proxy(pod):
            meta = pod.metadata
            heard = facts.listening.get(pod_netns(cluster.metadata.name, meta.namespace, meta.name), frozenset())
            for word, _ in sorted(heard):
                if word.startswith(REFUSED):
                    message = f"the proxy goes on with its last good configuration: {word.removeprefix(REFUSED)}"
                    yield pod, "ConfigurationRefused", message, "Warning"
