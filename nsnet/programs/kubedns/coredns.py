"""What CoreDNS' kubernetes plugin finds under a name (its `parse.go`, `findServices` and `findPods`). Pure.

Two cases are the specification's and not the plugin's: a sub-name of an ExternalName Service does not exist, nor does
one of a pod (the plugin answers them as if the first labels were not there).
"""

from collections.abc import Iterable, Iterator

from nsnet.programs.kubedns.config import Endpoint, Port, Service
from nsnet.programs.kubedns.names import Labels, canonical, dashed, pod_address, spelled
from nsnet.programs.kubedns.values import NO_PORT, Index, Value

UNNAMED = (Port("", "", NO_PORT),)  # what an address without ports offers: itself


def values(index: Index, path: Labels) -> list[Value] | None:
    """`path` is the name below the zone, in lower case. Empty: the name exists and has nothing. None: it does not."""
    match path[::-1]:
        case () | ("svc",) | ("pod",):
            return []
        case ("svc" | "pod", namespace, *_) if namespace not in index.namespaces:
            return None
        case ("svc", _):
            return []
        case ("svc", namespace, name, *rest) if len(rest) <= 2:
            return _service(index.services.get(namespace, {}).get(name), rest)
        case ("pod", *_) if index.config.pods == "disabled":
            return None
        case ("pod", _):
            return []
        case ("pod", namespace, name):
            return _pod(index, namespace, name)
    return None


def _pod(index: Index, namespace: str, name: str) -> list[Value] | None:
    address = pod_address(name)
    if not address or (index.config.pods == "verified" and (namespace, address) not in index.pods):
        return None
    return [Value(address, NO_PORT, f"{name}.{namespace}.pod")]


def _service(service: Service | None, rest: list[str]) -> list[Value] | None:
    """`rest` is what stands before the service's name, last label first: a host, or a protocol and a port."""
    if service is None:
        return None
    if service.external_name:
        external = not rest and not canonical(service.external_name)
        return [Value(service.external_name, NO_PORT, "")] if external else None
    if service.addresses and len(rest) != 1:
        return list(_cluster_ips(service, rest)) or None
    return list(_endpoints(service, rest)) or None


def _cluster_ips(service: Service, rest: list[str]) -> Iterator[Value]:
    target = f"{service.name}.{service.namespace}.svc"
    for port in _selected(service.ports or UNNAMED, rest):
        yield from (Value(address, port.port, target) for address in service.addresses)


def _endpoints(service: Service, rest: list[str]) -> Iterator[Value]:
    for endpoint in service.endpoints:
        host = label(endpoint)
        if len(rest) == 1 and host.lower() != rest[0]:
            continue
        target = f"{host}.{service.name}.{service.namespace}.svc"
        for port in _selected(endpoint.ports or UNNAMED, rest):
            yield Value(endpoint.address, port.port, target)


def _selected(ports: Iterable[Port], rest: list[str]) -> Iterator[Port]:
    """All ports, or those that `_PORT._PROTOCOL` names; the underscores may be left out, as in the plugin."""
    if len(rest) < 2:
        yield from ports
        return
    protocol, name = (part.removeprefix("_") for part in rest)
    for port in ports:
        if port.name and (port.protocol.lower(), port.name.lower()) == (protocol, name):
            yield port


def label(endpoint: Endpoint) -> str:
    return endpoint.hostname or dashed(endpoint.address)


def pointers(index: Index) -> dict[str, list[str]]:
    """Address to names below the zone: the Service that has it as cluster IP, or every endpoint that has it."""
    found: dict[str, list[str]] = {}
    for service in index.config.services:
        base = f"{service.name}.{service.namespace}.svc"
        for endpoint in service.endpoints:
            names = found.setdefault(spelled(endpoint.address), [])
            name = f"{label(endpoint)}.{base}"
            if name not in names:
                names.append(name)
    for service in reversed(index.config.services):
        for address in service.addresses:
            found[spelled(address)] = [f"{service.name}.{service.namespace}.svc"]
    return found
