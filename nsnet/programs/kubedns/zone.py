"""The cluster's zone: which records a name has, and whether a name that has none exists. Pure.

Source of the behaviour: the Kubernetes DNS specification 1.1.0, and where it leaves a choice, the two implementations
that people meet, CoreDNS' kubernetes plugin (the default) and kube-dns. Both come from SkyDNS, so what differs is small
and stands in `Flavour`; what they find under a name stands in `coredns` and `skydns`.

`Zone(config)` only sorts Services by name (ten thousand in some milliseconds); records are made for the one name that
is asked, and the table of addresses at the first PTR.

A name whose only record is of another type is NODATA here, always: CoreDNS says NXDOMAIN to `dns-version A`, kube-dns
to `web CNAME`, and a cache in front of them (dnsmasq keeps NXDOMAIN for all types) would then hide the record.
"""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

from nsnet.programs.kubedns import coredns, skydns
from nsnet.programs.kubedns.config import Config
from nsnet.programs.kubedns.names import IN_ADDR, IP6, Labels, address_of, canonical, kind_of, labels_of
from nsnet.programs.kubedns.values import NO_PORT, Index, Value

SCHEMA = "1.1.0"
SCHEMA_TTL = 28800
CHAIN = 8  # CNAMEs in a row; the next is not followed


class Record(NamedTuple):
    """`name` is full, with its final dot, or empty: the name as it was asked. `data` is in master-file form."""

    name: str
    kind: str
    ttl: int
    data: str


class Found(NamedTuple):
    """`rcode` is NOERROR, NXDOMAIN, REFUSED or SERVFAIL; `chase` an outside name whose records follow the answers."""

    rcode: str = "NOERROR"
    answers: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    authoritative: bool = True
    recursion: bool = False
    chase: str = ""


class Forward(NamedTuple):
    """Others know: they are asked in this order, as `ip` or `ip:port`. Never empty."""

    servers: tuple[str, ...]


class Flavour(NamedTuple):
    """In what the implementations differ once the values are found."""

    values: Callable[[Index, Labels], list[Value] | None]
    pointers: Callable[[Index], dict[str, list[str]]]
    ttl: int
    priority: int
    lightest: int  # the least weight
    recursion: bool  # the RA flag of own answers
    echo: bool  # SOA and SRV targets take the zone's spelling from the question
    unserved: str  # what is said about a name outside when there is nobody to ask


COREDNS = Flavour(coredns.values, coredns.pointers, 5, 0, 1, recursion=False, echo=True, unserved="REFUSED")
KUBE_DNS = Flavour(skydns.values, skydns.pointers, 30, 10, 0, recursion=True, echo=False, unserved="SERVFAIL")


