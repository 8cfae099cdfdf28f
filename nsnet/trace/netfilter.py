"""A hook of a namespace: the chains a packet goes through there, and what they make of it.

Conntrack as the kernel has it: the nat table sees only the first packet of a connection, once on each side; an answer
is translated back by the entry the first packet made (`Trip.reply`), whatever the rules say by now.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from heapq import merge
from ipaddress import ip_address
from operator import itemgetter
from typing import Literal, NamedTuple

from msgspec.structs import replace

from nsnet.state import Chain
from nsnet.trace import nft, ports
from nsnet.trace.rules import UNKNOWN, Facts, Rule, end_of, likelihood, number, pair, parse
from nsnet.trace.values import Hop, Packet, Trip
from nsnet.trace.view import LEGACY, LOOPBACK, View, lookup, source

Outcome = Literal["accept", "drop", "reject"]
Step = tuple[Outcome, Trip]

PRIORITIES: dict[str, dict[str, int]] = {
    "PREROUTING": {"raw": -300, "mangle": -150, "nat": -100},
    "INPUT": {"mangle": -150, "filter": 0, "nat": 100},
    "FORWARD": {"mangle": -150, "filter": 0},
    "OUTPUT": {"raw": -300, "mangle": -150, "nat": -100, "filter": 0},
    "POSTROUTING": {"mangle": -150, "nat": 100},
}
"""Where iptables' tables stand in a hook; nftables' base chains say their own priority."""

_DEEPEST = 64  # jumps in each other; the kernel refuses loops, observed text could hold one
_POLICIES: dict[str, Outcome] = {"accept": "accept", "drop": "drop"}
_TRACKING = -200  # NF_IP_PRI_CONNTRACK
FULL = "its table is full (net.netfilter.nf_conntrack_max): nothing new has room"
_ENDS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject"}


def hook(name: str, trip: Trip, here: View, recent: Collection[tuple[str, str]] = ()) -> list[Step]:
    """Every way through a hook, each with what becomes of the packet."""
    steps: list[Step] = [("accept", trip)]
    if name not in here.hooks:
        here.hooks[name] = _places(name, here)
    for _, is_nat, chain in here.hooks[name]:
        if chain is None:
            steps = [_tracked(step) for step in steps]
            continue
        steps = [after for step in steps for after in _place(name, chain, step, trip, here, recent, is_nat=is_nat)]
    return steps


def _tracked(step: Step) -> Step:
    """What a full conntrack table makes of a packet: without an entry it goes nowhere."""
    outcome, trip = step
    known = trip.reply or trip.entry or trip.error or trip.looped or trip.asks
    if outcome != "accept" or known:
        return step
    return "drop", replace(trip, hops=(*trip.hops, Hop(trip.netns, "conntrack", FULL)))


def _places(name: str, here: View) -> list[tuple[int, bool, Chain | nft.Base | None]]:
    """The chains that stand in a hook, in the order of their priorities: (priority, is it a nat chain?, chain).

    None is conntrack itself, where that lets not all pass.
    """
    found: list[tuple[int, bool, Chain | nft.Base | None]] = [
        (priority, table == "nat", chain)
        for table, priority in PRIORITIES[name].items()
        for build in ("", LEGACY)
        if (chain := here.chain(build + table, name)) is not None
    ]
    found += [(base.priority, base.kind == "nat", base) for base in here.nft.bases.get(name, ())]
    if not here.tracks and name in {"PREROUTING", "OUTPUT"}:
        found.append((_TRACKING, False, None))
    return sorted(found, key=lambda place: place[0])


def _place(
    name: str,
    chain: Chain | nft.Base,
    step: Step,
    first: Trip,
    here: View,
    recent: Collection[tuple[str, str]],
    *,
    is_nat: bool,
) -> Iterator[Step]:
    """One chain of a hook. A connection that one nat chain has translated there is shown to no other."""
    outcome, trip = step
    if outcome != "accept" or (is_nat and _is_translated(name, trip, first)):
        yield step
    elif isinstance(chain, nft.Base):
        told = nft.Facts(here.nft, here.is_local, partial(_leaving, here=here), recent)
        for ended, after in nft.through(chain.chain, trip, told):
            last = _POLICIES[chain.policy] if ended in {"on", "return"} else ended
            closed = last == "drop" and ended != "drop"
            yield last, _by_policy(after, f"{chain.chain.table} {chain.chain.name}") if closed else after  # type: ignore[misc]
    else:
        for end, after in _chain(chain, trip, here, Facts(here.is_local, recent, here.sets), 0):
            closed = end is None and chain.policy == "DROP"
            yield (
                end or ("drop" if closed else "accept"),
                _by_policy(after, f"{chain.table} {name}") if closed else after,
            )


def _is_translated(hook: str, trip: Trip, first: Trip) -> bool:
    """Or never shown to nat at all."""
    return bool(
        trip.reply
        or trip.entry
        or trip.error
        or trip.invalid
        or trip.asks
        or (trip.looped and hook in {"PREROUTING", "INPUT"})
        or trip.packet != first.packet
    )


def _by_policy(trip: Trip, chain: str) -> Trip:
    """The step in which no rule decides."""
    return replace(trip, hops=(*trip.hops, Hop(trip.netns, chain, "policy DROP")))


def _chain(chain: Chain, trip: Trip, here: View, facts: Facts, depth: int) -> Iterator[tuple[Outcome | None, Trip]]:
    """Every way through a chain; None: the packet came to its end, or returned."""
    passing = [trip]
    ends = number(trip.packet.src), number(trip.packet.dst)  # what goes on to the next rule has them still
    for rule in _candidates(chain.rules, trip.packet.dst):
        still: list[Trip] = []
        for one in passing:
            chance = likelihood(rule, one, facts, *ends)
            if chance < 1.0:
                still.append(one if chance in (0.0, UNKNOWN) else _weighed(one, 1.0 - chance))
            if chance != 0.0:
                taken = one if chance in (1.0, UNKNOWN) else _weighed(one, chance)
                for end, after in _taken(chain, rule, taken, here, facts, depth):
                    if end == "on":
                        still.append(after)
                    else:
                        yield (None if end == "return" else end), after
        passing = still
        if not passing:
            return
    for one in passing:
        yield None, one


class _Index(NamedTuple):
    """A chain's rules by place: those for one address alone, still as text, and all others."""

    by_address: Mapping[str, tuple[tuple[int, str], ...]]
    others: tuple[tuple[int, Rule], ...]
    plain: tuple[Rule, ...]  # the others, without places


