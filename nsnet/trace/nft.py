"""nftables chains, as `state.NftChain` spells them: what a packet meets in a table of rules, sets and maps.

A rule is a list of statements; the first that does not match ends it. One that this file does not know cannot be told
from state: a packet goes on as if the rule did not match. `numgen random` chooses: every way is followed, each with its
share. Affinity sets are filled by packets, so who has been seen before is told by `recent`, as for `xt_recent` lists.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Literal

import msgspec
from msgspec.structs import replace

from nsnet.state import NftChain, NftElement, NftSet, Value
from nsnet.trace.rules import end_of
from nsnet.trace.values import Hop, Packet, Trip

Place = tuple[str, str]  # table, chain or set
End = Literal["accept", "drop", "reject", "return", "on"]

_HOOK = re.compile(r"type (\w+) hook (\w+) priority (-?\d+); policy (\w+);")
_DEEPEST = 64
SMALL = 60  # bytes of a packet that is no large one: a SYN


class Base(msgspec.Struct, frozen=True):
    """A base chain: where it stands, and what becomes of a packet that comes to its end."""

    priority: int
    kind: str  # filter, nat or route
    policy: str
    chain: NftChain


class Tables(msgspec.Struct, frozen=True, eq=False):
    """The nftables values of a namespace, of one family, indexed."""

    bases: Mapping[str, tuple[Base, ...]]  # by hook, in the order of their priorities
    chains: Mapping[Place, NftChain]
    elements: Mapping[Place, Mapping[str, str]]  # of a set or map: key → data
    intervals: Collection[Place] = ()  # sets whose elements are ranges


def tables(values: Collection[Value]) -> Tables:
    """`values` are of one family."""
    chains = {(one.table, one.name): one for one in values if isinstance(one, NftChain)}
    sets = [one for one in values if isinstance(one, NftSet)]
    elements: dict[Place, dict[str, str]] = {(one.table, one.name): {} for one in sets}
    for value in values:
        if isinstance(value, NftElement):
            elements.setdefault((value.table, value.set), {})[value.element] = value.data
    intervals = frozenset((one.table, one.name) for one in sets if "interval" in one.flags)
    return Tables(_bases(chains), chains, elements, intervals)


def _bases(chains: Mapping[Place, NftChain]) -> dict[str, tuple[Base, ...]]:
    found: dict[str, list[Base]] = {}
    for chain in chains.values():
        said = _HOOK.fullmatch(chain.hook)
        if said:
            kind, hook, priority, policy = said.groups()
            found.setdefault(hook.upper(), []).append(Base(int(priority), kind, policy, chain))
    return {hook: tuple(sorted(every, key=lambda one: (one.priority, one.chain.name))) for hook, every in found.items()}


# --- a rule's words ---------------------------------------------------------------------------------------------------

_WORD = re.compile(r'"[^"]*"|[{},]|[^\s{},]+')
_FIELDS = {
    "ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr", "meta l4proto", "th sport", "th dport", "iifname", "oifname",
    "meta mark", "ct state", "ct status", "fib saddr", "fib daddr", "ip length", "ip6 length",
}  # fmt: skip
_VERDICTS = {"accept", "drop", "reject", "return", "jump", "goto", "continue"}


class Statement(msgspec.Struct, frozen=True):
    """`what` is match, choice, vmap, mark, stray, verdict, dnat, masquerade, update, or unknown.

    `fields` are looked at, `values` are what they are compared with: words, or one `@set`; `pairs` a map written out.
    """

    what: str
    fields: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    negated: bool = False
    pairs: tuple[tuple[str, str], ...] = ()


@lru_cache(maxsize=1 << 16)
def parse(rule: str) -> tuple[Statement, ...]:
    """The statements of a rule, its comment left out."""
    return tuple(_statements(_Words(_WORD.findall(rule))))


class _Words:
    """Words, taken one by one."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.at = 0

    def peek(self, ahead: int = 0) -> str:
        return self.words[self.at + ahead] if self.at + ahead < len(self.words) else ""

    def take(self) -> str:
        word = self.peek()
        self.at += 1
        return word

    def skip(self, *words: str) -> bool:
        """Goes over these words if they come next."""
        if tuple(self.words[self.at : self.at + len(words)]) != words:
            return False
        self.at += len(words)
        return True

    def field(self) -> str:
        """One field (`ip daddr`), if one comes next."""
        for count in (1, 2):
            words = " ".join(self.words[self.at : self.at + count])
            if words in _FIELDS:
                self.at += count
                return words
        return ""

    def braced(self) -> list[str]:
        """What stands between braces, parted at the commas."""
        parts: list[list[str]] = [[]]
        self.take()
        while self.peek() not in ("}", ""):
            word = self.take()
            parts.append([]) if word == "," else parts[-1].append(word)
        self.take()
        return [" ".join(part) for part in parts if part]


