"""Gateway API objects → rules, and what their status says: the core of GatewayClass, Gateway and HTTPRoute.

A listener has its own hosts: of those on one port the one with the most exact hostname takes a request, and its routes
alone. All Gateways share the proxy and its address, so two of them with the same port and hostname are served as one.
What the proxy does not do (filters that are not core, TLS passed through) is said in the status, and a route with such
a filter answers 500, as the specification asks.

Source: gateway-api's API text (v1) and its core conformance tests (INGRESS.md).
"""

from collections.abc import Iterator
from typing import NamedTuple

from nsnet import model
from nsnet.model import (
    Gateway,
    GatewayClass,
    GatewayListener,
    HTTPBackendRef,
    HTTPRoute,
    HTTPRouteFilter,
    HTTPRouteMatch,
    HTTPRouteRule,
    Key,
    Namespace,
    ParentReference,
    ReferenceGrant,
    SecretObjectReference,
)
from nsnet.routes.table import (
    HTTP,
    HTTPS,
    Action,
    Backend,
    Certificate,
    Forward,
    Frontend,
    Host,
    Match,
    Redirect,
    Reply,
    Rule,
    Share,
    virtual_hosts,
)
from nsnet.routes.world import World, port_of

CLASS, CONTROLLER = "nsnet", "nsnet/gateway"
GROUP = "gateway.networking.k8s.io"
PROTOCOLS = {"HTTP": False, "HTTPS": True}
FILTERS = ("RequestHeaderModifier", "RequestRedirect")
EVERY_PATH = HTTPRouteMatch()
ALL = HTTPRouteRule()


class Verdict(NamedTuple):
    """One condition: of what type, whether it holds, and why."""

    type: str
    holds: bool
    reason: str
    message: str = ""


class ListenerVerdict(NamedTuple):
    """What is said of a listener, and how many routes it has; of which kinds it takes them."""

    listener: GatewayListener
    verdicts: tuple[Verdict, ...]
    attached: int
    kinds: tuple[str, ...]


class ParentVerdict(NamedTuple):
    """What is said of a route towards one of its parents."""

    parent: ParentReference
    verdicts: tuple[Verdict, ...]


class Verdicts(NamedTuple):
    """All that the status of Gateway API objects is made of."""

    classes: dict[Key, tuple[Verdict, ...]]
    gateways: dict[Key, tuple[Verdict, ...]]
    listeners: dict[Key, tuple[ListenerVerdict, ...]]
    routes: dict[Key, tuple[ParentVerdict, ...]]


def frontends(world: World) -> tuple[list[Frontend], Verdicts]:
    """The frontends of all listeners that are served, and what is to be said of every object."""
    gateways = [item for item in world.of(Gateway) if _is_ours(world, item)]
    listeners = [_Listener(world, gateway, item) for gateway in gateways for item in gateway.spec.listeners]
    _tell_conflicts(listeners)
    routes = {model.key_of(item): tuple(_attach(world, item, gateways, listeners)) for item in world.of(HTTPRoute)}
    verdicts = Verdicts(
        classes={
            model.key_of(item): _of_class(item)
            for item in world.of(GatewayClass)
            if item.spec.controllerName == CONTROLLER
        },
        gateways={model.key_of(item): _of_gateway(item, listeners) for item in gateways},
        listeners={model.key_of(item): _of_listeners(item, listeners) for item in gateways},
        routes={key: found for key, found in routes.items() if found},
    )
    return [item.frontend() for item in listeners if item.is_served], verdicts


def _is_ours(world: World, gateway: Gateway) -> bool:
    name = gateway.spec.gatewayClassName
    there = world.objects.get(Key("GatewayClass", "", name))
    if isinstance(there, GatewayClass):
        if there.spec.controllerName == CONTROLLER:
            return True
        message = f"GatewayClass {name} belongs to {there.spec.controllerName}; only {CONTROLLER} runs here"
        world.note(gateway, "NotServed", message)
        return False
    world.note(gateway, "ClassNotFound", f"no GatewayClass {name} is defined; it is served all the same", "Normal")
    return True


