"""What every rendered state must satisfy, whatever the topology: one list of sentences, empty when all is well."""

from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from ipaddress import ip_address, ip_interface

from nsnet import state
from nsnet.diff import hangs_on, targets
from nsnet.names import kind_of
from nsnet.state import (
    Address,
    Bridge,
    BridgePort,
    Chain,
    File,
    IpSet,
    Netns,
    OtherLink,
    Route,
    State,
    Sysctl,
    Value,
    Veth,
    Vxlan,
)
from tests.fake import dangling, setless
from tests.rule_structure import rule_faults

LINKS = (Bridge, Veth, Vxlan, OtherLink)
# kube-proxy always has them: the canary shows a flush; without an address that serves node ports nobody asks for those.
UNUSED = {"KUBE-PROXY-CANARY", "KUBE-MARK-MASQ", "KUBE-NODEPORTS"}


def faults(want: State) -> list[str]:
    """Every sentence names the namespace it is about."""
    found = [f"{netns}: {fault}" for netns, values in sorted(want.items()) for fault in _inside(netns, values)]
    return found + list(_pairs(want))


def _inside(netns: str, values: frozenset[Value]) -> Iterator[str]:
    yield from (f"{key} stands twice" for key, times in Counter(value.key for value in values).items() if times > 1)
    if not any(isinstance(value, Netns) for value in values):
        yield "is never made"
    yield from dangling(values)
    yield from setless(values)
    yield from _unnamed(values)
    yield from _unreached(values)
    yield from rule_faults(values)
    yield from _sysctls(netns, values)
    yield from _devices(values)
    yield from _gateways(values)


def _unreached(values: frozenset[Value]) -> Iterator[str]:
    chains = [value for value in values if isinstance(value, Chain)]
    reached = {(*chain.key[:3], target) for chain in chains for target in targets(chain)}
    for chain in chains:
        if not chain.policy and chain.name not in UNUSED and chain.key not in reached:
            yield f"nobody jumps to {chain.table} {chain.name}"


def _unnamed(values: frozenset[Value]) -> Iterator[str]:
    rules = " ".join(rule for value in values if isinstance(value, Chain) for rule in value.rules)
    yield from (
        f"no rule names the set {value.name}"
        for value in values
        if isinstance(value, IpSet) and value.name not in rules
    )


def _sysctls(netns: str, values: frozenset[Value]) -> Iterator[str]:
    """Each one that is read is wanted, and no other: a value that nobody sets differs from machine to machine.

    Those of IPv6 are wanted where there is IPv6.
    """
    wanted = {value.name for value in values if isinstance(value, Sysctl)}
    files = "".join(
        value.content for value in values if isinstance(value, File) and value.path.endswith("/sysctl.conf")
    )
    read = (*state.SYSCTLS[kind_of(netns)], *(line.partition(" = ")[0] for line in files.splitlines()))
    odd = {name for name in wanted if not any(fnmatch(name, pattern) for pattern in read)}
    odd |= {name for name in read if "*" not in name and ".ipv6." not in name and "ip6" not in name} - wanted
    if odd:
        yield f"sysctls {sorted(odd)} are wanted or read, not both"


def _devices(values: frozenset[Value]) -> Iterator[str]:
    links = {"lo", *(value.name for value in values if isinstance(value, LINKS))}
    for value in values:
        absent = {*hangs_on(value), *([value.dev] if isinstance(value, Vxlan) else ())} - links
        if absent:
            yield f"{value} needs {absent}"
    too_long = [name for name in links if len(name) > 15]
    if too_long:
        yield f"{too_long} are too long for an interface"


def _gateways(values: frozenset[Value]) -> Iterator[str]:
    subnets = [(value.dev, ip_interface(value.cidr).network) for value in values if isinstance(value, Address)]
    through = [value for value in values if isinstance(value, Route) and value.via and not value.onlink]
    for route in through:
        if not any(dev == route.dev and ip_address(route.via) in subnet for dev, subnet in subnets):
            yield f"{route.via} is not reached on {route.dev}"


def _pairs(want: State) -> Iterator[str]:
    """Each veth names an end that names it, and one of the two is a bridge port."""
    ends = {(netns, value.name): value for netns, values in want.items() for value in values if isinstance(value, Veth)}
    ports = {(netns, value.name) for netns, values in want.items() for value in values if isinstance(value, BridgePort)}
    for (netns, name), value in ends.items():
        other, _, dev = value.peer.rpartition("/")
        if other not in want or (other, dev) not in ends or ends[other, dev].peer != f"{netns}/{name}":
            yield f"{netns}: {name} has no peer {value.peer}"
        elif ((netns, name) in ports) == ((other, dev) in ports):
            yield f"{netns}: of {name} and {value.peer} exactly one should be a bridge port"
