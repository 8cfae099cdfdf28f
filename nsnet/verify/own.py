"""The topology's own `checks`: from a TARGET to a URL, as expectations. Pure.

`http://HOST[:PORT]/PATH` wants an HTTP answer below 400, `tcp://HOST:PORT` a connection, `udp://HOST:PORT` an answer to
the line `hostname`, `icmp://HOST` an echo. HOST is an address (an IPv6 one in brackets) or a name the objects know: a
Service (`web`, `web.shop`, `web.shop.svc.cluster.local` → its clusterIP), a pod, a node, a host. `expect: timeout` is
also met by an "unreachable": either way nothing passes.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from nsnet import model
from nsnet.errors import ObjectError
from nsnet.model import API_FAMILIES, Check, Family, Objects, family_of
from nsnet.verify import world as worlds
from nsnet.verify.expect import Ask, Expectation, Want
from nsnet.verify.world import Place, World

EXPECT: dict[str, Want] = {"ok": "ok", "refused": "refused", "timeout": "unreachable"}
PORTS = {"http": 80, "tcp": 0, "udp": 0, "icmp": 0}
ASK: dict[str, Ask] = {"http": "http", "tcp": "connect", "udp": "line", "icmp": "ping"}


def checks(objects: Objects) -> list[Expectation]:
    """The `checks` of the Cluster document. Raises ObjectError for a TARGET, name or URL that leads nowhere."""
    found = worlds.each(objects)
    return [_check(found, objects, check, f"checks[{number}]") for number, check in enumerate(found[0].cluster.checks)]


def _check(every: Sequence[World], objects: Objects, check: Check, field: str) -> Expectation:
    """A name leads to its address of the cluster's first family, where it has one of that."""
    world = every[0]
    if check.expect not in EXPECT:
        raise _wrong(world, f"{field}.expect", f"{check.expect!r} is unknown", f"one of: {', '.join(EXPECT)}")
    source = _target(world, objects, check.source)
    if source is None:
        raise _wrong(
            world,
            f"{field}.from",
            f"{check.source!r} is not there",
            "write pod/NAME, pod/NAMESPACE/NAME, node/NAME, host/NAME, svc/NAME or deploy/NAME",
        )
    url, port = _url(world, check, field)
    namespace = source.name.partition("/")[0] if source.kind == "pod" else "default"
    address = next(filter(None, (_address(one, url.hostname or "", namespace) for one in every)), "")
    if not address:
        hint = "use an address, or the name of a Service, pod, node or host of this topology"
        raise _wrong(world, f"{field}.to", f"no address for {url.hostname!r}", hint)
    if family_of(address) not in _families(world):
        message = f"{address}: {API_FAMILIES[family_of(address)]} is not configured on this cluster"
        raise _wrong(world, f"{field}.to", message, "podSubnet and serviceSubnet say its families")
    return Expectation(
        group="check",
        title=check.name,
        source=source.label,
        netns=source.netns,
        target=url.netloc,
        protocol="UDP" if url.scheme == "udp" else "ICMP" if url.scheme == "icmp" else "TCP",
        address=address,
        port=port,
        want=EXPECT[check.expect],
        ask=ASK[url.scheme],
        path=(url.path or "/") + (f"?{url.query}" if url.query else ""),
    )


def _families(world: World) -> set[Family]:
    """Of the cluster, and of the networks under it."""
    said = (world.cluster.networking.podSubnet, *(network.subnet for network in world.cluster.underlay.networks))
    return {family_of(part) for pair in said for part in model.subnets(pair)}


def _wrong(world: World, field: str, message: str, hint: str) -> ObjectError:
    return ObjectError(model.key_of(world.cluster), field, message, hint)


def _url(world: World, check: Check, field: str) -> tuple[SplitResult, int]:
    hint = "http://HOST[:PORT]/PATH, tcp://HOST:PORT, udp://HOST:PORT or icmp://HOST"
    try:
        url = urlsplit(check.to)
        port = url.port or PORTS.get(url.scheme, 0)
    except ValueError as error:
        raise _wrong(world, f"{field}.to", f"{check.to!r}: {error}", hint) from error
    if url.scheme not in PORTS or not url.hostname or (url.scheme != "icmp" and not port):
        raise _wrong(world, f"{field}.to", f"{check.to!r} cannot be asked", hint)
    if not check.to.isascii() or any(letter <= " " for letter in check.to):
        raise _wrong(world, f"{field}.to", f"{check.to!r} has characters a URL must escape", hint)
    return url, port


def _target(world: World, objects: Objects, target: str) -> Place | None:
    kind, slash, name = target.partition("/")
    if not slash:
        kind, name = "pod", target
    full = name if "/" in name else f"default/{name}"
    match kind:
        case "node":
            return world.node(name)
        case "host":
            return next((host for host in world.hosts if host.name == name), None)
        case "pod":
            return next((pod for pod in (*world.pods, *world.guests) if pod.name == full), None)
        case "svc" | "service":
            return next(_serving(world, full), None)
        case "deploy" | "deployment":
            return next(_deployed(world, objects, full), None)
    return None


def _serving(world: World, service: str) -> Iterator[Place]:
    """Ready pods of the Service."""
    namespace, _, name = service.partition("/")
    ready = {
        endpoint.addresses[0]
        for item in world.slices.get((namespace, name), ())
        for endpoint in item.endpoints or ()
        if endpoint.conditions is None or endpoint.conditions.ready is not False
    }
    return (pod for pod in (*world.pods, *world.guests) if pod.address in ready)


def _deployed(world: World, objects: Objects, deployment: str) -> Iterator[Place]:
    """Pods of the Deployment, found as Kubernetes finds them: by its ReplicaSets' ownership."""
    namespace, _, name = deployment.partition("/")
    sets = {
        item.metadata.name
        for item in model.of(objects, model.ReplicaSet)
        if item.metadata.namespace == namespace
        and any(owner.kind == "Deployment" and owner.name == name for owner in item.metadata.ownerReferences)
    }
    owned = {
        f"{namespace}/{pod.metadata.name}"
        for pod in model.of(objects, model.Pod)
        if pod.metadata.namespace == namespace
        and any(owner.kind == "ReplicaSet" and owner.name in sets for owner in pod.metadata.ownerReferences)
    }
    return (pod for pod in (*world.pods, *world.guests) if pod.name in owned)


def _address(world: World, host: str, namespace: str) -> str:
    """The address of a name; empty where there is none."""
    with suppress(ValueError):
        return str(ip_address(host))
    name = host.removesuffix(".").removesuffix(f".svc.{world.cluster.networking.dnsDomain}").removesuffix(".svc")
    first, _, second = name.partition(".")
    for service in world.services:
        if (service.metadata.name, service.metadata.namespace) == (first, second or namespace):
            return service.spec.clusterIP
    known = {place.name: place.address for place in (*world.hosts, *world.nodes)}
    known |= {pod.name.partition("/")[2]: pod.address for pod in world.pods if pod.name == f"{namespace}/{host}"}
    return known.get(host, "")
