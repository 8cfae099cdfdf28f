"""Ingress objects → rules: whose they are, what each path leads to, which certificates go with them.

Served is an Ingress whose class is ours: `ingressClassName`, else the annotation of before, else the default class. A
class that no IngressClass defines is served too, and an event says so (DECISIONS.md): most published manifests name
`nginx` and bring no class. Nothing here raises: what is wrong with one Ingress is a note, and leaves the others alone.

Source: Kubernetes' concept page and API text of networking/v1, and its conformance features (INGRESS.md).
"""

from collections.abc import Iterator

from nsnet import model
from nsnet.model import HTTPIngressPath, Ingress, IngressBackend, IngressClass, IngressRule, Key
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
    Reply,
    Rule,
    Share,
    virtual_hosts,
)
from nsnet.routes.world import World, port_of

CLASS, CONTROLLER = "nsnet", "nsnet/ingress"
DEFAULT_CLASS = "ingressclass.kubernetes.io/is-default-class"
OLD_ANNOTATION = "kubernetes.io/ingress.class"
FOREIGN = (
    "nginx.ingress.kubernetes.io/", "haproxy.org/", "haproxy-ingress.github.io/", "traefik.ingress.kubernetes.io/",
    "alb.ingress.kubernetes.io/", "ingress.kubernetes.io/", "konghq.com/", "projectcontour.io/",
)  # fmt: skip
REGULAR = set("()[]{}*+?^$|\\")
NO_SERVICE = Reply(503)


def frontends(world: World) -> tuple[list[Frontend], frozenset[Key]]:
    """The two frontends of all Ingresses that are served (none where there is none), and which those are."""
    served = [item for item in world.of(Ingress) if _is_ours(world, item)]
    if not served:
        return [], frozenset()
    rules = [rule for item in served for rule in _rules(world, item)]
    hosts = virtual_hosts([*rules, *_last(world, served)], shared=False)
    certificates = tuple(found for item in served for found in _certificates(world, item))
    both = [Frontend(HTTP, tls=False, hosts=hosts), Frontend(HTTPS, tls=True, hosts=hosts, certificates=certificates)]
    return both, frozenset(model.key_of(item) for item in served)


# --- whose it is ------------------------------------------------------------------------------------------------------


def class_of(world: World, ingress: Ingress) -> str:
    """The class it asks for, or is given; empty where there is no default class."""
    if ingress.spec.ingressClassName:
        return ingress.spec.ingressClassName
    return model.annotation(ingress, OLD_ANNOTATION) or default_class(world.of(IngressClass))


def default_class(classes: list[IngressClass]) -> str:
    """The newest that says it is the default; of the same age the first by name."""
    said = [item for item in classes if model.annotation(item, DEFAULT_CLASS) == "true"]
    newest = max((item.metadata.creationTimestamp or "" for item in said), default="")
    return min((item.metadata.name for item in said if (item.metadata.creationTimestamp or "") == newest), default="")


def _is_ours(world: World, ingress: Ingress) -> bool:
    name = class_of(world, ingress)
    there = world.objects.get(Key("IngressClass", "", name))
    if isinstance(there, IngressClass):
        if there.spec.controller == CONTROLLER:
            return True
        message = f"IngressClass {name} belongs to {there.spec.controller or 'nobody'}; only {CONTROLLER} runs here"
        world.note(ingress, "NotServed", message)
        return False
    if name:
        world.note(ingress, "ClassNotFound", f"no IngressClass {name} is defined; it is served all the same", "Normal")
    return True


# --- rules ------------------------------------------------------------------------------------------------------------


def _rules(world: World, ingress: Ingress) -> Iterator[Rule]:
    """Of its hosts and paths, and its default backend after them, for each of its hosts."""
    _mind_annotations(world, ingress)
    said = ingress.spec.rules or ()
    index = 0
    for rule in said:
        for item in rule.http.paths if rule.http else ():
            yield _rule(world, ingress, rule, item, index)
            index += 1
    default = _default(world, ingress)
    for host in dict.fromkeys((rule.host or "").lower() for rule in said):
        if default is not None or _only_host(said, host):
            rank = "3 " if default is None else "0 "
            yield _as_rule(ingress, (host,), Match(""), default or Reply(404), index, rank)


