"""(have, want) → changes, in an order that is right to apply: pure, and the only place that knows that order.

Adds come before deletes, kind by kind: namespaces, sysctls, links (bridges, veths from the end that is a bridge port,
then tunnels), ports, offloads, addresses, neighbours, FDB, routes, files, processes, WireGuard's key and peers, ipsets,
chains (those that are jumped to first). Sysctls without an interface in their name stand before the links because a
link copies `conf.default` when it is made. What must go first goes first: processes (they hold sockets), links that
have to be made anew, and addresses (below). A namespace that is not wanted any more is one delete, after its processes
and files; its links go with it.

What the kernel drops by itself is written again, even where `have` still shows it (each tried on a real kernel):

    the link is made anew          addresses, routes, neighbours, FDB entries, its place on a bridge, its ports, its
                                   sysctls, offloads, WireGuard key and peers; the other end of a veth pair and a VXLAN
                                   device that it carries are made anew with it
    the link is changed in place   its neighbours, permanent ones too: with every writing of its MAC, even of the same
    the link comes up from down    its neighbours and routes
    an address goes                with the last one the device's routes and neighbours; with a primary one the
                                   secondary ones of its subnet. So deletes come first, then the device's addresses,
                                   routes and neighbours again

A link is changed in place (verb `replace`) where only mac, mtu or up differ; any other difference is a `delete`, early,
and an `add`: never one change, because a veth pair would then be deleted twice and made once. Writing again what is
there must succeed (`ip route replace`), and so must deleting what is gone.
"""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, get_args

import msgspec

from nsnet.state import (
    Address,
    Bridge,
    BridgePort,
    Chain,
    Change,
    Conntrack,
    ConntrackTable,
    FdbEntry,
    File,
    Hold,
    Ipip,
    IpSet,
    Key,
    LegacyChain,
    Link,
    Listener,
    Loopback,
    Neighbour,
    Netns,
    NftChain,
    NftElement,
    NftSet,
    NftTable,
    Offload,
    OtherLink,
    Process,
    Qdisc,
    Route,
    Scope,
    Segments,
    State,
    Sysctl,
    Tun,
    Value,
    Verb,
    Veth,
    Vxlan,
    Wireguard,
    WireguardKey,
    WireguardPeer,
    begins,
    in_place,
)

Device = tuple[str, str]  # namespace, device

_SHAPED = Bridge | Veth | Vxlan | Ipip | Tun | Wireguard  # links whose shape is known

_HANGING = (
    BridgePort, Qdisc, Segments, Address, Route, Neighbour, FdbEntry, Sysctl, Offload, WireguardKey, WireguardPeer,
)  # fmt: skip
_NOTHING: frozenset[Value] = frozenset()


class _Delta(msgspec.Struct):
    """How one namespace differs. A key in both is a value that has changed."""

    new: dict[Key, Value]
    old: dict[Key, Value]


def diff(
    have: State, want: State, *, only: Scope | None = None, holds: Collection[Hold] = (), sort_up_to: float = math.inf
) -> list[Change]:
    """The changes that lead from `have` to `want`, in the order to apply them; empty when there is nothing to do.

    `only` limits the answer to these keys (a key of one word: to values of that kind). Whatever it says, a namespace
    that does not exist is made whole, and what the kernel drops with a change is written again. `holds` are skipped; a
    hold on a link covers what hangs on it and the other end of its pair. What is only ever observed (Listener) or
    cannot go away (Sysctl) is never deleted. More changes than `sort_up_to` come in no order: `kernel.apply` needs
    none, and sorting 30,000 takes a third of a second.
    """
    held = _Held(have, want, holds)
    steps: list[Change] = []
    deltas: dict[str, _Delta] = {}
    for netns in have.keys() | want.keys() if only is None else only.keys() & (have.keys() | want.keys()):
        if netns in want:
            deltas[netns] = _delta(netns, have, want, only, held)
        else:
            steps += _gone(netns, have[netns], held)
    rebuilt = _rebuilt(deltas, want, held)
    for netns in deltas.keys() | rebuilt.keys():
        delta = deltas.get(netns) or _Delta({}, {})
        steps += _steps(netns, delta, rebuilt.get(netns, set()), have.get(netns, _NOTHING), want[netns], held)
    return _ordered(steps) if len(steps) <= sort_up_to else steps


