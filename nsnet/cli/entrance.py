"""`explain` of what lets clients in from outside: a Service's load balancer, Ingresses, Gateways and HTTPRoutes."""

from collections.abc import Iterator, Mapping

from nsnet import model, names, routes
from nsnet.cli import elsewhere
from nsnet.cli.context import Running
from nsnet.cli.explain import addresses, balancer_lines
from nsnet.cli.line import Line, with_reasons
from nsnet.cli.target import BALANCER, target
from nsnet.errors import InputError
from nsnet.model import Key, Objects, Service
from nsnet.routes.gateway import Verdict
from nsnet.routes.table import Forward, Frontend, Redirect, Rule, Share
from nsnet.state import Address, Route, Value, text
from nsnet.verify import world as worlds

KINDS = frozenset({"Ingress", "Gateway", "HTTPRoute"})
PROXY = Key("Service", model.PROXY_NAMESPACE, model.PROXY)


# --- a load balancer --------------------------------------------------------------------------------------------------


def balancer(now: Running, service: Service) -> Iterator[Line]:
    """What the balancer outside does for the Service, and its rules or routes as the kernel has them."""
    place = target(now.objects, BALANCER)
    section = f"load balancer ({place.netns}, nsnet shell {BALANCER})"
    given = model.balanced_addresses(service)
    if not given:
        said = model.status_condition(service, model.ADDRESS)
        yield Line(section, "", "no address: pending", said.message if said else "")
        return
    for address in given:
        yield Line(section, "", f"address {address}", "outside of the cluster, on no node: the router answers for it")
    yield from _mode(section, now.objects, service)
    yield from _nodes(section, now.objects, service)
    yield from _sources(section, now.objects, service)
    values = elsewhere.seen(now, {place.netns: frozenset()}).get(place.netns, frozenset())
    yield from (line for value in sorted(values, key=text) for line in _way(section, value, given))
    yield from with_reasons(section, balancer_lines(now.objects, service, values))


def _mode(section: str, objects: Objects, service: Service) -> Iterator[Line]:
    config = model.cluster_of(objects).loadBalancer
    if config.mode == "vip":
        why = "routes to the nodes, chosen by addresses and ports; kube-proxy's rules for the address take over there"
        yield Line(section, "", "mode vip", why)
        return
    ports = ", ".join(f"{port.port} → {port.nodePort or 'none'}" for port in service.spec.ports or ())
    why = "each connection to a node's InternalIP and node port, chosen in the kernel; kube-proxy there does the rest"
    yield Line(section, "", f"mode nodeport, {ports}", why)
    if service.spec.sessionAffinity == "ClientIP":
        yield Line(section, "", "sessionAffinity ClientIP", "a hash of the client's address decides which node")


def _nodes(section: str, objects: Objects, service: Service) -> Iterator[Line]:
    port = model.health_port(service, model.cluster_of(objects), model.kube_proxy_of(objects))
    own = model.has_health_port(service, model.cluster_of(objects))
    asked = f"{port}, its own: nodes with a ready endpoint say 200" if own else f"{port}: nodes whose kube-proxy works"
    used, said = model.balanced_nodes(service), model.status_condition(service, model.NODES)
    refused = "connections are refused at once"
    yield Line(section, "", f"to {', '.join(used) or 'no node'}", f"health checks on port {asked}" if used else refused)
    for node in sorted(model.of(objects, model.Node), key=lambda item: item.metadata.name):
        if node.metadata.name not in used:
            why = "it does not answer its health check"
            if said is not None and said.reason == "NoEndpoints":
                why = said.message
            if model.EXCLUDED in node.metadata.labels or model.is_leaving(node):
                why = f"it is being deleted, or labelled {model.EXCLUDED}"
            yield Line(section, "", f"not to {node.metadata.name}", why)