def _only_host(said: tuple[IngressRule, ...], host: str) -> bool:
    """A rule with a host and no paths: everything of that host is for the default backend."""
    return any((rule.host or "").lower() == host and rule.http is None for rule in said)


def _last(world: World, served: list[Ingress]) -> Iterator[Rule]:
    """Default backends for what nothing else takes: those of Ingresses without rules, whatever the host; then others'.

    The latter only where no rule names the host: that one has its own Ingress's.
    """
    hosts = dict.fromkeys(["", *((rule.host or "").lower() for item in served for rule in item.spec.rules or ())])
    for ingress in served:
        action = _default(world, ingress)
        if action is not None and not ingress.spec.rules:
            yield _as_rule(ingress, tuple(hosts), Match(""), action, 0, rank="1 ")
        elif action is not None:
            yield _as_rule(ingress, ("",), Match(""), action, 0, rank="2 ")


def _default(world: World, ingress: Ingress) -> Action | None:
    backend = ingress.spec.defaultBackend
    return None if backend is None else _action(world, ingress, backend)


def _rule(world: World, ingress: Ingress, rule: IngressRule, item: HTTPIngressPath, index: int) -> Rule:
    path = item.path or "/"
    if item.pathType == "ImplementationSpecific" and REGULAR & set(path):
        message = f"path {path} looks like a regular expression; it is taken literally, as a prefix"
        world.note(ingress, "LiteralPath", message)
    match = Match(path, exact=item.pathType == "Exact")
    return _as_rule(ingress, ((rule.host or "").lower(),), match, _action(world, ingress, item.backend), index)


def _as_rule(
    ingress: Ingress, hosts: tuple[str, ...], match: Match, action: Action, index: int, rank: str = ""
) -> Rule:
    age = rank + (ingress.metadata.creationTimestamp or "")
    return Rule(tuple(map(Host, hosts)), match, action, model.key_of(ingress), age, index)


def _action(world: World, ingress: Ingress, backend: IngressBackend) -> Action:
    """To the Service's port; 503 where there is none, and a note that says what is missing."""
    said = backend.service
    if said is None:
        world.note(ingress, "ResourceBackend", "a backend that is no Service is answered with 503")
        return NO_SERVICE
    namespace = ingress.metadata.namespace
    service = world.service(namespace, said.name)
    wanted = said.port.name or said.port.number or 0
    if service is None:
        world.note(ingress, "ServiceNotFound", f"there is no Service {namespace}/{said.name}; its paths answer 503")
        return NO_SERVICE
    if service.spec.type == "ExternalName":
        world.note(ingress, "ExternalName", f"Service {said.name} is of type ExternalName; its paths answer 503")
        return NO_SERVICE
    port = port_of(service, wanted)
    if port is None:
        known = ", ".join(f"{item.port}{f' ({item.name})' if item.name else ''}" for item in service.spec.ports or ())
        message = f"Service {said.name} has no TCP port {wanted} (its ports: {known or 'none'}); its paths answer 503"
        world.note(ingress, "PortNotFound", message)
        return NO_SERVICE
    return Forward((Share(Backend(namespace, said.name, port.port)),))


def _mind_annotations(world: World, ingress: Ingress) -> None:
    """Annotations of other controllers change what they do; here they change nothing."""
    strange = sorted(name for name in ingress.metadata.annotations if name.startswith(FOREIGN))
    if strange:
        world.note(ingress, "AnnotationIgnored", f"no effect here: {', '.join(strange[:4])}")


# --- certificates -----------------------------------------------------------------------------------------------------


def _certificates(world: World, ingress: Ingress) -> Iterator[Certificate]:
    """Of each `tls` entry, for its hosts; those of the rules where it names none."""
    hosts = tuple(rule.host or "" for rule in ingress.spec.rules or ())
    for item in ingress.spec.tls or ():
        if not item.secretName:
            continue
        secret = Key("Secret", ingress.metadata.namespace, item.secretName)
        why = world.certificate_problem(secret)
        if why:
            world.note(ingress, "CertificateNotUsed", f"{why}; the default certificate is shown instead")
            continue
        for host in dict.fromkeys(name.lower() for name in item.hosts or hosts if name):
            yield Certificate(host, secret)