def _statements(words: _Words) -> Iterator[Statement]:
    while words.peek():
        if words.skip("comment"):
            words.take()
        elif words.skip("counter"):
            continue
        elif words.peek() in _VERDICTS:
            verdict = words.take()
            yield Statement("verdict", values=(verdict, words.take() if verdict in {"jump", "goto"} else ""))
        elif words.skip("masquerade"):
            ports = words.take().lstrip(":") if words.skip("to") else ""
            yield Statement("masquerade", values=(ports, "fully-random" if words.skip("fully-random") else ""))
        elif words.skip("meta", "mark", "set", "meta", "mark"):
            yield Statement("mark", values=(words.take(), words.take()))
        elif words.skip("meta", "mark", "set"):
            yield Statement("mark", values=("=", words.take()))
        elif words.skip("dnat"):
            yield _dnat(words)
        elif words.skip("update"):
            words.take()
            words.braced()
            yield Statement("update")
        elif words.skip("numgen", "random", "mod"):
            words.take()
            yield Statement("vmap", ("numgen",), pairs=_pairs(words))
        elif words.skip("numgen", "inc", "mod"):
            yield Statement("choice", values=(words.take(), words.take()))
        elif words.skip("tcp", "sequence", "set"):
            yield Statement("stray", values=tuple(words.take() for _ in ("tcp", "sequence", "^", "bits")))
        else:
            yield _match(words)


def _dnat(words: _Words) -> Statement:
    """`dnat to ip:port` (`[ip]:port`), or `dnat ip addr . port to numgen random mod n map { … }`."""
    while words.peek() and not words.skip("to"):
        words.take()
    if not words.skip("numgen", "random", "mod"):
        return Statement("dnat", pairs=(("0", words.take()),))
    words.take()
    return Statement("dnat", ("numgen",), pairs=tuple((key, _joined(target)) for key, target in _pairs(words)))


def _joined(target: str) -> str:
    address, _, port = target.partition(" . ")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _pairs(words: _Words) -> tuple[tuple[str, str], ...]:
    words.take()  # map or vmap
    parts = (part.partition(" : ") for part in words.braced())
    return tuple((key, data) for key, _, data in parts)


def _match(words: _Words) -> Statement:
    fields = []
    while field := words.field():
        fields.append(field)
        if not words.skip("."):
            break
    if not fields:
        return Statement("unknown", values=(words.take(),))
    if words.skip("vmap"):
        return Statement("vmap", tuple(fields), values=(words.take(),))
    if fields[0].startswith("fib"):
        words.skip("type")
    mask = words.take() if words.skip("&") else ""
    negated = words.skip("!=")
    words.skip("==")
    values = tuple(words.braced()) if words.peek() == "{" else (words.take(),)
    return Statement("match", (*fields, mask) if mask else tuple(fields), values, negated)


# --- a packet goes through --------------------------------------------------------------------------------------------


class Facts(msgspec.Struct, frozen=True):
    """What rules ask of the namespace: its tables, its own addresses, who was seen before, whose source it gives."""

    here: Tables
    is_local: Callable[[str], bool]
    masquerade: Callable[[Trip, bool, str], Trip]  # the source it leaves by; True: and any port; or of which range
    recent: Collection[Place] = ()  # (affinity set, source address)


Step = tuple[End, Trip]


def through(chain: NftChain, trip: Trip, facts: Facts, depth: int = 0) -> Iterator[Step]:
    """Every way through a chain; `on`: the packet came to its end, or returned."""
    passing = [trip]
    for rule in chain.rules:
        still = []
        for one in passing:
            for end, after in _rule(chain, rule, one, facts, depth):
                if end == "on":
                    still.append(after)
                else:
                    yield ("on" if end == "return" else end), after
        passing = still
    for one in passing:
        yield "on", one


def _rule(chain: NftChain, rule: str, trip: Trip, facts: Facts, depth: int) -> Iterator[Step]:
    """Its statements in turn. A rule that marks or translates is a hop, and so is one that decides."""
    hop = Hop(trip.netns, f"{chain.table} {chain.name}", rule)
    changed = trip
    for statement in parse(rule):
        match statement.what:
            case "match":
                if not _matches(chain.table, statement, changed, facts):
                    break
            case "verdict":
                yield from _verdict(chain, " ".join(statement.values).strip(), _hopped(changed, hop), facts, depth)
                return
            case "vmap":
                yield from _vmap(chain, statement, changed, hop, facts, depth)
                return
            case "dnat":
                yield from _translated(statement, _hopped(changed, hop))
                return
            case "masquerade":
                ports, how = statement.values
                yield "accept", facts.masquerade(_hopped(changed, hop), how == "fully-random", ports)
                return
            case "mark":
                changed = _hopped(_marked(statement, changed), hop)
            case "choice":
                share = 1 / int(statement.values[0])
                yield "on", replace(changed, chance=changed.chance * (1 - share))
                changed = replace(changed, chance=changed.chance * share)
            case "stray":
                changed = replace(_hopped(changed, hop), stray=True)
            case "unknown":
                break
    yield "on", changed


def _hopped(trip: Trip, hop: Hop) -> Trip:
    return trip if trip.hops[-1:] == (hop,) else replace(trip, hops=(*trip.hops, hop))