def touched(old: State, new: State) -> Scope:
    """The keys in which two wanted states differ: what a look must read after a change of the objects.

    A namespace that only one of them has is in it whole (an empty set of keys); one that is equal is not in it.
    """
    scope: dict[str, frozenset[Key]] = {}
    for netns in old.keys() | new.keys():
        before, after = old.get(netns), new.get(netns)
        if before is None or after is None:
            scope[netns] = frozenset()
        elif before is not after and before != after:
            scope[netns] = frozenset(value.key for value in before ^ after)
    return scope


# --- what differs -----------------------------------------------------------------------------------------------------


def _delta(netns: str, have: State, want: State, only: Scope | None, held: "_Held") -> _Delta:
    there, wanted = have.get(netns, _NOTHING), want[netns]
    new = {value.key: value for value in wanted - there}
    old: dict[Key, Value] = {value.key: value for value in there - wanted if not _is_only_seen(value)}
    keys = only[netns] if only is not None and netns in have else frozenset()
    if keys:
        new = {key: value for key, value in new.items() if key in keys or key[:1] in keys}
        old = {key: value for key, value in old.items() if key in keys or key[:1] in keys}
    return _Delta(held.without(netns, new), held.without(netns, old))


def _is_only_seen(value: Value) -> bool:
    return isinstance(value, Listener) or (isinstance(value, ConntrackTable) and not value.filled)


def _gone(netns: str, values: frozenset[Value], held: "_Held") -> Iterator[Change]:
    """The end of a namespace: processes, files and then the namespace itself; all else goes with it."""
    for value in values:
        if isinstance(value, Netns | Process | File) and not held.covers(netns, value):
            yield Change("delete", netns, value)


class _Held:
    """The holds, with what follows from them: both ends of a held pair, and what hangs on a held link."""

    def __init__(self, have: State, want: State, holds: Collection[Hold]) -> None:
        self._prefixes: defaultdict[str, list[Key]] = defaultdict(list)
        for netns, prefix in holds:
            self._prefixes[netns].append(prefix)
        self._devices: set[Device] = set()
        for netns in self._prefixes:
            for value in have.get(netns, _NOTHING) | want.get(netns, _NOTHING):
                if isinstance(value, Link) and self._said(netns, value.key):
                    self._devices |= {(netns, value.name), *_peer(value)}

    def _said(self, netns: str, key: Key) -> bool:
        return any(begins(key, prefix) for prefix in self._prefixes.get(netns, ()))

    def covers(self, netns: str, value: Value) -> bool:
        if not self._prefixes:
            return False
        devices = (value.name,) if isinstance(value, Link) else hangs_on(value)
        return self._said(netns, value.key) or any((netns, device) in self._devices for device in devices)

    def without(self, netns: str, values: dict[Key, Value]) -> dict[Key, Value]:
        if not self._prefixes:
            return values
        return {key: value for key, value in values.items() if not self.covers(netns, value)}


# --- links that are made anew, and what the kernel drops --------------------------------------------------------------


def hangs_on(value: Value) -> tuple[str, ...]:
    """The devices without which the value cannot be: a port needs its link and its bridge."""
    match value:
        case BridgePort(name, bridge):
            return (name, bridge)
        case Address(dev) | Neighbour(dev) | FdbEntry(dev) | Qdisc(dev) | Segments(dev):
            return (dev,)
        case Offload(dev) | WireguardKey(dev) | WireguardPeer(dev):
            return (dev,)
        case Route(dev=dev, nexthops=nexthops):
            return (dev, *(hop for _, hop in nexthops)) if dev else tuple(hop for _, hop in nexthops)
        case Sysctl(name) if _of_interface(name):
            return (name.split(".")[3].replace("/", "."),)
    return ()


def _peer(value: Value) -> Iterator[Device]:
    if isinstance(value, Veth):
        netns, _, dev = value.peer.rpartition("/")
        if not netns:  # a bridge of the machine's own: nobody's here
            return
        yield netns, dev