def _sources(section: str, objects: Objects, service: Service) -> Iterator[Line]:
    """Whose address the node sees."""
    cluster = model.cluster_of(objects)
    ranges = service.spec.loadBalancerSourceRanges
    if ranges:
        yield Line(section, "", f"from {', '.join(ranges)} only", "others hear nothing: their packets are dropped")
    if cluster.loadBalancer.mode == "vip":
        return
    if cluster.loadBalancer.snat:
        yield Line(section, "", "snat: true", "nodes see the balancer as the client, and answer to it")
        return
    yield Line(section, "", "no source NAT", "nodes see the client; their default route leads the answer back this way")
    used = {model.annotation(node, "nsnet/network") for node in model.of(objects, model.Node)}
    for network in cluster.underlay.networks:
        if network.name in used:
            why = "a node would answer them directly, past the balancer, and they know nothing of the node"
            yield Line(section, "", f"but for clients in {network.subnet}: they get its address", why)


def _way(section: str, value: Value, given: tuple[str, ...]) -> Iterator[Line]:
    match value:
        case Route(dst) if dst.partition("/")[0] in given:
            why = (
                "equal ways: a hash of addresses and ports chooses" if value.nexthops else "the one node that takes it"
            )
            yield Line(section, "", text(value), why)
        case Address(_, cidr) if cidr.partition("/")[0] in given:
            yield Line(section, "", text(value), "so that the router itself hears what is sent there")


# --- HTTP -------------------------------------------------------------------------------------------------------------


def http(now: Running, key: Key) -> Iterator[Line]:
    """An Ingress, Gateway or HTTPRoute. Raises InputError where there is none."""
    obj = now.objects.get(key)
    if obj is None:
        there = ", ".join(other.name for other in sorted(now.objects) if other[:2] == key[:2])
        raise InputError(
            f'there is no {key.kind} "{key.name}" in namespace {key.namespace}', f"there: {there or 'none'}"
        )
    compiled = routes.compiled(now.objects)
    title = f"{key.kind} {key.namespace}/{key.name}"
    yield from _served(title, compiled, key)
    for note in compiled.notes:
        if note.about == key:
            yield Line(title, "", note.reason, note.message)
    if key.kind != "Gateway":
        yield from _routes(now.objects, compiled, key)
    yield from _way_in(now)


def _served(title: str, compiled: routes.Compiled, key: Key) -> Iterator[Line]:
    match key.kind:
        case "Ingress":
            served = key in compiled.served
            why = "" if served else "its class is another controller's"
            yield Line(title, "", "served" if served else "not served", why)
        case "Gateway":
            yield from _gateway(title, compiled, key)
        case _:
            yield from _http_route(title, compiled, key)


def _gateway(title: str, compiled: routes.Compiled, key: Key) -> Iterator[Line]:
    yield from (_verdict(title, item) for item in compiled.verdicts.gateways.get(key, ()))
    for found in compiled.verdicts.listeners.get(key, ()):
        said, count = found.listener, found.attached
        where = f"{said.protocol} {said.port}, {said.hostname or 'every name'}"
        yield Line(title, "", f"listener {said.name}: {where}", f"{count} route{'s' * (count != 1)} attached")
        yield from (_verdict(title, item) for item in found.verdicts if item.message)


def _http_route(title: str, compiled: routes.Compiled, key: Key) -> Iterator[Line]:
    parents = compiled.verdicts.routes.get(key, ())
    for parent in parents:
        yield Line(title, "", f"of Gateway {parent.parent.name}")
        yield from (_verdict(title, item) for item in parent.verdicts)
    if not parents:
        yield Line(title, "", "not served", "none of its parentRefs is a Gateway that is served here")


def _verdict(title: str, item: Verdict) -> Line:
    return Line(
        title, "", f"{item.type}: {item.holds}", item.message or (item.reason if item.reason != item.type else "")
    )


