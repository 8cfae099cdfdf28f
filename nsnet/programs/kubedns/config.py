"""What kubedns reads: one JSON file, whole, at the start and at every reload.

Services and endpoints are arrays and not objects, so that ten thousand of them are read in a twentieth of a second. No
struct here can be part of a cycle: the garbage collector need not look at them (`gc=False`).
"""

from typing import Annotated, Literal

import msgspec


class Port(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A service's or an endpoint's port: `name` may be empty, `protocol` is the API's (`TCP`)."""

    name: str
    protocol: str
    port: int


class Endpoint(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An endpoint that counts as ready: its address, its hostname where the pod has one, and the ports it offers."""

    address: str
    hostname: str = ""
    ports: tuple[Port, ...] = ()


class Service(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A Service as DNS sees it. Headless: neither `addresses` nor an external name."""

    namespace: str
    name: str
    addresses: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    external_name: str = ""
    endpoints: tuple[Endpoint, ...] = ()


class Config(msgspec.Struct, frozen=True):
    """The whole file.

    `serial` is the unix time of the last change (the SOA's serial in CoreDNS). `upstreams` and the servers of `stubs`
    are `ip` or `ip:port`. `reverse` are zones (`96.10.in-addr.arpa`) in which an address that nobody has does not
    exist; one outside of them is asked of the upstreams. `ttl` is the implementation's own unless it is given. `pods`
    is CoreDNS' (kube-dns is always `insecure`), and `pod_addresses` are (namespace, address), for `verified`.
    `loadbalance` is CoreDNS' plugin of that name: addresses in another order each time (kube-dns always does that).
    """

    domain: str = "cluster.local"
    flavour: Literal["coredns", "kube-dns"] = "coredns"
    pods: Literal["disabled", "insecure", "verified"] = "insecure"
    serial: int = 1
    ttl: Annotated[int, msgspec.Meta(ge=0, le=3600)] | None = None
    loadbalance: bool = True
    namespaces: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()
    pod_addresses: tuple[tuple[str, str], ...] = ()
    upstreams: tuple[str, ...] = ()
    stubs: dict[str, tuple[str, ...]] = {}
    reverse: tuple[str, ...] = ()


def read(data: bytes) -> Config:
    """Raises msgspec.MsgspecError, or UnicodeDecodeError, when the file is not of this form."""
    return msgspec.json.decode(data, type=Config)
