"""Requests to the HTTP proxy from outside: every host and path of the route table, and who must answer. Pure.

What must come of a request is `routes.route`'s answer, which tables of examples hold to the specifications; that
HAProxy does the same is what packets show. Where the proxy's Service has no address yet, its node port is asked.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from nsnet import routes
from nsnet.kernel.probe import Answer
from nsnet.model import DEFAULT_CERTIFICATE, PROXY, PROXY_NAMESPACE, Key, Objects, Service
from nsnet.routes.certificates import Broken, leaf, pem_of
from nsnet.routes.table import Chain, Forward, Frontend, Host, Redirect, Rule, route
from nsnet.verify import policy
from nsnet.verify.sample import rotated
from nsnet.verify.world import Place, World

MOST = 400  # requests per port, of which each costs as much as any other expectation
NOWHERE = "nobody.nsnet.invalid"
PLAIN_METHODS = frozenset({"", "GET", "POST", "PUT", "PATCH", "DELETE"})


class Request(msgspec.Struct, frozen=True):
    """A request, and what must come of it: an answer of one of `answers` (any, where there is none) or this status.

    `sni`: over TLS, and `certificate` is the SHA-256 of the one that must be shown.
    """

    host: str
    path: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    answers: frozenset[str] = frozenset()
    status: int = 200
    sni: str = ""
    certificate: str = ""

    @property
    def title(self) -> str:
        """`GET https://app.sample.com/path`, with the headers that matter."""
        said = "".join(f" {name}: {value}" for name, value in self.headers)
        return f"{self.method} {'https' if self.sni else 'http'}://{self.host or '*'}{self.path}{said}"

    @property
    def payload(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {self.host}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += ["Content-Length: 0"] if self.method != "GET" else []
        return "\r\n".join([*lines, "", ""]).encode()

    def __str__(self) -> str:
        if self.status != 200:
            return f"status {self.status}"
        return f"{' or '.join(sorted(self.answers)[:4]) or 'somebody'} answers"


class Entrance(NamedTuple):
    """Where the proxy's port is asked from outside."""

    address: str
    port: int


def requests(world: World, objects: Objects) -> Iterator[tuple[Entrance, Request]]:
    """Everything to ask, port by port."""
    compiled = routes.compiled(objects)
    service = objects.get(Key("Service", PROXY_NAMESPACE, PROXY))
    if not compiled.needs_proxy or not isinstance(service, Service):
        return
    ready = _ready(world, objects, compiled.table)
    for frontend in compiled.table.frontends:
        entrance = _entrance(world, service, frontend.port)
        if entrance is not None:
            found = list(_of_frontend(objects, frontend, compiled.table, ready))
            for request in found if len(found) <= MOST else rotated(found, 0, MOST):
                yield entrance, request


def _entrance(world: World, service: Service, number: int) -> Entrance | None:
    port = next((item for item in service.spec.ports or () if item.port == number), None)
    given = next((item.ip for item in service.status.loadBalancer.ingress or () if item.ip), "")
    if given:
        return Entrance(given, number)
    if port is None or not port.nodePort or not world.nodes:
        return None
    return Entrance(world.nodes[0].address, port.nodePort)


Answerers = Mapping[routes.Backend, frozenset[str] | None]


def _ready(world: World, objects: Objects, table: routes.Table) -> Answerers:
    """Who may answer for each Service port; None where that is somebody who does not say who it is."""
    pods = {(pod.address, port): pod for pod in (*world.pods, *world.guests) for port in pod.tcp if not pod.runs}
    proxies = [pod for pod in world.pods if pod.name.startswith(f"{PROXY_NAMESPACE}/")]
    if not policy.none(world):  # a pod that policies keep from the proxy: what comes of it is a matter of time-outs
        pods = {at: pod for at, pod in pods.items() if not any(_forbidden(world, proxy, pod, at) for proxy in proxies)}
    found: dict[routes.Backend, frozenset[str] | None] = {}
    for backend, addresses in routes.endpoints(objects, table.backends()).items():
        known = [pods[address].name for address in addresses if address in pods]
        found[backend] = frozenset(known) if len(known) == len(addresses) else None
    return found


