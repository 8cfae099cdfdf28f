"""What kube-dns finds under a name: SkyDNS over a tree of labels (kubernetes/dns, `dns.go`, `treecache.go`). Pure.

    svc / NAMESPACE / SERVICE             entries HASH or HOSTNAME: an address
    svc / NAMESPACE / SERVICE / _tcp / _http    entries HASH or HOSTNAME: the name and port that SRV tells
    svc / NAMESPACE                       entries: the ExternalName Services, whose name is no node but an entry

A node without entries does not exist, whatever stands below it: there are no empty names. A `*` stands for any node
that has no `_`, and at the end of the path for the entries of the node it stands in.

The tree is not built: the part of it that a question is about is made when it is asked. Two endpoints of one hostname
are both served, as the specification wants; in the original the second overwrites the first.
"""

from collections.abc import Iterator

from nsnet.programs.kubedns.config import Endpoint, Port, Service
from nsnet.programs.kubedns.names import Labels, canonical, hashed, spelled
from nsnet.programs.kubedns.values import NO_PORT, Index, Value

ANY = "*"
Entry = tuple[str, Value]


def values(index: Index, path: Labels) -> list[Value] | None:
    """`path` is the name below the zone, in lower case. Empty: the name exists and has nothing. None: it does not."""
    match path[::-1]:
        case ("pod", _, name) if ANY not in path:
            return _pod(name)
        case ("svc" | "*", namespace, name, *rest):
            return list(_below(index, namespace, name, rest)) or None
    return None


def _pod(name: str) -> list[Value]:
    """Any address, in any namespace; a name that is none has nothing (and still exists)."""
    address = canonical(name.replace("-", "."))
    return [Value(address, NO_PORT, "")] if address else []


def _below(index: Index, namespace: str, name: str, rest: list[str]) -> Iterator[Value]:
    spaces = index.services.values() if namespace == ANY else [index.services.get(namespace, {})]
    for space in spaces:
        for service in space.values() if name == ANY else [service for service in (space.get(name),) if service]:
            if service.external_name and not rest:
                yield Value(service.external_name, 0, "")
            elif not service.external_name and (rest or name != ANY):
                yield from _entries(service, rest)


def _entries(service: Service, rest: list[str]) -> Iterator[Value]:
    match rest:
        case []:
            yield from (value for _, value in _addresses(service))
        case [label]:
            yield from (value for entry, value in _addresses(service) if label in (ANY, entry))
        case [protocol, port]:
            yield from (value for _, value in _ports(service, protocol, port))
        case [protocol, port, label]:
            yield from (value for entry, value in _ports(service, protocol, port) if label in (ANY, entry))


def _addresses(service: Service) -> Iterator[Entry]:
    base = f"{service.name}.{service.namespace}.svc"
    for address in service.addresses:
        yield hashed(address), Value(address, 0, f"{hashed(address)}.{base}")
    if not service.addresses:
        for endpoint in service.endpoints:
            host = label(endpoint)
            yield host.lower(), Value(endpoint.address, 0, f"{host}.{base}")


def _ports(service: Service, protocol: str, name: str) -> Iterator[Entry]:
    base = f"{service.name}.{service.namespace}.svc"
    for address in service.addresses:
        for port in _named(service.ports, protocol, name):
            yield hashed(address), Value("", port.port, base, service.addresses)
    if not service.addresses:
        for endpoint in service.endpoints:
            host = label(endpoint)
            for port in _named(endpoint.ports, protocol, name):
                yield host.lower(), Value("", port.port, f"{host}.{base}", (endpoint.address,))


def _named(ports: tuple[Port, ...], protocol: str, name: str) -> list[Port]:
    wanted = (protocol, name)
    return [port for port in ports if port.name and (f"_{port.protocol}".lower(), f"_{port.name}".lower()) == wanted]


def label(endpoint: Endpoint) -> str:
    return endpoint.hostname or hashed(endpoint.address)


def pointers(index: Index) -> dict[str, list[str]]:
    """Address to names below the zone: cluster IPs, and endpoints of headless Services that have a hostname."""
    found: dict[str, list[str]] = {}
    for service in index.config.services:
        base = f"{service.name}.{service.namespace}.svc"
        for address in service.addresses:
            found[spelled(address)] = [base]
        if not service.addresses:
            for endpoint in service.endpoints:
                if endpoint.hostname:
                    found.setdefault(spelled(endpoint.address), [f"{endpoint.hostname}.{base}"])
    return found
