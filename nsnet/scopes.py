"""What a look has to see: which namespaces, and which of their values, prove what was changed. Pure."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, get_args

from nsnet import names
from nsnet.state import (
    FILTER_KINDS,
    KINDS,
    BridgePort,
    Chain,
    Change,
    File,
    Hold,
    IpSet,
    Link,
    Listener,
    Loopback,
    Netns,
    NftChain,
    NftElement,
    NftSet,
    NftTable,
    Process,
    Scope,
    State,
    Value,
)

Listening = Mapping[str, frozenset[tuple[str, int]]]
WHOLE: frozenset[tuple[str, ...]] = frozenset()  # in a Scope: the whole namespace
LISTENERS = frozenset({("listener",)})
FILTERS = (Chain, NftTable, NftSet, NftChain, NftElement, IpSet)
LOAD = 5000  # packet filter values written at once
STRUCTURE = (Netns, Loopback, *get_args(Link), BridgePort)  # what takes other values with it when it goes


def union(one: Scope, two: Scope) -> Scope:
    """Both scopes; whole namespaces win over some of their keys."""
    found = dict(one)
    for netns, keys in two.items():
        there = found.get(netns)
        found[netns] = keys if there is None else WHOLE if WHOLE in (there, keys) else there | keys
    return found


def scope_of(changes: Iterable[Change]) -> Scope:
    """What must be looked at to prove the changes: their keys, the whole namespace where links come or go."""
    whole: set[str] = set()
    keys: defaultdict[str, set[Any]] = defaultdict(set)
    for change in changes:
        keys[change.netns].add(change.value.key)
        if isinstance(change.value, STRUCTURE):
            whole.add(change.netns)
    return {netns: WHOLE if netns in whole else frozenset(found) for netns, found in keys.items()}


class Rewritten(NamedTuple):
    """Chains of one namespace by their keys, and what they were, those that were there."""

    keys: frozenset[Any]
    old: frozenset[Chain]


def rewritten_chains(scope: Scope, old: State, want: State) -> dict[str, Rewritten]:
    """The chains in a scope that differ and are short: no reading changes how they are written (or deleted).

    A long one may be edited by rule number, for which it must be known (`kernel.iptables`).
    """
    from nsnet.kernel.iptables import LONG_CHAIN

    found = {}
    for netns in scope.keys() & old.keys() & want.keys():
        before, after = (_chains(one[netns] - other[netns]) for one, other in ((old, want), (want, old)))
        long = {key for key, chain in before.items() if len(chain.rules) >= LONG_CHAIN}
        keys = frozenset((before.keys() | after.keys()) & scope[netns]) - long
        if keys:
            found[netns] = Rewritten(keys, frozenset(before[key] for key in keys & before.keys()))
    return found


def _chains(values: Iterable[Value]) -> dict[Any, Chain]:
    return {value.key: value for value in values if isinstance(value, Chain)}


def released(before: Collection[Hold], now: Collection[Hold]) -> Scope:
    """Where something is no longer held: nobody knows what became of it meanwhile."""
    return dict.fromkeys({netns for netns, _ in set(before) - set(now)}, WHOLE)


def narrowed(have: State, want: State, scope: Scope, old: State) -> State:
    """What is wanted, without what is not looked at anyway: a node with 1,000 Services has 9,000 chains.

    `scope` is where `want` differs from `old`. Only where that is chains or files: what links carry with them when they
    are made anew is more than what differs.
    """
    small = {netns for netns, keys in scope.items() if keys and all(key[0] in _ALONE for key in keys)}
    parts = {netns: want[netns] - old[netns] for netns in small if netns in have and netns in want and netns in old}
    return {**want, **parts}


_ALONE = FILTER_KINDS | {"file"}


def loaded(changes: Iterable[Change]) -> set[str]:
    """Namespaces into which so many packet filter values were written that they are not read back at once."""
    count = Counter(change.netns for change in changes if isinstance(change.value, FILTERS))
    return {netns for netns, number in count.items() if number >= LOAD}


def without_filters(scope: Scope, loads: Collection[str]) -> Scope:
    """The scope without packet filters in these namespaces."""
    found = {netns: scope[netns] or frozenset((kind,) for kind in KINDS) for netns in scope.keys() & loads}
    spared = {netns: frozenset(key for key in keys if key[0] not in FILTER_KINDS) for netns, keys in found.items()}
    return {**scope, **{netns: keys | {("netns",)} for netns, keys in spared.items()}}


def with_filters(seen: State, want: State, loads: Iterable[str]) -> State:
    """What was seen, and in these namespaces the packet filters that were written."""
    others = {netns: frozenset(value for value in want[netns] if not isinstance(value, FILTERS)) for netns in loads}
    written = {netns: want[netns] - few for netns, few in others.items()}  # no chain is hashed again
    return {netns: values | written.get(netns, frozenset()) for netns, values in seen.items()}


def with_listeners(changes: Iterable[Change], want: State, scope: Scope) -> Scope:
    """The scope, and the listeners of the namespaces whose programs changed.

    Of every pod and node, where it is the router's, or the file it reads: the pod server listens in all of them.
    """
    places = {change.netns for change in changes if _may_listen(change, want)}
    if any(names.kind_of(netns) == "fabric" for netns in places):
        places = {netns for netns in want if names.kind_of(netns) in {"pod", "node"}}
    return union(scope, dict.fromkeys(places, LISTENERS))


def _may_listen(change: Change, want: State) -> bool:
    if isinstance(change.value, Chain):  # of which there are many
        return False
    if not isinstance(change.value, File):
        return isinstance(change.value, Process)
    if names.kind_of(change.netns) != "fabric":
        return change.value.path.endswith("/haproxy.cfg")  # new ports; kubedns has the same whatever it serves
    programs = (value for value in want.get(change.netns, ()) if isinstance(value, Process))
    return any(change.value.path in program.argv for program in programs)


def heard(have: State, scope: Scope | None, before: Listening) -> Listening:
    """Who listens where: what was heard before, and what this look says of the namespaces whose listeners it read."""
    looked = have if scope is None else [netns for netns, keys in scope.items() if not keys or keys >= LISTENERS]
    found = {} if scope is None else {netns: ports for netns, ports in before.items() if netns not in looked}
    return found | {netns: _listening(have[netns]) for netns in looked if netns in have}


def _listening(values: Iterable[Value]) -> frozenset[tuple[str, int]]:
    return frozenset((value.protocol, value.port) for value in values if isinstance(value, Listener))


def merged(have: State, seen: State, scope: Scope) -> State:
    """The first look with what a second, limited to `scope` (whole namespaces or their listeners), says differently."""
    found = dict(have)
    for netns, keys in scope.items():
        if keys and netns in seen and netns in found:
            kept = frozenset(value for value in found[netns] if not isinstance(value, Listener))
            found[netns] = kept | frozenset(value for value in seen[netns] if isinstance(value, Listener))
        elif netns in seen:
            found[netns] = seen[netns]
        else:
            found.pop(netns, None)
    return found
