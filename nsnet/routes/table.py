"""The route table: which request goes where, as values; and `route`, which asks it. Pure.

Ingress and Gateway API objects both become `Rule`s, and `table` puts those in the order in which they are tried:

    frontend   by port (and whether TLS ends there)
    host       the exact name, then `*.` of one label (Ingress), then `*.` of one or more (Gateway API), then any name;
               without the port of the Host header, capitals do not count; once a host is chosen no other is tried
    path       the longest; at equal length Exact before Prefix; then method, most headers, most query parameters,
               then the older object, then its name (INGRESS.md; Gateway API's HTTPRouteRule gives the same order)

A Prefix matches element by element, so `/v2` is no prefix of `/v2example`; a slash at the end does not count. What
`render` writes for the proxy is this very structure: maps from host to virtual host and from path to chain.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from nsnet.model import Key

HTTP, HTTPS = 80, 443
Pairs = tuple[tuple[str, str], ...]


class Backend(msgspec.Struct, frozen=True, order=True):
    """A Service's port, by its number."""

    namespace: str
    service: str
    port: int

    def __str__(self) -> str:
        return f"{self.namespace}/{self.service}:{self.port}"


class Share(NamedTuple):
    """A part of a rule's traffic; without a backend it is answered with `status`."""

    backend: Backend | None
    weight: int = 1
    status: int = 503


class Forward(msgspec.Struct, frozen=True):
    """To one of several backends by weight; the request's headers changed before."""

    shares: tuple[Share, ...]
    set: Pairs = ()
    add: Pairs = ()
    remove: tuple[str, ...] = ()


class Redirect(msgspec.Struct, frozen=True):
    """What is empty (port: 0) is the request's own; `prefix` is replaced by `path`, where both are there."""

    status: int = 302
    scheme: str = ""
    hostname: str = ""
    port: int = 0
    path: str = ""
    prefix: str = ""


class Reply(msgspec.Struct, frozen=True):
    """The proxy answers by itself."""

    status: int


Action = Forward | Redirect | Reply
NOT_FOUND = Reply(404)


class Match(msgspec.Struct, frozen=True):
    """What a request must have. An empty `path` is a default backend's: after every other."""

    path: str = "/"
    exact: bool = False
    method: str = ""
    headers: Pairs = ()  # names in lower case
    query: Pairs = ()

    @property
    def conditional(self) -> bool:
        """Does it ask for more than a path?"""
        return bool(self.method or self.headers or self.query)


class Host(msgspec.Struct, frozen=True, order=True):
    """A host name; empty: any. `*.foo.com` covers one label, where `deep` one or more."""

    name: str = ""
    deep: bool = False

    def covers(self, other: "Host") -> bool:
        """Is every name that `other` stands for one of ours too?"""
        if not self.name or self == other:
            return True
        suffix = self.name.removeprefix("*")
        if suffix == self.name or not other.name.endswith(suffix) or other.name == suffix:
            return False
        return self.deep or "." not in other.name.removesuffix(suffix).removeprefix("*.")

    @property
    def rank(self) -> tuple[int, int]:
        """How exactly it says the name: Gateway API counts characters of a name before those of a wildcard."""
        return (0 if self.name.startswith("*") else len(self.name), len(self.name))


class Rule(msgspec.Struct, frozen=True):
    """`age` and `origin` (the object it is from) decide between rules that say the same; then the order in there."""

    hosts: tuple[Host, ...]
    match: Match
    action: Action
    origin: Key
    age: str = ""
    index: int = 0

    @property
    def order(self) -> tuple[object, ...]:
        match = self.match
        return (
            -len(match.path),
            not match.exact,
            not match.method,
            -len(match.headers),
            -len(match.query),
            self.age,
            self.origin.namespace,
            self.origin.name,
            self.index,
        )


Chain = tuple[Rule, ...]
"""Rules to be tried in this order; only the last may be without conditions."""


class VirtualHost(msgspec.Struct, frozen=True):
    """Chains by path. The keys of `prefixes` end in a slash."""

    exacts: Mapping[str, Chain]
    prefixes: Mapping[str, Chain]


class Certificate(NamedTuple):
    """A Secret for what a client names in its handshake; `host` may be `*.` with one label."""

    host: str
    secret: Key


class Frontend(msgspec.Struct, frozen=True):
    """What listens on one port of the proxy; `certificates`: the first that fits counts, then the default one."""

    port: int
    tls: bool
    hosts: Mapping[Host, VirtualHost]
    certificates: tuple[Certificate, ...] = ()


class Table(msgspec.Struct, frozen=True):
    """Everything the proxy serves, by port."""

    frontends: tuple[Frontend, ...] = ()

    def frontend(self, port: int) -> Frontend | None:
        return next((item for item in self.frontends if item.port == port), None)

    def backends(self) -> list[Backend]:
        """All Service ports that some rule sends to, in order."""
        shares = (share for chain in self.chains() for rule in chain for share in _shares(rule.action))
        return sorted({share.backend for share in shares if share.backend is not None})

    def chains(self) -> Iterator[Chain]:
        for frontend in self.frontends:
            for host in frontend.hosts.values():
                yield from host.exacts.values()
                yield from host.prefixes.values()


def _shares(action: Action) -> tuple[Share, ...]:
    return action.shares if isinstance(action, Forward) else ()


# --- asking it --------------------------------------------------------------------------------------------------------


class Routed(NamedTuple):
    """What becomes of a request; `rule` is the one that said so, where one did."""

    action: Action
    rule: Rule | None = None
    host: Host | None = None


