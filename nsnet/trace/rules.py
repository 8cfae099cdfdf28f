"""One iptables rule, as `iptables-save` prints it: its parts, and whether a packet matches.

A match is a likelihood: 1 matches, 0 does not, between them it is `statistic`. A match this file does not know cannot
be told from state: it counts as UNKNOWN, both ways are followed and the choice weighs nothing.
"""

import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network

import msgspec

from nsnet.state import IpSet
from nsnet.trace.values import Packet, Trip

UNKNOWN = -1.0
_PROTOCOLS = {"ipv6-icmp": "icmp", "icmpv6": "icmp"}  # a Packet's word for both


class Address(msgspec.Struct, frozen=True):
    """`-s`, `-d`: a network as numbers, so that a thousand rules are looked through quickly."""

    network: int
    mask: int
    negated: bool

    def matches(self, address: int) -> bool:
        return (address & self.mask == self.network) is not self.negated


class Match(msgspec.Struct, frozen=True):
    """One option of a match module; `values` are its words."""

    module: str
    option: str
    values: tuple[str, ...] = ()
    negated: bool = False


class Rule(msgspec.Struct, frozen=True):
    text: str
    source: Address | None = None
    destination: Address | None = None
    protocol: str = ""
    matches: tuple[Match, ...] = ()
    target: str = ""
    arguments: tuple[str, ...] = ()
    goto: bool = False
    comment: str = ""

    def argument(self, option: str) -> str:
        """The word after an option of the target (`--to-destination`), or an empty one."""
        words = self.arguments
        return next((words[i + 1] for i, word in enumerate(words[:-1]) if word == option), "")


@lru_cache(maxsize=1 << 17)
def parse(text: str) -> Rule:
    """A rule without its `-A CHAIN`."""
    head, target, arguments = _split(_words(text))
    options = tuple(_with_list(list(_options(head))))
    addresses = {match.option: _address(match) for match in options if match.option in {"-s", "-d"}}
    return Rule(
        text,
        source=addresses.get("-s"),
        destination=addresses.get("-d"),
        protocol=next((item.values[0] for item in options if item.option == "-p" and not item.negated), ""),
        matches=tuple(item for item in options if item.option not in _PLAIN and not _is_plain_protocol(item)),
        target=target[1] if target else "",
        arguments=arguments,
        goto=bool(target) and target[0] in {"-g", "--goto"},
        comment=next((item.values[0] for item in options if item.option == "--comment"), ""),
    )


_PLAIN = {"-s", "-d", "--comment"}


def _with_list(options: list[Match]) -> Iterator[Match]:
    """`recent` names its list in another option: the one that asks gets the name as its word; `--set` asks nothing.

    The three options of `cluster` (mask, total, seed) are one question.
    """
    name = next((item.values for item in options if (item.module, item.option) == ("recent", "--name")), ())
    for index, item in enumerate(options):
        if (item.module, item.option) == ("cluster", "--cluster-local-nodemask"):
            yield Match("cluster", "hash", tuple(other.values[0] for other in options[index : index + 3]), item.negated)
        elif item.module not in {"recent", "cluster"}:
            yield item
        elif item.option in {"--rcheck", "--update"}:
            yield Match("recent", item.option, name, item.negated)


def _is_plain_protocol(match: Match) -> bool:
    return match.option == "-p" and not match.negated


def _words(text: str) -> list[str]:
    if "\\" in text or "'" in text:
        return shlex.split(text)
    words: list[str] = []
    for index, part in enumerate(text.split('"')):
        words += [part] if index % 2 else part.split()
    return words


def _split(words: list[str]) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    for index, word in enumerate(words):
        if word in {"-j", "-g", "--jump", "--goto"}:
            return words[:index], tuple(words[index : index + 2]), tuple(words[index + 2 :])
    return words, (), ()


def _options(words: list[str]) -> Iterator[Match]:
    """Every option with its words and its `!`; `-m NAME` says whose the following are."""
    module, negated, option = "", False, ""
    values: list[str] = []
    for word in [*words, "-"]:
        if word == "!" or word.startswith("-"):
            if option == "-m":
                module = values[0]
            elif option:
                yield Match(module, option, tuple(values), negated)
                negated = False
            option, values = "", []
        if word == "!":
            negated = True
        elif word.startswith("-"):
            option = word
        else:
            values.append(word)