def _rebuilt(deltas: Mapping[str, _Delta], want: State, held: _Held) -> dict[str, set[str]]:
    """The links that are made, for the first time or anew, by namespace: its peer and what it carries go along."""
    known: dict[str, _Links] = {}
    found = {
        (netns, value.name)
        for netns, delta in deltas.items()
        for key, value in delta.new.items()
        if key[0] == "link"
        and isinstance(value, Link)
        and (key not in delta.old or not in_place(delta.old[key], value))
    }
    todo = list(found)
    while todo:
        device = todo.pop()
        for netns, name in _bound(device, want, known):
            link = _links(netns, want, known).named.get(name)
            if link is not None and (netns, name) not in found and not held.covers(netns, link):
                found.add((netns, name))
                todo.append((netns, name))
    by_netns: defaultdict[str, set[str]] = defaultdict(set)
    for netns, name in found:
        by_netns[netns].add(name)
    return by_netns


class _Links(NamedTuple):
    """The wanted links of a namespace."""

    named: dict[str, Value]
    tunnels: list[Vxlan]


def _links(netns: str, want: State, known: dict[str, _Links]) -> _Links:
    if netns not in known:
        named: dict[str, Value] = {value.name: value for value in want.get(netns, ()) if isinstance(value, Link)}
        known[netns] = _Links(named, [value for value in named.values() if isinstance(value, Vxlan)])
    return known[netns]


def _bound(device: Device, want: State, known: dict[str, _Links]) -> Iterator[Device]:
    """What cannot outlive the device: its peer, and the VXLAN devices whose packets it carries."""
    netns, name = device
    links = _links(netns, want, known)
    if name in links.named:
        yield from _peer(links.named[name])
    yield from ((netns, tunnel.name) for tunnel in links.tunnels if tunnel.dev == name)


def _dropped(delta: _Delta, rebuilt: set[str]) -> dict[str, tuple[type, ...]]:
    """Device → the kinds of values on it that the kernel drops in the course of these changes."""
    dropped: dict[str, tuple[type, ...]] = {}
    for key, value in delta.old.items():
        if isinstance(value, Address) and key not in delta.new:
            dropped[value.dev] = (Address, Route, Neighbour)
        elif isinstance(value, _SHAPED) and key in delta.new and value.name not in rebuilt:
            new = delta.new[key]
            assert isinstance(new, _SHAPED)
            kinds = (Neighbour,) if value.up == new.up else (Route, Neighbour)
            dropped[value.name] = (*dropped.get(value.name, ()), *kinds)
    return dropped | dict.fromkeys(rebuilt, _HANGING)


# --- changes ----------------------------------------------------------------------------------------------------------


def _steps(
    netns: str,
    delta: _Delta,
    rebuilt: set[str],
    there: frozenset[Value],
    wanted: frozenset[Value],
    held: _Held,
) -> Iterator[Change]:
    dropped = _dropped(delta, rebuilt)
    new = dict(delta.new)
    if dropped and len(new) < len(wanted):
        for value in wanted:
            if _falls(value, dropped, rebuilt) and not held.covers(netns, value):
                new.setdefault(value.key, value)
    for key, value in new.items():
        if rebuilt or key in delta.old:
            yield from _written(netns, value, delta.old.get(key), rebuilt, there)
        else:
            yield Change("add", netns, value)
    leaving = {value.name for key, value in delta.old.items() if isinstance(value, Link) and key not in new}
    for key, value in delta.old.items():
        stays = key in new or isinstance(value, Sysctl | Netns | Loopback)
        if not stays and not _goes_with(value, leaving | rebuilt):
            yield Change("delete", netns, value)


def _falls(value: Value, dropped: Mapping[str, tuple[type, ...]], rebuilt: set[str]) -> bool:
    """Is it a value that the kernel drops, or one of the links that are made anew?"""
    if isinstance(value, Link):
        return value.name in rebuilt
    return any(isinstance(value, dropped[device]) for device in hangs_on(value) if device in dropped)


def _written(
    netns: str, value: Value, old: Value | None, rebuilt: set[str], there: frozenset[Value]
) -> Iterator[Change]:
    if isinstance(value, Link) and value.name in rebuilt:
        standing = old or (value if value in there else None)
        if standing is not None:
            yield Change("delete", netns, standing)
        yield Change("add", netns, value)
    elif old is None or not rebuilt.isdisjoint(hangs_on(old)):
        yield Change("add", netns, value)
    else:
        yield Change("replace", netns, value, old)