def route(
    table: Table,
    host: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    *,
    port: int = HTTP,
    method: str = "GET",
) -> Routed:
    """Where a request goes. `path` may have a query string; `host` a port, as a Host header has it."""
    frontend = table.frontend(port)
    chosen = None if frontend is None else host_of(frontend.hosts, host)
    if frontend is None or chosen is None:
        return Routed(NOT_FOUND)
    path, _, query = path.partition("?")
    said = {name.lower(): value for name, value in (headers or {}).items()}
    asked = _parameters(query)
    for rule in chain_of(frontend.hosts[chosen], path):
        if _meets(rule.match, method, said, asked):
            return Routed(rule.action, rule, chosen)
    return Routed(NOT_FOUND, None, chosen)


def host_of(hosts: Iterable[Host], asked: str) -> Host | None:
    """The one of `hosts` that a Host header means."""
    name = without_port(asked).lower()
    suffix = "*." + name.partition(".")[2]
    there = frozenset(hosts)
    for exact in (Host(name), Host(suffix)):
        if exact in there and exact.name:
            return exact
    labels = name.split(".")
    for start in range(1, len(labels)):
        deep = Host("*." + ".".join(labels[start:]), deep=True)
        if deep in there:
            return deep
    return Host() if Host() in there else None


def without_port(host: str) -> str:
    return re.sub(r":[0-9]*$", "", host)


def chain_of(host: VirtualHost, path: str) -> Chain:
    """What is tried for a path: its own chain, or that of the longest prefix."""
    if path in host.exacts:
        return host.exacts[path]
    return next((host.prefixes[key] for key in ancestors(path) if key in host.prefixes), ())


def ancestors(path: str) -> Iterator[str]:
    """`/a/b` → `/a/b/`, `/a/`, `/`: the prefixes of a path, the longest first."""
    whole = path if path.endswith("/") else path + "/"
    end = len(whole)
    while end > 0:
        yield whole[:end]
        end = whole.rfind("/", 0, end - 1) + 1


def _meets(match: Match, method: str, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
    return (
        match.method in {"", method}
        and all(headers.get(name) == value for name, value in match.headers)
        and all(query.get(name) == value for name, value in match.query)
    )


def _parameters(query: str) -> dict[str, str]:
    """The first value of each, as they stand: the proxy compares them undecoded."""
    found: dict[str, str] = {}
    for part in query.split("&"):
        name, _, value = part.partition("=")
        found.setdefault(name, value)
    return found


# --- making it --------------------------------------------------------------------------------------------------------


def virtual_hosts(rules: Sequence[Rule], *, shared: bool) -> dict[Host, VirtualHost]:
    """The rules of one listener by host. `shared`: a host also takes the rules of wider ones, after its own."""
    by_host: defaultdict[Host, list[Rule]] = defaultdict(list)
    for rule in rules:
        for host in rule.hosts:
            by_host[host].append(rule)
    found = {}
    for host, own in by_host.items():
        wider = [other for other in by_host if shared and other != host and other.covers(host)]
        ordered = sorted(own, key=_order)
        for other in sorted(wider, key=lambda item: item.rank, reverse=True):
            ordered += sorted(by_host[other], key=_order)
        found[host] = _virtual_host(list({id(rule): rule for rule in ordered}.values()))
    return found


def _order(rule: Rule) -> tuple[object, ...]:
    return rule.order


def _virtual_host(ordered: Sequence[Rule]) -> VirtualHost:
    """`ordered` is the order in which rules of wider hosts come after those of the host itself; paths go first."""
    position = {id(rule): number for number, rule in enumerate(ordered)}
    exacts: defaultdict[str, list[Rule]] = defaultdict(list)
    prefixes: defaultdict[str, list[Rule]] = defaultdict(list)
    for rule in ordered:
        path = rule.match.path
        (exacts[path] if rule.match.exact else prefixes[path.rstrip("/") + "/"]).append(rule)

    def chain(path: str, own: list[Rule]) -> Chain:
        found = own + [rule for key in ancestors(path) for rule in prefixes.get(key, ())]
        return _cut(sorted(found, key=lambda rule: position[id(rule)]))

    return VirtualHost(
        {path: chain(path, own) for path, own in exacts.items()},
        {key: chain(key, []) for key in prefixes},
    )


def _cut(rules: Iterable[Rule]) -> Chain:
    """Nothing comes after a rule that takes everything."""
    found: list[Rule] = []
    for rule in rules:
        found.append(rule)
        if not rule.match.conditional:
            break
    return tuple(found)


def merged(parts: Iterable[Frontend]) -> Table:
    """Frontends of one port together. Where two listeners have the same host, the rules of both are tried in order."""
    found: dict[int, Frontend] = {}
    for part in parts:
        there = found.get(part.port)
        if there is None:
            found[part.port] = part
            continue
        hosts = dict(there.hosts)
        for host, virtual in part.hosts.items():
            hosts[host] = _both(hosts[host], virtual) if host in hosts else virtual
        found[part.port] = Frontend(part.port, part.tls, hosts, there.certificates + part.certificates)
    return Table(tuple(found[port] for port in sorted(found)))


def _both(one: VirtualHost, other: VirtualHost) -> VirtualHost:
    rules = {id(rule): rule for host in (one, other) for chains in (host.exacts, host.prefixes)
             for chain in chains.values() for rule in chain}  # fmt: skip
    return _virtual_host(sorted(rules.values(), key=_order))