def _address(match: Match) -> Address:
    network = ip_network(match.values[0], strict=False)
    return Address(int(network.network_address), int(network.netmask), match.negated)


# --- does it match? ---------------------------------------------------------------------------------------------------


class Facts(msgspec.Struct, frozen=True):
    """What rules ask of the namespace: its own addresses, what its `recent` lists hold, and its ipsets."""

    is_local: Callable[[str], bool]
    recent: Collection[tuple[str, str]] = ()  # (list, source address)
    sets: Mapping[str, IpSet] = {}


def likelihood(rule: Rule, trip: Trip, facts: Facts, source: int, destination: int) -> float:
    """How likely the packet matches; `source` and `destination` are its addresses as numbers."""
    if rule.destination is not None and not rule.destination.matches(destination):
        return 0.0
    if rule.protocol and _PROTOCOLS.get(rule.protocol, rule.protocol) not in (trip.packet.protocol, "all"):
        return 0.0
    if rule.source is not None and not rule.source.matches(source):
        return 0.0
    result = 1.0
    for match in rule.matches:
        one = _one(match, trip, facts)
        if one != UNKNOWN and match.negated:
            one = 1.0 - one
        if one == 0.0:
            return 0.0
        result = UNKNOWN if UNKNOWN in (one, result) else result * one
    return result


def _one(match: Match, trip: Trip, facts: Facts) -> float:
    packet, option, values = trip.packet, match.option, match.values
    match match.module, option:
        case _, "-p":
            return packet.protocol == _PROTOCOLS.get(values[0], values[0])
        case _, "-i":
            return _is_device(trip.dev_in, values[0])
        case _, "-o":
            return _is_device(trip.dev_out, values[0])
        case (("tcp" | "udp" | "sctp"), "--dport"):
            return _in_range(packet.dport, values[0])
        case (("tcp" | "udp" | "sctp"), "--sport"):
            return _in_range(packet.sport, values[0])
        case "multiport", "--dports":
            return any(_in_range(packet.dport, part) for part in values[0].split(","))
        case "multiport", "--sports":
            return any(_in_range(packet.sport, part) for part in values[0].split(","))
        case "conntrack", "--ctstate":
            return trip.state in values[0].split(",") or ("DNAT" in values[0] and trip.translated)
        case "state", "--state":
            return trip.state in values[0].split(",")
        case "physdev", "--physdev-is-in":
            return bool(trip.port_in)
        case "addrtype", "--dst-type":
            return facts.is_local(packet.dst) if values[0] == "LOCAL" else UNKNOWN
        case "addrtype", "--src-type":
            return facts.is_local(packet.src) if values[0] == "LOCAL" else UNKNOWN
        case "mark", "--mark":
            value, mask = pair(values[0])
            return trip.mark & mask == value
        case "statistic", "--probability":
            return float(values[0])
        case "set", "--match-set":
            return _is_in(facts.sets.get(values[0]), values[1].split(","), packet)
        case "icmp", "--icmp-type":
            return values[0] in ("any", "255") or values[0] in (
                ("3/4", "3") if trip.error else ("8", "8/0") if not trip.reply else ("0", "0/0")
            )
        case "icmp6", "--icmpv6-type":
            return values[0] in _ICMP6_TYPES[trip.error, trip.asks, bool(trip.reply)]
        case "tcp", "--tcp-flags":
            return _has_flags(trip, *(set(part.split(",")) for part in values))
        case "cluster", _:
            return _is_in_part(packet.src, *(int(word, 0) for word in values))
        case "recent", _:
            return (values[0], packet.src) in facts.recent
        case _:
            return 1.0 if (match.module, option) in _SAY_NOTHING else UNKNOWN


def _is_in(found: IpSet | None, ends: Sequence[str], packet: Packet) -> float:
    """`--match-set NAME src` or `dst,dst`: the address, and with it the protocol and port, of that end."""
    if found is None:
        return UNKNOWN
    address, port = (packet.src, packet.sport) if ends[0] == "src" else (packet.dst, packet.dport)
    if found.kind == "hash:net":
        return any(_holds(entry, number(address)) for entry in found.entries)
    return (address if found.kind == "hash:ip" else f"{address},{packet.protocol}:{port}") in found.entries