def _routes(objects: Objects, compiled: routes.Compiled, key: Key) -> Iterator[Line]:
    """Its rows of the route table: what a request must be, and what becomes of it."""
    pods = addresses(objects)
    endpoints = routes.endpoints(objects, compiled.table.backends())
    for frontend in compiled.table.frontends:
        section = f"port {frontend.port} ({'TLS ends here' if frontend.tls else 'HTTP'})"
        for host, rule in _rules(frontend, key):
            for to, why in _action(rule, endpoints, pods):
                yield Line(section, "", f"{_request(host, rule)} → {to}", why)
        named = {host for host, _ in _rules(frontend, key)}
        for host, secret in frontend.certificates:
            if host in named:
                why = "chosen by the name in the handshake"
                yield Line(section, "", f"certificate for {host}: Secret {secret.namespace}/{secret.name}", why)


def _rules(frontend: Frontend, key: Key) -> list[tuple[str, Rule]]:
    """Host and rule, each once, in the order in which paths are tried."""
    found: dict[tuple[str, object], tuple[str, Rule]] = {}
    for host, virtual in frontend.hosts.items():
        for chain in (*virtual.exacts.values(), *virtual.prefixes.values()):
            for rule in chain:
                if rule.origin == key:
                    found.setdefault((host.name, (rule.match, rule.index)), (host.name, rule))
    return sorted(found.values(), key=lambda item: (item[0], item[1].order))


def _request(host: str, rule: Rule) -> str:
    match = rule.match
    path = f"{match.path} exactly" if match.exact else f"{match.path or '/'}…"
    more = [match.method, *(f"{name}: {value}" for name, value in match.headers)]
    more += [f"?{name}={value}" for name, value in match.query]
    return " ".join(filter(None, (f"{host or '*'}{path}", *more)))


Endpoints = Mapping[routes.Backend, tuple[tuple[str, int], ...]]


def _action(rule: Rule, endpoints: Endpoints, pods: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    match rule.action:
        case Forward(shares):
            total = sum(share.weight for share in shares)
            yield from (_share(share, total, endpoints, pods) for share in shares)
            changes = [f"{name}: {value}" for name, value in (*rule.action.set, *rule.action.add)]
            changes += [f"no {name}" for name in rule.action.remove]
            if changes:
                yield "headers changed", ", ".join(changes)
        case Redirect(status):
            yield f"redirect {status}", "the client is told to ask elsewhere"
        case reply:
            yield f"status {reply.status}", "the proxy answers by itself"


def _share(share: Share, total: int, endpoints: Endpoints, pods: Mapping[str, str]) -> tuple[str, str]:
    part = f" ({share.weight} of {total})" if share.weight != total else ""
    if share.backend is None:
        return f"status {share.status}{part}", "its backend is not there"
    ends = [f"{ip}:{port} ({pods.get(ip, 'no pod of this cluster')})" for ip, port in endpoints[share.backend]]
    why = f"straight to its endpoints, past kube-proxy: {', '.join(ends)}" if ends else "503: no endpoint is ready"
    return f"{share.backend}{part}", why


def _way_in(now: Running) -> Iterator[Line]:
    """From a client to the proxy, and where its configuration is."""
    service = now.objects.get(PROXY)
    if not isinstance(service, Service):
        return
    section = "the way in"
    given = ", ".join(model.balanced_addresses(service))
    yield Line(section, "", f"client → {given or 'any node port'} → a node → a pod of the proxy → a pod", "")
    yield Line(
        section, "", f"svc/{PROXY.name} -n {PROXY.namespace}", "the proxy's Service: nsnet explain tells the rest"
    )
    world = worlds.world(now.objects)
    for pod in world.pods:
        if pod.name.startswith(f"{PROXY.namespace}/"):
            path = names.netns_run_dir(pod.netns) / "haproxy.cfg"
            yield Line(
                section, "", f"{pod.label} on {pod.node}: {path}", "what HAProxy reads; nsnet logs ingress: requests"
            )