def _of_class(_item: GatewayClass) -> tuple[Verdict, ...]:
    return (Verdict("Accepted", holds=True, reason="Accepted"),)


# --- listeners --------------------------------------------------------------------------------------------------------


class _Listener:
    """A listener, what is wrong with it, and the rules of the routes that attach to it."""

    def __init__(self, world: World, gateway: Gateway, item: GatewayListener) -> None:
        self.world = world
        self.gateway = gateway
        self.item = item
        self.host = Host((item.hostname or "").lower(), deep=(item.hostname or "").startswith("*"))
        self.rules: list[Rule] = []
        self.attached = 0
        self.conflict = ""
        self.accepted = _accepted(item)
        self.certificates, self.resolved = _certificates(world, gateway, item)
        self.kinds, kinds = _kinds(item)
        self.resolved = kinds or self.resolved

    @property
    def is_served(self) -> bool:
        return (
            self.accepted.holds
            and not self.conflict
            and self.resolved.reason not in {"InvalidCertificateRef", "RefNotPermitted"}
        )

    def frontend(self) -> Frontend:
        hosts = virtual_hosts(self.rules, shared=True)
        tls = PROTOCOLS[self.item.protocol]
        name = self.host.name
        return Frontend(self.item.port, tls, hosts, tuple(Certificate(name, secret) for secret in self.certificates))

    def verdicts(self) -> tuple[Verdict, ...]:
        served = self.is_served
        return (
            self.accepted if not self.conflict else Verdict("Accepted", holds=False, reason=self.conflict),
            Verdict("Programmed", holds=served, reason="Programmed" if served else "Invalid"),
            Verdict("Conflicted", holds=bool(self.conflict), reason=self.conflict or "NoConflicts"),
            self.resolved,
        )


def _accepted(item: GatewayListener) -> Verdict:
    wanted = PROTOCOLS.get(item.protocol)
    if wanted is None:
        message = f"protocol {item.protocol} is not served, only {' and '.join(PROTOCOLS)}"
        return Verdict("Accepted", holds=False, reason="UnsupportedProtocol", message=message)
    if (item.port == HTTPS and not wanted) or (item.port == HTTP and wanted):
        message = f"on port {item.port} the proxy speaks {'HTTP' if wanted else 'HTTPS'}"
        return Verdict("Accepted", holds=False, reason="PortUnavailable", message=message)
    if wanted and item.tls is not None and item.tls.mode == "Passthrough":
        message = "TLS ends at the proxy; it is not passed through"
        return Verdict("Accepted", holds=False, reason="UnsupportedValue", message=message)
    return Verdict("Accepted", holds=True, reason="Accepted")


def _tell_conflicts(listeners: list[_Listener]) -> None:
    """One protocol per port (the older Gateway's), and within a Gateway each port and hostname once."""
    protocols: dict[int, str] = {}
    hosts: dict[tuple[Key, int, str], _Listener] = {}
    for one in listeners:
        if not one.accepted.holds:
            continue
        first = protocols.setdefault(one.item.port, one.item.protocol)
        key = (model.key_of(one.gateway), one.item.port, one.host.name)
        if first != one.item.protocol:
            one.conflict = "ProtocolConflict"
        elif hosts.setdefault(key, one) is not one:
            one.conflict = "HostnameConflict"


def _kinds(item: GatewayListener) -> tuple[tuple[str, ...], Verdict | None]:
    """The kinds of routes it takes; a verdict where it asks for others, too."""
    said = (item.allowedRoutes.kinds if item.allowedRoutes else None) or ()
    if not said:
        return ("HTTPRoute",), None
    known = tuple(kind.kind for kind in said if kind.kind == "HTTPRoute" and (kind.group or GROUP) == GROUP)[:1]
    if len(known) == len(said):
        return known, None
    message = "only HTTPRoute is served"
    return known, Verdict("ResolvedRefs", holds=False, reason="InvalidRouteKinds", message=message)