@lru_cache(maxsize=1 << 14)
def _network(entry: str) -> tuple[int, int]:
    network = ip_network(entry)
    return int(network.network_address), int(network.netmask)


def _holds(entry: str, address: int) -> bool:
    network, mask = _network(entry)
    return address & mask == network


def _has_flags(trip: Trip, asked: set[str], wanted: set[str]) -> bool:
    """A packet here is the first of its connection, or the first answer."""
    return ({"SYN", "ACK"} if trip.reply else {"SYN"}) & asked == wanted


def _is_in_part(source: str, mask: int, total: int, seed: int) -> bool:
    """xt_cluster: the hash of the client's address, scaled to one of `total` parts (`net/netfilter/xt_cluster.c`)."""
    word = int.from_bytes(ip_address(source).packed, sys.byteorder)
    return bool(mask >> (_jhash(word, seed) * total >> 32) & 1)


def _jhash(word: int, seed: int) -> int:
    """The kernel's jhash_1word (`include/linux/jhash.h`, Bob Jenkins' lookup3)."""
    start = seed + 0xDEADBEEF + 4
    a, b, c = (word + start) & _WORD, start & _WORD, start & _WORD
    for turn in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - (b << turn | b >> 32 - turn)) & _WORD
        a, b, c = b, c, a
    return b


_ICMP6_TYPES = {  # of an error, of who asks for a neighbour, of an answer
    (True, False, False): ("2", "2/0"), (False, True, False): ("135", "135/0"), (False, False, True): ("129",),
    (False, False, False): ("128",), (True, False, True): ("2", "2/0"), (False, True, True): ("135", "135/0"),
}  # fmt: skip
_WORD = 0xFFFFFFFF
_SAY_NOTHING = {("statistic", "--mode"), ("nfacct", "--nfacct-name")}


def pair(text: str) -> tuple[int, int]:
    """`0x4000/0x4000` as value and mask; without a mask all bits count."""
    value, _, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if mask else 0xFFFFFFFF


def _is_device(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def _in_range(port: int, text: str) -> bool:
    first, colon, last = text.partition(":")
    return int(first or 0) <= port <= int(last or 65535) if colon else port == int(first)


# --- whose rule is it? ------------------------------------------------------------------------------------------------

_SERVICE = re.compile(r"(?:^|\b(?:for|to) )([a-z0-9][-a-z0-9.]*/[a-z0-9][-a-z0-9.]*(?::[-a-z0-9]+)?)(?= |$)")


_NFT_SERVICE = re.compile(
    r"\b(?:service|local|external|firewall|endpoint)-[A-Z2-7]{8}-([-a-z0-9.]+/[-a-z0-9.]+)/(?:tcp|udp|sctp)/([-a-z0-9]*)"
)


def service_of(rule: str) -> str:
    """The Service port a rule belongs to (`ns/name:port`); empty for any other rule.

    From kube-proxy's comment, in nftables mode from the name of its chain, which stands in a hop's words or rule.
    """
    named = _NFT_SERVICE.search(rule)
    if named:
        return f"{named[1]}:{named[2]}" if named[2] else named[1]
    found = _SERVICE.search(parse(rule).comment)
    return found[1] if found else ""


# --- whose policy is it? ----------------------------------------------------------------------------------------------

_POLICY = re.compile(r'"(?:[^"]* that no policy allows: |policy )([^"]+)"')


def policy_of(rule: str) -> str:
    """The network policy a rule belongs to, with its rule (`shop/web ingress[0]`); of a rule that drops, all of a pod.

    From the comment that `render.policy_iptables` and `render.policy_nftables` write; empty for any other rule.
    """
    found = _POLICY.search(rule)
    return found[1] if found else ""


@lru_cache(maxsize=1 << 12)
def number(address: str) -> int:
    return int(ip_address(address))


def end_of(text: str) -> tuple[str, int]:
    """`ip:port`, `[ip]:port` or an address alone, and a port 0; of a range the first."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
    elif text.count(":") > 1:
        address, port = text, ""
    else:
        address, _, port = text.partition(":")
    return address.partition("-")[0], int(port.lstrip(":").partition("-")[0] or 0)