def _verdict(chain: NftChain, words: str, trip: Trip, facts: Facts, depth: int) -> Iterator[Step]:
    verdict, _, target = words.partition(" ")
    if verdict in {"jump", "goto"}:
        there = facts.here.chains.get((chain.table, target))
        if there is None or depth >= _DEEPEST:
            yield "on", trip
            return
        for end, after in through(there, trip, facts, depth + 1):
            yield ("return" if end == "on" and verdict == "goto" else end), after
    else:
        yield ("on" if verdict == "continue" else verdict), trip  # type: ignore[misc]


def _vmap(chain: NftChain, statement: Statement, trip: Trip, hop: Hop, facts: Facts, depth: int) -> Iterator[Step]:
    if statement.fields == ("numgen",):
        for _, words in statement.pairs:
            share = replace(trip, chance=trip.chance / len(statement.pairs))
            yield from _verdict(chain, words, _hopped(share, hop), facts, depth)
        return
    key = " . ".join(_field(field, trip, facts) for field in statement.fields)
    found = facts.here.elements.get((chain.table, statement.values[0].lstrip("@")), {}).get(key)
    if found is None:
        yield "on", trip
        return
    chosen = replace(hop, rule=f"{hop.rule} {{ {key} : {found} }}")
    yield from _verdict(chain, found, _hopped(trip, chosen), facts, depth)


def _translated(statement: Statement, trip: Trip) -> Iterator[Step]:
    for _, target in statement.pairs:
        address, port = end_of(target)
        packet = replace(trip.packet, dst=address, dport=port or trip.packet.dport)
        yield "accept", replace(trip, packet=packet, translated=True, chance=trip.chance / len(statement.pairs))


def _marked(statement: Statement, trip: Trip) -> Trip:
    sign, bits = statement.values[0], int(statement.values[1], 0)
    marks = {"|": trip.mark | bits, "&": trip.mark & bits, "=": bits}
    return replace(trip, mark=marks.get(sign, trip.mark ^ bits))


# --- does it match? ---------------------------------------------------------------------------------------------------


def _matches(table: str, statement: Statement, trip: Trip, facts: Facts) -> bool:
    return _is_among(table, statement, trip, facts) is not statement.negated


def _is_among(table: str, statement: Statement, trip: Trip, facts: Facts) -> bool:
    first = statement.fields[0]
    if first == "meta mark":
        mask = int(statement.fields[1], 0) if statement.fields[1:] else 0xFFFFFFFF
        return any(_is_between(trip.mark & mask, value) for value in statement.values)
    if first.startswith("ct "):
        return any(bit in _conntrack(first, trip) for bit in statement.values[0].split(","))
    key = " . ".join(_field(field, trip, facts) for field in statement.fields)
    if statement.values[0].startswith("@"):
        name = statement.values[0][1:]
        elements = facts.here.elements.get((table, name), {})
        if (table, name) in facts.here.intervals:
            return any(_equals(key, element) for element in elements)
        return key in elements or (name, trip.packet.src) in facts.recent
    return any(_equals(key, value) for value in statement.values)


def _conntrack(field: str, trip: Trip) -> set[str]:
    if field == "ct state":
        return {trip.state.lower()}
    return {"dnat"} if trip.translated else set()


def _field(field: str, trip: Trip, facts: Facts) -> str:
    packet: Packet = trip.packet
    match field:
        case "ip saddr" | "ip6 saddr":
            return packet.src
        case "ip daddr" | "ip6 daddr":
            return packet.dst
        case "meta l4proto":
            return packet.protocol
        case "ip length" | "ip6 length":
            return str(trip.size or SMALL)
        case "th sport":
            return str(packet.sport)
        case "th dport":
            return str(packet.dport)
        case "iifname":
            return trip.dev_in
        case "oifname":
            return trip.dev_out
        case "fib saddr":
            return "local" if facts.is_local(packet.src) else "unicast"
    return "local" if facts.is_local(packet.dst) else "unicast"  # fib daddr


def _equals(key: str, value: str) -> bool:
    """Plain words, a prefix, a range of addresses or ports, or a quoted device name (`"veth*"`)."""
    if value.startswith('"'):
        name = value.strip('"')
        return key.startswith(name[:-1]) if name.endswith("*") else key == name
    if key.isdigit() and "-" in value:
        lowest, _, highest = value.partition("-")
        return int(lowest) <= int(key) <= int(highest)
    if ("/" in value or "-" in value) and _is_address(key):
        first, last = _range(value)
        return first <= int(ip_address(key)) <= last
    return key == value


@lru_cache(maxsize=1 << 12)
def _is_address(words: str) -> bool:
    try:
        ip_address(words)
    except ValueError:
        return False
    return True


def _is_between(number: int, said: str) -> bool:
    """A number or a range of numbers; nothing else is one."""
    first, _, last = said.partition("-")
    try:
        return int(first, 0) <= number <= int(last or first, 0)
    except ValueError:
        return False


@lru_cache(maxsize=1 << 12)
def _range(words: str) -> tuple[int, int]:
    if "/" in words:
        network = ip_network(words)
        return int(network.network_address), int(network.broadcast_address)
    first, _, last = words.partition("-")
    return int(ip_address(first)), int(ip_address(last))