def _forbidden(world: World, proxy: Place, pod: Place, at: tuple[str, int]) -> bool:
    return policy.forbidden(world, proxy, pod, "TCP", at[1])


def _of_frontend(objects: Objects, frontend: Frontend, table: routes.Table, ready: Answerers) -> Iterator[Request]:
    """Every path of every host; over TLS, where a handshake costs more, the first of each host, and a strange name."""
    for host in sorted(frontend.hosts):
        name = _example(host)
        asked = [
            request
            for kind, chains in (("exact", frontend.hosts[host].exacts), ("prefix", frontend.hosts[host].prefixes))
            for path, chain in sorted(chains.items())
            for request in _of_chain(name, path if kind == "exact" else f"{path}nsnet", chain)
        ]
        for request in asked[:1] if frontend.tls else asked:
            judged = _judged(request, table, frontend.port, ready)
            if judged is not None:
                yield _over_tls(objects, frontend, judged) if frontend.tls else judged
    strange = _judged(Request(NOWHERE, "/nsnet"), table, frontend.port, ready)
    if strange is not None:
        yield _over_tls(objects, frontend, strange) if frontend.tls else strange


def _example(host: Host) -> str:
    """A name that the host covers."""
    if not host.name:
        return NOWHERE
    return host.name.replace("*", "one.two" if host.deep else "one", 1)


def _of_chain(host: str, path: str, chain: Chain) -> Iterator[Request]:
    """One request per rule, with what the rule asks for; and one with nothing of it."""
    for rule in chain:
        if rule.match.method in PLAIN_METHODS and rule.match.conditional:
            yield _for_rule(host, path, rule)
    yield Request(host, path)


def _for_rule(host: str, path: str, rule: Rule) -> Request:
    query = "&".join(f"{name}={value}" for name, value in rule.match.query)
    return Request(host, f"{path}?{query}" if query else path, rule.match.method or "GET", rule.match.headers)


def _judged(request: Request, table: routes.Table, port: int, ready: Answerers) -> Request | None:
    """The request with what must come of it; None where nobody can say."""
    action = route(table, request.host, request.path, dict(request.headers), port=port, method=request.method).action
    match action:
        case Forward(shares):
            return _forwarded(request, [share.backend for share in shares], ready)
        case Redirect(status):
            return msgspec.structs.replace(request, status=status)
    return msgspec.structs.replace(request, status=action.status)


def _forwarded(request: Request, backends: list[routes.Backend | None], ready: Answerers) -> Request | None:
    who = [ready.get(backend) if backend else None for backend in backends]
    if len(who) == 1 and who[0] == frozenset():
        return msgspec.structs.replace(request, status=503)
    if not all(who):
        return None
    return msgspec.structs.replace(request, answers=frozenset(name for names in who for name in names or ()))


def _over_tls(objects: Objects, frontend: Frontend, request: Request) -> Request:
    shown = next((item.secret for item in frontend.certificates if _fits(item.host, request.host)), DEFAULT_CERTIFICATE)
    try:
        digest = hashlib.sha256(leaf(pem_of(objects[shown]))).hexdigest()
    except (Broken, KeyError):
        digest = ""
    return msgspec.structs.replace(request, sni=request.host, certificate=digest)


def _fits(certified: str, host: str) -> bool:
    if certified.startswith("*."):
        return host.partition(".")[2] == certified[2:]
    return certified in {"", host}


def wrong(request: Request, answer: Answer, who: str) -> str:
    """What is wrong with an answer; `who` said that it is its own. Empty where nothing is."""
    body = answer.body
    if request.sni:
        shown, _, body = body.partition(b"\n")
        if request.certificate and shown.decode() != request.certificate:
            return f"another certificate was shown for {request.sni}"
    status = body[9:12].decode("latin-1") if body.startswith(b"HTTP/") else ""
    if status != str(request.status):
        return f"status {status or 'none'}, wanted {request}"
    if request.answers and who not in request.answers:
        return f"{who} answered, wanted {request}"
    return ""