_FOR_ONE = re.compile(r"(?:-s \S+ )?-d ([0-9a-f.:]+)/(?:32|128)(?: |$)")


@lru_cache(maxsize=1 << 14)
def _index(rules: tuple[str, ...]) -> _Index:
    by_address: dict[str, list[tuple[int, str]]] = {}
    others = []
    for place, text in enumerate(rules):
        to = _FOR_ONE.match(text)
        if to:
            by_address.setdefault(to[1], []).append((place, text))
        else:
            others.append((place, parse(text)))
    found = {address: tuple(mine) for address, mine in by_address.items()}
    return _Index(found, tuple(others), tuple(rule for _, rule in others))


@lru_cache(maxsize=1 << 12)
def _spelled(address: str) -> str:
    return str(ip_address(address))


@lru_cache(maxsize=1 << 13)
def _candidates(rules: tuple[str, ...], dst: str) -> Sequence[Rule]:
    """In order, without those for another address: of KUBE-SERVICES' thousand rules one packet concerns a few."""
    index = _index(rules)
    mine = index.by_address.get(_spelled(dst), ()) if index.by_address else ()
    if not mine:
        return index.plain
    parsed = [(place, parse(text)) for place, text in mine]
    return [rule for _, rule in merge(parsed, index.others, key=itemgetter(0))]


def _weighed(trip: Trip, chance: float) -> Trip:
    return replace(trip, chance=trip.chance * chance)


