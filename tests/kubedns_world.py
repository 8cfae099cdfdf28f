"""A small cluster as kubedns reads it: one Service of every sort. And what a zone says of it, as lines of text.

`documents` are the same Services as a cluster is given them.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import msgspec

from nsnet.programs.kubedns.config import Config, Endpoint, Port, Service
from nsnet.programs.kubedns.names import labels_of
from nsnet.programs.kubedns.zone import Found, Record, Zone

HTTP, PG = Port("http", "TCP", 80), Port("pg", "TCP", 5432)
POD_HTTP = (Port("http", "TCP", 8080),)


def headless(name: str, *endpoints: Endpoint, ports: tuple[Port, ...] = ()) -> Service:
    return Service("default", name, (), ports, "", endpoints)


def external(name: str, target: str) -> Service:
    return Service("default", name, external_name=target)


SERVICES = (
    Service(
        "default",
        "kubernetes",
        ("10.96.0.1",),
        (Port("https", "TCP", 443),),
        "",
        (Endpoint("172.18.0.2", "", (Port("https", "TCP", 6443),)),),
    ),
    Service(
        "kube-system",
        "kube-dns",
        ("10.96.0.10",),
        (Port("dns", "UDP", 53), Port("dns-tcp", "TCP", 53)),
        "",
        (Endpoint("10.244.1.2", "", (Port("dns", "UDP", 53), Port("dns-tcp", "TCP", 53))),),
    ),
    Service(
        "default",
        "web",
        ("10.96.5.5",),
        (HTTP,),
        "",
        (Endpoint("10.244.1.5", "", POD_HTTP), Endpoint("10.244.2.5", "", POD_HTTP)),
    ),
    Service("default", "unnamed", ("10.96.5.6",), (Port("", "TCP", 80),)),
    Service("default", "dual", ("10.96.5.7", "fd00:96::7"), (HTTP,)),
    Service("shop", "web", ("10.96.6.5",), (HTTP,)),
    headless(
        "db",
        Endpoint("10.244.1.7", "db-0", (PG,)),
        Endpoint("10.244.2.7", "DB-1", (PG,)),
        Endpoint("10.244.1.8", "", (PG,)),
        ports=(PG,),
    ),
    headless("twins", Endpoint("10.244.1.9", "both", (PG,)), Endpoint("10.244.2.9", "both", (PG,)), ports=(PG,)),
    headless("bare", Endpoint("10.244.1.20")),
    headless("none", ports=(PG,)),
    headless("six", Endpoint("5678:abcd::1", "", (PG,)), Endpoint("5678:abcd::", "", (PG,)), ports=(PG,)),
    external("ext", "www.example.com"),
    external("ext-in", "web.shop.svc.cluster.local"),
    external("ext-ext", "ext.default.svc.cluster.local."),
    external("ext-gone", "gone.default.svc.cluster.local"),
    external("ext-ip", "192.0.2.1"),
    external("self", "self.default.svc.cluster.local"),
    external("loop-a", "loop-b.default.svc.cluster.local"),
    external("loop-b", "loop-a.default.svc.cluster.local"),
    *(external(f"chain-{n}", f"chain-{n - 1}.default.svc.cluster.local") for n in range(2, 10)),
    external("chain-1", "web.default.svc.cluster.local"),
)

COREDNS = Config(
    serial=1700000000,
    loadbalance=False,
    namespaces=("default", "kube-system", "shop", "empty"),
    services=SERVICES,
    pod_addresses=(("shop", "10.244.1.30"), ("shop", "fd00::30")),
)
KUBE_DNS = msgspec.structs.replace(COREDNS, flavour="kube-dns")
NOON = 1700000000.0  # 22:13:20 UTC


def changed(config: Config, **changes: Any) -> Config:
    return msgspec.structs.replace(config, **changes)


def ask(config: Config, name: str, kind: str) -> list[str]:
    """What the zone says, one line each: the code unless it is NOERROR, answers, `+` additional, `!` authority.

    A name inside the zone may be written without it. `@` is the name that was asked.
    """
    absolute = name if name.endswith(".") else f"{name}.cluster.local."
    return lines(Zone(config, NOON).find(spelled(absolute), kind))


def spelled(name: str) -> tuple[str, ...]:
    """Labels in their own case."""
    labels = tuple(name.strip(".").split(".")) if name.strip(".") else ()
    assert tuple(label.lower() for label in labels) == labels_of(name)
    return labels


def lines(found: Any) -> list[str]:
    if not isinstance(found, Found):
        return [f"ask {' '.join(found.servers)}"]
    code = [found.rcode] if found.rcode != "NOERROR" else []
    sections = [("", found.answers), ("+ ", found.additional), ("! ", found.authority)]
    told = [f"{mark}{_line(record)}" for mark, records in sections for record in records]
    return code + told + ([f"chase {found.chase}"] if found.chase else [])


def _line(record: Record) -> str:
    return f"{record.name or '@'} {record.ttl} {record.kind} {record.data}".replace("cluster.local.", "~")


# --- as manifests -----------------------------------------------------------------------------------------------------

OWN = {("default", "kubernetes"), ("kube-system", "kube-dns")}  # every cluster has these


def documents(services: Iterable[Service] = SERVICES) -> Iterator[dict[str, Any]]:
    """Services without a selector, and their EndpointSlices, of one family and one list of ports each."""
    for service in services:
        if (service.namespace, service.name) in OWN:
            continue
        meta = {"name": service.name, "namespace": service.namespace}
        yield {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": _spec(service)}
        for number, ((six, ports), endpoints) in enumerate(groupby(service.endpoints, _sort)):
            yield {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    **meta,
                    "name": f"{service.name}-{number}",
                    "labels": {"kubernetes.io/service-name": service.name},
                },
                "addressType": "IPv6" if six else "IPv4",
                "endpoints": [{"addresses": [item.address], **_hostname(item)} for item in endpoints],
                "ports": _ports(ports),
            }


def _sort(endpoint: Endpoint) -> tuple[bool, tuple[Port, ...]]:
    return ":" in endpoint.address, endpoint.ports


def _spec(service: Service) -> dict[str, Any]:
    if service.external_name:
        return {"type": "ExternalName", "externalName": service.external_name}
    addresses = list(service.addresses)
    families = ["IPv6" if ":" in address else "IPv4" for address in addresses] or ["IPv4", "IPv6"]
    return {
        "clusterIP": addresses[0] if addresses else "None",
        "clusterIPs": addresses or ["None"],
        "ipFamilies": families,
        "ipFamilyPolicy": "SingleStack" if len(families) == 1 else "RequireDualStack",
        "ports": _ports(service.ports),
    }


def _ports(ports: Iterable[Port]) -> list[dict[str, Any]]:
    return [{"name": port.name, "protocol": port.protocol, "port": port.port} for port in ports]


def _hostname(endpoint: Endpoint) -> dict[str, str]:
    """The API takes small letters only."""
    return {"hostname": endpoint.hostname.lower()} if endpoint.hostname else {}
