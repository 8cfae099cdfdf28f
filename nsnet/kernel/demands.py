"""What a wanted state asks of the kernel, and which of it this kernel lacks: found before anything is stored or built.

Each feature (`features.py`) is tried once, in a throw-away namespace. Trying them one by one would cost a process each;
so all rules of a family go into one iptables-restore and all devices into one `ip -batch`, and only where that fails
each is tried alone, to find out which.
"""

import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from shlex import join

from nsnet.kernel.features import FEATURES, IPV6, LEGACY, SCTP, Feature, Finding, features
from nsnet.kernel.netns import throw_away
from nsnet.state import (
    Address,
    Bridge,
    Chain,
    Ipip,
    IpSet,
    LegacyChain,
    NftTable,
    State,
    Sysctl,
    Tun,
    Value,
    Veth,
    Vxlan,
    Wireguard,
)

PATIENCE = 20.0  # s for one try

_OF_TYPES: Mapping[type, str] = {
    Veth: "veth", Bridge: "bridge", Ipip: "ipip", Tun: "tun", Wireguard: "wireguard", IpSet: "ipset",
    NftTable: "nftables",
}  # fmt: skip
_OF_SYSCTLS = {f"net.bridge.{name}": name for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")}
_OF_RULES: Mapping[str, str] = {
    "-m conntrack": "conntrack", "-m statistic": "statistic match", "-m recent": "recent match",
    "-m cluster": "cluster match", "-m addrtype": "addrtype match", "-m multiport": "multiport match",
    "-m physdev": "physdev match", "-m string": "string match", "-m set": "ipset", "-m sctp": SCTP, "-j DNAT": "nat",
    "-j MARK": "mark target", "-j MASQUERADE": "masquerade --random-fully", "-j REDIRECT": "REDIRECT target",
}  # fmt: skip
_OF_RULES6: Mapping[str, str] = {"-j DNAT": "IPv6 nat", "-j MASQUERADE": "IPv6 masquerade --random-fully"}
_WORDS = re.compile(r"-m [a-z]+|-j [A-Z]+\b")


def lacking(wanted: State) -> list[Finding]:
    """The features that this state needs and the kernel has not. Needs root."""
    asked = demands(wanted)
    return missing([feature for feature in (*FEATURES, *IPV6) if feature.name in asked])


# --- what is asked ----------------------------------------------------------------------------------------------------


def demands(wanted: State) -> set[str]:
    """The names of the features that the state needs."""
    found: set[str] = set()
    chains: dict[int, Chain] = {}  # by identity: most nodes have the very same ones
    for values in wanted.values():
        for value in values:
            if isinstance(value, Chain):
                chains[id(value)] = value
            else:
                found.update(_of_value(value))
    for chain in chains.values():
        found.update(_of_chain(chain))
    return found


def _of_value(value: Value) -> Iterator[str]:
    match value:
        case Vxlan():
            yield "vxlan over IPv6" if ":" in value.local else "vxlan"
        case Sysctl(name, "1") if name in _OF_SYSCTLS:
            yield _OF_SYSCTLS[name]
        case Address(_, cidr) if ":" in cidr:
            yield "IPv6"
        case LegacyChain(family=family):
            yield LEGACY[family]
        case _ if type(value) in _OF_TYPES:
            yield _OF_TYPES[type(value)]


def _of_chain(chain: Chain) -> Iterator[str]:
    known = _OF_RULES if chain.family == "ip" else {**_OF_RULES, **_OF_RULES6}
    words = {word for rule in chain.rules for word in _WORDS.findall(rule)}
    yield from (known[word] for word in words if word in known)


# --- what is there ----------------------------------------------------------------------------------------------------


def missing(wanted: Sequence[Feature]) -> list[Finding]:
    """Those that cannot be had, each tried once (or not at all, see `Feature.after`). Needs root."""
    doubtful = [feature for feature in wanted if not feature.may_be_tried]
    with throw_away():
        for how, group in _grouped(feature for feature in wanted if feature.may_be_tried).items():
            if not _all_work(how, group):
                doubtful += group
    return [finding for finding in features(doubtful) if not finding.ok]


def _grouped(wanted: Iterable[Feature]) -> dict[str, list[Feature]]:
    """By the program that tries them."""
    found: defaultdict[str, list[Feature]] = defaultdict(list)
    for feature in wanted:
        found[feature.words[0]].append(feature)
    return found


def _all_work(how: str, group: Collection[Feature]) -> bool:
    """Whether all of them can be had, asked in one go where we are."""
    match how:
        case "test":
            return all(os.access(feature.words[-1], os.F_OK) for feature in group)
        case "ip":
            return _run(("ip", "-batch", "-"), "".join(f"{join(feature.words[1:])}\n" for feature in group))
        case "iptables" | "ip6tables":
            return _run((f"{how}-restore", "-w"), _restored(group))
    return all(_run(feature.words) for feature in group)


def _restored(group: Iterable[Feature]) -> str:
    """The rules of `iptables -w -t TABLE -A …` as lines for iptables-restore."""
    tables: defaultdict[str, list[str]] = defaultdict(list)
    for feature in group:
        tables[feature.words[3]].append(join(feature.words[4:]))
    return "".join("\n".join((f"*{table}", *rules, "COMMIT\n")) for table, rules in tables.items())


def _run(words: Sequence[str], text: str = "") -> bool:
    try:
        done = subprocess.run(words, input=text, text=True, capture_output=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