def _taken(
    chain: Chain, rule: Rule, trip: Trip, here: View, facts: Facts, depth: int
) -> Iterator[tuple[Outcome | Literal["on", "return"], Trip]]:
    """What a rule does to a packet it matches; `on`: the next rule is asked."""
    hop = Hop(trip.netns, f"{chain.table} {chain.name}", rule.text)
    after = replace(trip, hops=(*trip.hops, hop))
    if rule.target in _ENDS:
        yield _ENDS[rule.target], after  # type: ignore[misc]
    elif rule.target == "RETURN":
        yield "return", after
    elif depth < _DEEPEST and (to := here.chain(chain.table, rule.target)) is not None:
        for end, back in _chain(to, after, here, facts, depth + 1):
            yield end or ("return" if rule.goto else "on"), back
    elif rule.target in _TRANSLATIONS:
        yield "accept", _TRANSLATIONS[rule.target](rule, after, here)
    elif rule.target == "MARK":
        yield "on", _marked(rule, after)
    else:
        yield "on", trip  # LOG, a rule without target and the like: nothing happens to the packet


def _marked(rule: Rule, trip: Trip) -> Trip:
    """`--set-xmark value/mask`: the mask's bits are cleared, then value is xored in."""
    value, mask = pair(rule.argument("--set-xmark"))
    return replace(trip, mark=(trip.mark & ~mask) ^ value)


def _to_destination(rule: Rule, trip: Trip, _: View) -> Trip:
    address, port = end_of(rule.argument("--to-destination"))
    packet = replace(trip.packet, dst=address or trip.packet.dst, dport=port or trip.packet.dport)
    return replace(trip, packet=packet, translated=True)


def _redirected(rule: Rule, trip: Trip, here: View) -> Trip:
    """To this namespace itself: to the address of the device the packet came in by, or to loopback."""
    own = here.addresses.get(trip.dev_in, [LOOPBACK[here.family]])[0].partition("/")[0]
    port = rule.argument("--to-ports").partition("-")[0]
    packet = replace(trip.packet, dst=own, dport=int(port) if port else trip.packet.dport)
    return replace(trip, packet=packet, translated=True)


def _to_source(rule: Rule, trip: Trip, _: View) -> Trip:
    said = rule.argument("--to-source")
    address, port = end_of(said)
    return ports.given(replace(trip, packet=replace(trip.packet, src=address)), said.rpartition(":")[2] if port else "")


def _masqueraded(rule: Rule, trip: Trip, here: View) -> Trip:
    return _leaving(trip, "--random-fully" in rule.arguments, rule.argument("--to-ports"), here)


def _leaving(trip: Trip, any_port: bool, some: str, here: View) -> Trip:
    """The address of the device it leaves by, as for a packet of the namespace's own to the same next hop.

    `some`: the range of ports it is given one of.
    """
    route = lookup(here, trip.packet.dst)
    nexthop = (route.via if route else "") or trip.packet.dst
    plain = replace(route, src="") if route and route.proto != "kernel" else route
    own = source(here, plain, trip.dev_out, nexthop) if plain else ""
    packet = replace(trip.packet, src=own or trip.packet.src, sport=0 if any_port else trip.packet.sport)
    return ports.given(replace(trip, packet=packet), some)


_TRANSLATIONS = {
    "DNAT": _to_destination,
    "REDIRECT": _redirected,
    "SNAT": _to_source,
    "MASQUERADE": _masqueraded,
}


# --- answers ----------------------------------------------------------------------------------------------------------


def is_answer(packet: Packet, left: Packet) -> bool:
    """Is this packet an answer to the one that left like that? A port 0 stands for any."""
    ends = ((packet.src, left.dst), (packet.dst, left.src))
    ports = ((packet.sport, left.dport), (packet.dport, left.sport))
    same = packet.protocol == left.protocol and all(a == b for a, b in ends)
    return same and all(a == b or not a or not b for a, b in ports)


def back_to(trip: Trip) -> Trip:
    """On the way in, the answer's destination becomes who asked."""
    if trip.reply is None or trip.invalid:
        return trip
    came = trip.reply.came
    return replace(trip, packet=replace(trip.packet, dst=came.src, dport=came.sport))


def back_from(trip: Trip) -> Trip:
    """On the way out, the answer's source becomes what was asked."""
    if trip.reply is None or trip.invalid:
        return trip
    came = trip.reply.came
    return replace(trip, packet=replace(trip.packet, src=came.dst, sport=came.dport))