def _certificates(world: World, gateway: Gateway, item: GatewayListener) -> tuple[list[Key], Verdict]:
    found: list[Key] = []
    good = Verdict("ResolvedRefs", holds=True, reason="ResolvedRefs")
    if not PROTOCOLS.get(item.protocol):
        return found, good
    references = (item.tls.certificateRefs if item.tls else None) or ()
    if not references:
        return found, Verdict(
            "ResolvedRefs", holds=False, reason="InvalidCertificateRef", message="it has no certificateRefs"
        )
    for reference in references:
        secret, reason, message = _certificate(world, gateway, reference)
        if reason:
            return found, Verdict("ResolvedRefs", holds=False, reason=reason, message=message)
        found.append(secret)
    return found, good


def _certificate(world: World, gateway: Gateway, reference: SecretObjectReference) -> tuple[Key, str, str]:
    """The Secret; and where it cannot be used a reason and a sentence."""
    home = gateway.metadata.namespace
    secret = Key("Secret", reference.namespace or home, reference.name)
    if (reference.group or "") != "" or (reference.kind or "Secret") != "Secret":
        return secret, "InvalidCertificateRef", f"a certificate is a Secret, not a {reference.kind}"
    if not granted(world, (GROUP, "Gateway", home), ("", secret)):
        return secret, "RefNotPermitted", f"no ReferenceGrant in {secret.namespace} lets Gateways of {home} refer to it"
    why = world.certificate_problem(secret)
    return secret, "InvalidCertificateRef" if why else "", why


def granted(world: World, who: tuple[str, str, str], what: tuple[str, Key]) -> bool:
    """May an object (group, kind, namespace) refer to another: in the same namespace, or by a ReferenceGrant."""
    group, key = what
    if who[2] == key.namespace:
        return True
    return any(
        any((item.group, item.kind, item.namespace) == who for item in grant.spec.from_)
        and any(
            item.group == group and item.kind == key.kind and item.name in (None, "", key.name)
            for item in grant.spec.to
        )
        for grant in world.of(ReferenceGrant)
        if grant.metadata.namespace == key.namespace
    )


# --- what Gateways say ------------------------------------------------------------------------------------------------


def _of_gateway(gateway: Gateway, listeners: list[_Listener]) -> tuple[Verdict, ...]:
    mine = [item for item in listeners if item.gateway is gateway]
    valid = [item for item in mine if item.is_served]
    reason = "Accepted" if len(valid) == len(mine) else "ListenersNotValid"
    return (
        Verdict("Accepted", holds=bool(valid), reason=reason),
        Verdict("Programmed", holds=bool(valid), reason="Programmed" if valid else "Invalid"),
    )


def _of_listeners(gateway: Gateway, listeners: list[_Listener]) -> tuple[ListenerVerdict, ...]:
    mine = [item for item in listeners if item.gateway is gateway]
    return tuple(ListenerVerdict(item.item, item.verdicts(), item.attached, item.kinds) for item in mine)


# --- routes -----------------------------------------------------------------------------------------------------------


def _attach(
    world: World, route: HTTPRoute, gateways: list[Gateway], listeners: list[_Listener]
) -> Iterator[ParentVerdict]:
    """Hangs the route's rules on the listeners it may attach to; a verdict per parent that is a Gateway of ours."""
    actions, resolved = _actions(world, route)
    for parent in route.spec.parentRefs or ():
        gateway = _parent(route, parent, gateways)
        if gateway is None:
            continue
        mine = [item for item in listeners if item.gateway is gateway]
        wanted = [item for item in mine if _is_meant(parent, item.item)]
        open_ = [item for item in wanted if _allows(world, item, route)]
        meeting = [(item, hosts) for item in open_ if (hosts := _hosts(item.host, route))]
        accepted = _why_not(wanted, open_, meeting) or _unsupported(route)
        yield ParentVerdict(parent, (accepted or Verdict("Accepted", holds=True, reason="Accepted"), resolved))
        for item, hosts in meeting:
            item.attached += 1
            item.rules += _rules(route, hosts, actions)