def _goes_with(value: Value, devices: set[str]) -> bool:
    """Does the kernel remove it with these devices? A route with several next hops only when all of them go."""
    on = hangs_on(value)
    if isinstance(value, BridgePort):
        return not devices.isdisjoint(on)
    return bool(on) and devices.issuperset(on)


# --- order ------------------------------------------------------------------------------------------------------------

_FIRST: Mapping[type, int] = {Process: 0, **dict.fromkeys(get_args(Link), 3), Address: 9}  # deletes
_TUNNELS = (OtherLink, Vxlan, Ipip, Tun, Wireguard)
_WRITE: Mapping[type, int] = {
    Netns: 1, Sysctl: 2, Loopback: 4, Bridge: 4, Veth: 5, **dict.fromkeys(_TUNNELS, 7), BridgePort: 8, Offload: 8,
    Segments: 9, Qdisc: 9, Address: 10, Neighbour: 11, FdbEntry: 12, Route: 13, File: 15, Process: 16,
    WireguardKey: 16, WireguardPeer: 16, IpSet: 16, Chain: 17,
    LegacyChain: 17, NftTable: 18, NftSet: 19, NftChain: 20, NftElement: 21, ConntrackTable: 21,
}  # fmt: skip
_LAST: Mapping[type, int] = {
    NftElement: 22, NftChain: 23, NftSet: 24, NftTable: 25, Chain: 26, LegacyChain: 26, Conntrack: 26, IpSet: 27,
    ConntrackTable: 27, Route: 27, FdbEntry: 28, WireguardPeer: 28, WireguardKey: 28, Qdisc: 28, Segments: 28,
    Neighbour: 29, Address: 30, BridgePort: 31, Offload: 31, File: 32, Netns: 33, **dict.fromkeys(_TUNNELS, 34),
    Veth: 35, Bridge: 36,
}  # fmt: skip


def _ordered(steps: list[Change]) -> list[Change]:
    written = {(step.netns, step.value.key) for step in steps if step.verb != "delete"}
    depth = _depths(steps)

    def place(step: Change) -> tuple[int, str, int, Key]:
        key = step.value.key
        rank = _rank(step.verb, step.value, step.netns, written)
        level = depth.get((step.netns, key), 0) if isinstance(step.value, Chain | NftChain) else 0
        return rank, step.netns, -level if step.verb == "delete" else level, key

    return sorted(steps, key=place)


def _rank(verb: Verb, value: Value, netns: str, written: set[tuple[str, Key]]) -> int:
    kind = type(value)
    if verb == "delete":
        early = isinstance(value, Process | Address) or (netns, value.key) in written
        return _FIRST[kind] if early else _LAST[kind]
    if isinstance(value, Veth):
        return 5 if (netns, ("port", value.name)) in written else 6
    if isinstance(value, Sysctl) and _of_interface(value.name):
        return 14
    return _WRITE[kind]


def _of_interface(sysctl: str) -> bool:
    """`net.ipv4.conf.eth0.rp_filter` belongs to a link; `all` and `default` do not."""
    parts = sysctl.split(".")
    return len(parts) > 3 and parts[2] in {"conf", "neigh"} and parts[3] not in {"all", "default"}


def _depths(steps: Iterable[Change]) -> dict[tuple[str, Key], int]:
    """How many jumps lead on from each chain among these changes: none is 0, and those are written first."""
    chains = {(step.netns, step.value.key): step.value for step in steps if isinstance(step.value, Chain | NftChain)}
    known: dict[tuple[str, Key], int] = {}

    def depth(at: tuple[str, Key]) -> int:
        if at not in known:
            known[at] = 0  # the kernel refuses a loop; this ends one all the same
            netns, key = at
            nexts = ((netns, (*key[:-1], target)) for target in targets(chains[at]))
            known[at] = max((depth(item) + 1 for item in nexts if item in chains), default=0)
        return known[at]

    for at in chains:
        depth(at)
    return known


_LEADS = re.compile(r"\b(?:jump|goto) ([^\s,}]+)")


def targets(chain: Chain | NftChain) -> set[str]:
    """What the chain's rules jump or go to: chains, and targets such as ACCEPT."""
    if isinstance(chain, NftChain):
        return {name for rule in chain.rules for name in _LEADS.findall(rule)}
    words = (rule.rpartition("-j " if "-j " in rule else "-g ")[2] for rule in chain.rules)
    return {word.partition(" ")[0] for word in words}
