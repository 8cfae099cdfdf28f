"""`trace FROM http://HOST/PATH`: a request, from the client to the HTTP proxy and on to where the route table sends it.

Two connections, as with kube-proxy's userspace process: the client's ends at a pod of the proxy, which opens one of its
own. Both are followed through what the kernel has; which endpoints come into question says the table that the proxy's
files are made of (`nsnet.routes`).
"""

from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from msgspec.structs import replace

from nsnet import model, names, routes
from nsnet.cli.target import Target, target
from nsnet.cli.words import did_you_mean
from nsnet.errors import InputError
from nsnet.model import Objects
from nsnet.render.ingress import addresses
from nsnet.routes.table import HTTP, HTTPS, Forward, Routed, without_port
from nsnet.state import State, socket_address
from nsnet.trace import Hop, Packet, Way, joined, walk
from nsnet.trace.listening import is_open

EXAMPLE = "for example http://app.sample.com/path"


class Request(NamedTuple):
    """A GET; `host` as its Host header has it."""

    host: str
    path: str
    port: int


def request_of(text: str) -> Request | None:
    """The request that a URL is; None where the text is none. Raises InputError for one that cannot be asked."""
    scheme, there, _ = text.partition("://")
    if not there:
        return None
    if scheme.lower() not in {"http", "https"}:
        raise InputError(f"{text}: {scheme} is not followed", EXAMPLE)
    try:
        parts = urlsplit(text)
        port = parts.port or (HTTPS if scheme.lower() == "https" else HTTP)
    except ValueError as error:
        raise InputError(f"{text}: {error}", EXAMPLE) from None
    if not parts.hostname:
        raise InputError(f"{text} names no host", EXAMPLE)
    path = parts.path or "/"
    return Request(parts.netloc.rpartition("@")[2], f"{path}?{parts.query}" if parts.query else path, port)


def address_of(objects: Objects, request: Request) -> str:
    """Where a client asks. Raises InputError where the name leads nowhere."""
    host = without_port(request.host)
    try:
        return str(ip_address(host))
    except ValueError:
        known = addresses(objects)
    if host.lower() not in known:
        near = did_you_mean(host, known)
        hint = f"served by name: {', '.join(known) or 'nothing'}; or give the proxy's address instead of the name"
        raise InputError(f"nobody outside knows the name {host}{near}", hint)
    return known[host.lower()]


def onward(objects: Objects, state: State, way: Way, request: Request) -> Iterator[Way]:
    """The ways on from a pod of the proxy; a way that ends elsewhere, or before a closed door, is all there is."""
    if way.result != "delivered" or way.netns not in _proxies(objects) or not is_open(state, way):
        yield way
        return
    table = routes.compiled(objects).table
    routed = routes.route(table, request.host, request.path, port=way.packet.dport)
    action = routed.action
    if not isinstance(action, Forward):
        why = "the rule says so" if routed.rule else "no rule takes this host and path"
        yield _answered(way, routed, action.status, why)
        return
    endpoints = routes.endpoints(objects, [share.backend for share in action.shares if share.backend])
    total = sum(share.weight for share in action.shares)
    for share in action.shares:
        part, ends = share.weight / total, endpoints.get(share.backend, ()) if share.backend else ()
        if not ends:
            why = f"{share.backend} has no ready endpoint" if share.backend else "its backend is not there"
            yield replace(_answered(way, routed, share.status, why), chance=way.chance * part)
        for address, port in ends:
            step = _step(way, routed, f"{share.backend}, 1 of {len(ends)} endpoints: {socket_address(address, port)}")
            for further in walk(state, way.netns, Packet("tcp", address, port)):
                yield joined(way, step, further, part / len(ends))


def _proxies(objects: Objects) -> dict[str, str]:
    """Namespace → the proxy's pod there."""
    own = model.cluster_of(objects).metadata.name
    found = (pod.metadata for pod in model.of(objects, model.Pod) if model.runs_proxy(pod))
    return {names.pod_netns(own, meta.namespace, meta.name): meta.name for meta in found}


def _step(way: Way, routed: Routed, what: str) -> Hop:
    """What the proxy does, by which object and row of the table."""
    rule, host = routed.rule, routed.host.name if routed.host else ""
    return Hop(
        way.netns, f"proxy → {what}", f"{rule.origin}: {host}{rule.match.path}" if rule else "no row of the table"
    )


def _answered(way: Way, routed: Routed, status: int, why: str) -> Way:
    """By the proxy itself: a redirect is an answer, anything else is not what was asked for."""
    step = _step(way, routed, f"status {status}")
    if 300 <= status < 400:
        return replace(way, hops=(*way.hops, step))
    return replace(way, result="refused", reason=f"the proxy answers {status}: {why}", hops=(*way.hops, step))


def legs(objects: Objects, start: Target, way: Way) -> Iterator[tuple[Target, Way]]:
    """Each connection of a way by itself, with who opened it."""
    client = way.through
    if client is None:
        yield start, way
        return
    yield start, client
    opener = target(objects, f"pod/{_proxies(objects)[client.netns]}", model.PROXY_NAMESPACE)
    yield opener, replace(way, through=None, flows=way.flows[len(client.flows) :])