def _parent(route: HTTPRoute, parent: ParentReference, gateways: list[Gateway]) -> Gateway | None:
    if (parent.kind or "Gateway") != "Gateway" or (parent.group or GROUP) != GROUP:
        return None
    namespace = parent.namespace or route.metadata.namespace
    same = (item for item in gateways if (item.metadata.namespace, item.metadata.name) == (namespace, parent.name))
    return next(same, None)


def _is_meant(parent: ParentReference, item: GatewayListener) -> bool:
    return parent.sectionName in (None, "", item.name) and parent.port in (None, item.port)


def _allows(world: World, listener: _Listener, route: HTTPRoute) -> bool:
    if "HTTPRoute" not in listener.kinds:
        return False
    said = listener.item.allowedRoutes.namespaces if listener.item.allowedRoutes else None
    home = route.metadata.namespace
    match said.from_ if said else "Same":
        case "All":
            return True
        case "Selector":
            there = world.objects.get(Key("Namespace", "", home))
            labels = there.metadata.labels if isinstance(there, Namespace) else {}
            return said is not None and said.selector is not None and model.selects(said.selector, labels)
        case "None":
            return False
    return home == listener.gateway.metadata.namespace


def _hosts(listener: Host, route: HTTPRoute) -> tuple[Host, ...]:
    """What the hostnames of both have in common; nothing where that is nothing."""
    said = [Host(name.lower(), deep=name.startswith("*")) for name in route.spec.hostnames or ()]
    if not said:
        return (listener,)
    met = [
        host if listener.covers(host) else listener for host in said if listener.covers(host) or host.covers(listener)
    ]
    return tuple(dict.fromkeys(met))


def _why_not(
    wanted: list[_Listener], open_: list[_Listener], meeting: list[object] | list[tuple[_Listener, tuple[Host, ...]]]
) -> Verdict | None:
    if not wanted:
        return Verdict("Accepted", holds=False, reason="NoMatchingParent", message="no listener has this name and port")
    if not open_:
        return Verdict("Accepted", holds=False, reason="NotAllowedByListeners", message="allowedRoutes keeps it out")
    if not meeting:
        message = "no hostname of the route is one of the listener's"
        return Verdict("Accepted", holds=False, reason="NoMatchingListenerHostname", message=message)
    return None


def _unsupported(route: HTTPRoute) -> Verdict | None:
    for rule in route.spec.rules or ():
        strange = [item.type for item in rule.filters or () if item.type not in FILTERS]
        strange += [item.type for ref in rule.backendRefs or () for item in ref.filters or ()]
        strange += [
            f"{item.type} matches"
            for match in rule.matches or ()
            for item in _typed(match)
            if item.type not in (None, "Exact", "PathPrefix")
        ]
        if strange:
            message = f"not served: {', '.join(dict.fromkeys(strange))}; these requests are answered with 500"
            return Verdict("Accepted", holds=False, reason="UnsupportedValue", message=message)
    return None


def _typed(match: HTTPRouteMatch) -> Iterator[model.HTTPPathMatch | model.HTTPValueMatch]:
    yield from (match.path,) if match.path else ()
    yield from (*(match.headers or ()), *(match.queryParams or ()))


# --- rules ------------------------------------------------------------------------------------------------------------

Actions = list[tuple[HTTPRouteRule, HTTPRouteMatch, Action]]


def _rules(route: HTTPRoute, hosts: tuple[Host, ...], actions: Actions) -> Iterator[Rule]:
    age, key = route.metadata.creationTimestamp or "", model.key_of(route)
    for index, (_, match, action) in enumerate(actions):
        yield Rule(hosts, _match(match), action, key, age, index)


def _match(said: HTTPRouteMatch) -> Match:
    path = (said.path.value if said.path else None) or "/"
    exact = said.path is not None and said.path.type == "Exact"
    return Match(
        path=path if exact else path.rstrip("/") or "/",
        exact=exact,
        method=said.method or "",
        headers=tuple({item.name.lower(): item.value for item in reversed(said.headers or ())}.items()),
        query=tuple({item.name: item.value for item in reversed(said.queryParams or ())}.items()),
    )