class Zone:
    """One configuration, made once and asked as often as one likes. `now` is the unix time, for kube-dns' serial."""

    def __init__(self, config: Config, now: float = 0.0) -> None:
        self.config = config
        self.skydns = config.flavour == "kube-dns"
        self.flavour = KUBE_DNS if self.skydns else COREDNS
        self.ttl = self.flavour.ttl if config.ttl is None else config.ttl
        self.serial = int(now) // 3600 * 3600 if self.skydns else config.serial
        self.index = Index(config)
        self.origin = labels_of(config.domain)
        self.apex = ".".join(self.origin) + "."
        self.stubs = {labels_of(name): servers for name, servers in config.stubs.items() if servers}
        self.reverse = {labels_of(name) for name in config.reverse}

    @cached_property
    def pointers(self) -> dict[str, list[str]]:
        return self.flavour.pointers(self.index)

    def find(self, labels: Labels, kind: str, kind_class: str = "IN") -> Found | Forward:
        """What to answer to a question; `labels` in the spelling in which they were asked."""
        lower = tuple(label.lower() for label in labels)
        if kind_class != "IN":
            return Found("SERVFAIL" if self.skydns else "REFUSED", authoritative=False)
        if kind == "ANY" and self.skydns:
            return Found("REFUSED", authoritative=False)
        if servers := self._stub(lower):
            return Forward(servers)
        if self._is_inside(lower):
            return self._inside(lower, self._spelled(labels), kind)
        if lower[-2:] in (IN_ADDR, IP6):
            return self._backwards(lower, labels, kind)
        return self._outside(lower)

    # --- where to look ------------------------------------------------------------------------------------------------

    def _is_inside(self, lower: Labels) -> bool:
        return len(lower) >= len(self.origin) and lower[len(lower) - len(self.origin) :] == self.origin

    def _spelled(self, labels: Labels) -> str:
        """The zone as it was asked."""
        return ".".join(labels[len(labels) - len(self.origin) :]) + "." if self.flavour.echo else self.apex

    def _stub(self, lower: Labels) -> tuple[str, ...]:
        """The servers of the longest stub domain that the name is in."""
        suffixes = (lower[start:] for start in range(len(lower)))
        servers: tuple[str, ...] = next((self.stubs[suffix] for suffix in suffixes if suffix in self.stubs), ())
        return tuple(address for server in servers for address in self._server(server))

    def _server(self, server: str) -> tuple[str, ...]:
        """As it is; but kube-dns' stub domains may name a Service of the cluster, which stands for its addresses."""
        labels = labels_of(server)
        if not self._is_inside(labels):
            return (server,)
        values = self._values(labels[: len(labels) - len(self.origin)]) or ()
        return tuple(value.host for value in values if canonical(value.host))

    def servers(self, name: str) -> tuple[str, ...]:
        """Whom to ask about a name outside; nobody, perhaps. kube-dns never asks about names of one label."""
        lower = labels_of(name)
        return self._stub(lower) or (() if self.skydns and len(lower) < 2 else self.config.upstreams)

    def _outside(self, lower: Labels) -> Found | Forward:
        servers = self.servers(".".join(lower))
        unserved = Found(self.flavour.unserved, authoritative=False, recursion=self.flavour.recursion)
        return Forward(servers) if servers else unserved

    # --- inside -------------------------------------------------------------------------------------------------------

    def _inside(self, lower: Labels, zone: str, kind: str) -> Found:
        path = lower[: len(lower) - len(self.origin)]
        if not path and kind in {"SOA", "NS"}:
            return self._apex(zone, kind)
        if path == ("dns-version",) and not self.skydns:
            version = (Record("", "TXT", SCHEMA_TTL, f'"{SCHEMA}"'),)
            return self._found(zone, version if kind == "TXT" else ())
        values = self._values(path)
        if values is None:
            return self._found(zone, rcode="NXDOMAIN")
        match kind:
            case "A" | "AAAA":
                answers, chase = self._addresses(values, kind, "")
                return self._found(zone, answers, chase=chase)
            case "SRV":
                return self._found(zone, *self._services(values, zone))
            case "CNAME":
                return self._found(zone, self._alias(values))
        return self._found(zone)

    def _values(self, path: Labels) -> list[Value] | None:
        if path == ("ns", "dns") and not self.skydns:
            return self._name_server()
        return self.flavour.values(self.index, path)

    def _name_server(self) -> list[Value] | None:
        """The server's own Service."""
        return self.flavour.values(self.index, ("kube-dns", "kube-system", "svc"))

    def _found(
        self,
        zone: str,
        answers: tuple[Record, ...] = (),
        additional: tuple[Record, ...] = (),
        *,
        rcode: str = "NOERROR",
        chase: str = "",
    ) -> Found:
        """An answer of the zone's own; with the SOA where there is nothing."""
        authority = () if answers else (self.soa(zone),)
        return Found(rcode, answers, additional, authority, recursion=self.flavour.recursion, chase=chase)

    def soa(self, zone: str, *, asked: bool = False) -> Record:
        """The SOA; in a negative answer unless it was asked for."""
        names = f"ns.dns.{zone} hostmaster.{zone} {self.serial}"
        if self.skydns:
            return Record(zone, "SOA", 3600 if asked else 60, f"{names} 28800 7200 604800 60")
        return Record(zone, "SOA", min(self.ttl, 300), f"{names} 7200 1800 86400 {self.ttl}")

    def _apex(self, zone: str, kind: str) -> Found:
        """SOA, and NS: CoreDNS names its Service, kube-dns looks for `ns.dns.ZONE`, which it does not have."""
        if kind == "SOA":
            return self._found(zone, (self.soa(zone, asked=True),))
        if self.skydns:
            return self._found(zone, rcode="NXDOMAIN")
        addresses = {value.host: f"{value.target}.{zone}" for value in self._name_server() or () if value.host}
        answers = tuple(Record("", "NS", self.ttl, target) for target in dict.fromkeys(addresses.values()))
        glue = tuple(Record(target, kind_of(host), self.ttl, host) for host, target in addresses.items())
        return self._found(zone, answers, glue)

    # --- values to records --------------------------------------------------------------------------------------------

    def _addresses(
        self, values: Iterable[Value], kind: str, owner: str, depth: int = 0
    ) -> tuple[tuple[Record, ...], str]:
        """Addresses of one kind, and CNAMEs with all that they lead to; one that leads to nothing is left out.

        That is also how a loop ends, at CHAIN. The second value is an outside name that is left to be looked up.
        """
        records: dict[str, Record] = {}
        for value in values:
            if canonical(value.host):
                if kind_of(value.host) == kind:
                    records[value.host] = Record(owner, kind, self.ttl, value.host)
                continue
            if depth >= CHAIN:
                continue
            target = self._target(value)
            alias = Record(owner, "CNAME", self.ttl, target)
            labels = labels_of(target)
            if not self._is_inside(labels):
                return (alias,), target
            below = self._values(labels[: len(labels) - len(self.origin)]) or ()
            more, chase = self._addresses(below, kind, target, depth + 1)
            if more:
                return (alias, *more), chase  # an owner has one CNAME
        return tuple(records.values()), ""

    def _target(self, value: Value) -> str:
        return f"{value.host.rstrip('.')}." if value.host else f"{value.target}.{self.apex}"

    def _services(self, values: list[Value], zone: str) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
        """SRV records and the addresses of their targets. The weight counts all values, also those that are merged."""
        if not self.skydns:
            values = [value for value in values if canonical(value.host)]  # no SRV for outside names
        weight = max(self.flavour.lightest, 100 // max(1, len(values)))
        answers: dict[Record, None] = {}
        additional: dict[Record, None] = {}
        for value in values:
            if value.port == NO_PORT:
                continue
            target = f"{value.target}.{zone}" if value.target else self._target(value)
            answers[Record("", "SRV", self.ttl, f"{self.flavour.priority} {weight} {value.port} {target}")] = None
            for address in value.addresses or ((value.host,) if canonical(value.host) else ()):
                additional[Record(target, kind_of(address), self.ttl, address)] = None
        return tuple(answers), tuple(additional)

    def _alias(self, values: list[Value]) -> tuple[Record, ...]:
        outside = [value for value in values if value.host and not canonical(value.host)]
        return tuple(Record("", "CNAME", self.ttl, self._target(value)) for value in outside[:1])

    # --- addresses to names -------------------------------------------------------------------------------------------

    def _backwards(self, lower: Labels, labels: Labels, kind: str) -> Found | Forward:
        names = self.pointers.get(address_of(lower)) if kind == "PTR" or not self.skydns else None
        if self.skydns:
            if not names:
                return self._outside(lower)
            answers = tuple(Record("", "PTR", self.ttl, f"{name}.{self.apex}") for name in names)
            return Found(answers=answers, authoritative=False, recursion=True)
        start = next((start for start in range(len(lower)) if lower[start:] in self.reverse), None)
        if start is None and (kind != "PTR" or not names):
            return self._outside(lower)
        zone = ".".join(labels[start or 0 :]) + "."
        if start == 0:
            return self._found(zone, (self.soa(zone, asked=True),) if kind == "SOA" else ())
        if not names:
            return self._found(zone, rcode="NXDOMAIN")
        pointed = tuple(Record("", "PTR", self.ttl, f"{name}.{self.apex}") for name in names)
        return self._found(zone, pointed if kind == "PTR" else ())