def _actions(world: World, route: HTTPRoute) -> tuple[Actions, Verdict]:
    """What each match of each rule leads to; and whether all its backends are there."""
    resolved = Verdict("ResolvedRefs", holds=True, reason="ResolvedRefs")
    found: Actions = []
    for rule in (ALL,) if route.spec.rules is None else route.spec.rules:
        action, wrong = _action(world, route, rule)
        resolved = wrong or resolved
        found += [(rule, match, action) for match in rule.matches or (EVERY_PATH,)]
    return found, resolved


def _action(world: World, route: HTTPRoute, rule: HTTPRouteRule) -> tuple[Action, Verdict | None]:
    filters = {item.type: item for item in reversed(rule.filters or ())}
    if filters.keys() - set(FILTERS) or any(ref.filters for ref in rule.backendRefs or ()) or _odd(rule):
        return Reply(500), None
    redirect = filters.get("RequestRedirect")
    if redirect is not None:
        return _redirect(redirect, rule), None
    shares, wrong = [], None
    for reference in rule.backendRefs or ():
        share, verdict = _share(world, route, reference)
        wrong = verdict or wrong
        shares.append(share)
    if not any(share.weight for share in shares):
        return Reply(500), wrong
    modifier = filters.get("RequestHeaderModifier")
    changes = (modifier.requestHeaderModifier if modifier else None) or model.HTTPHeaderFilter()
    return Forward(
        tuple(share for share in shares if share.weight),
        set=tuple((item.name, item.value) for item in changes.set or ()),
        add=tuple((item.name, item.value) for item in changes.add or ()),
        remove=tuple(changes.remove or ()),
    ), wrong


def _odd(rule: HTTPRouteRule) -> bool:
    """Regular expressions: nothing here reads them."""
    said = (item.type for match in rule.matches or () for item in _typed(match))
    return any(kind not in (None, "Exact", "PathPrefix") for kind in said)


def _redirect(item: HTTPRouteFilter, rule: HTTPRouteRule) -> Action:
    said = item.requestRedirect or model.HTTPRequestRedirectFilter()
    path = said.path if isinstance(said.path, dict) else {}
    prefix = "replacePrefixMatch" in path
    matched = next((match.path.value for match in rule.matches or () if match.path and match.path.value), "/")
    return Redirect(
        status=said.statusCode or 302,
        scheme=said.scheme or "",
        hostname=said.hostname or "",
        port=said.port or 0,
        path=str(path.get("replaceFullPath") or path.get("replacePrefixMatch") or ""),
        prefix=(matched or "/") if prefix else "",
    )


def _share(world: World, route: HTTPRoute, reference: HTTPBackendRef) -> tuple[Share, Verdict | None]:
    """A Service's port; a share answered with 500 where the reference leads nowhere."""
    weight = 1 if reference.weight is None else reference.weight
    home = route.metadata.namespace
    key = Key("Service", reference.namespace or home, reference.name)

    def wrong(reason: str, message: str) -> tuple[Share, Verdict]:
        return Share(None, weight, 500), Verdict("ResolvedRefs", holds=False, reason=reason, message=message)

    if (reference.group or "") != "" or (reference.kind or "Service") != "Service":
        return wrong("InvalidKind", f"a backend is a Service, not a {reference.kind}")
    if not granted(world, (GROUP, "HTTPRoute", home), ("", key)):
        return wrong("RefNotPermitted", f"no ReferenceGrant in {key.namespace} lets HTTPRoutes of {home} refer to it")
    service = world.service(key.namespace, key.name)
    if service is None:
        return wrong("BackendNotFound", f"there is no Service {key.namespace}/{key.name}")
    if reference.port is None or port_of(service, reference.port) is None:
        return wrong("BackendNotFound", f"Service {key.name} has no TCP port {reference.port}")
    return Share(Backend(key.namespace, key.name, reference.port), weight), None
