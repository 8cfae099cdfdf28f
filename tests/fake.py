"""One fake kernel: `observe` and `apply` on dicts, which refuses and drops what the real one refuses and drops.

It is the judge of every order of changes: a prefix of a list may have happened, and the next sync must still arrive.
What it knows of the kernel follows. What the kernel drops by itself was tried on a real one (6.18); refusals are the
kernel's as documented, and tests/kernel/test_render_real.py takes the same ways between states on a real kernel:

- a link is made once; a VXLAN device needs the device it runs over; one end of a veth pair makes both, and until the
  other end is written too, nobody can tell whose peer it is (observed as OtherLink);
- a port needs its link and its bridge; an address its device; a route a device that is up and a gateway in a subnet of
  that device, unless `onlink`; a chain that is jumped to must be there, and one that is jumped to cannot be deleted;
- with a link go its peer, the VXLAN devices over it and all that hangs on them; with a namespace go its links;
- an address takes its subnet's later addresses along, and the device's last one its routes and neighbours;
- a change of a link in place (its MAC is written with it, be it the same) drops its neighbours, going down its routes;
- a rule needs the ipsets it names, and such a set cannot be destroyed;
- a process reads its file when it starts; a sysctl cannot go away;
- deleting what is not there succeeds, and so does writing an address, route, neighbour or FDB entry that is there.

Consecutive chain changes of one namespace are one `iptables-restore`, consecutive changes of nftables values one `nft`:
all or nothing. An nftables table takes along what is in it.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from ipaddress import ip_address, ip_interface
from itertools import groupby

from nsnet import names, state
from nsnet.diff import diff, hangs_on, targets
from nsnet.state import (
    Address,
    Bridge,
    BridgePort,
    Chain,
    Change,
    FdbEntry,
    File,
    Hold,
    Ipip,
    IpSet,
    Key,
    Link,
    Loopback,
    Neighbour,
    Netns,
    Nft,
    NftChain,
    NftElement,
    NftSet,
    NftTable,
    Offload,
    OtherLink,
    Process,
    Refusal,
    Route,
    Scope,
    State,
    Sysctl,
    Tun,
    Value,
    Veth,
    Vxlan,
    Wireguard,
    WireguardKey,
    WireguardPeer,
    in_place,
)

Made = Bridge | Veth | Vxlan | Ipip | Tun | Wireguard
BUILT_IN = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
TARGETS = {"ACCEPT", "DROP", "RETURN", "REJECT", "MARK", "MASQUERADE", "DNAT", "SNAT", "REDIRECT", "LOG"}
SILENCE = ("net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit")  # what a file of ours in a pod names


class RefusedError(Exception):
    """The kernel's own sentence."""


class Kernel:
    """Namespaces and their values. `half` are veth ends that were made with their peer and not written yet."""

    def __init__(self) -> None:
        self.spaces: dict[str, dict[Key, Value]] = {}
        self.half: set[tuple[str, str]] = set()

    # --- the two doors ---

    def observe(self, only: Scope | None = None) -> dict[str, frozenset[Value]]:
        """All of it, or of the namespaces in `only` the keys that it names."""
        found = {}
        for netns, values in self.spaces.items():
            if only is None or netns in only:
                keys = only[netns] if only else frozenset()
                found[netns] = frozenset(self._shown(netns, v) for key, v in values.items() if not keys or key in keys)
        return found

    def _shown(self, netns: str, value: Value) -> Value:
        if isinstance(value, Veth) and not self.half.isdisjoint({(netns, value.name), _end(value.peer)}):
            return OtherLink(value.name, "veth")
        return value

    def apply(self, changes: Sequence[Change]) -> list[Refusal]:
        """Each change in turn; a refused one does not stop the rest."""
        refusals: list[Refusal] = []
        for (netns, tool), group in groupby(changes, _transaction):
            if tool:
                refusals += self._restore(netns, tool, list(group))
                continue
            for change in group:
                try:
                    self._change(change)
                except RefusedError as sentence:
                    refusals.append(Refusal(change, str(sentence)))
        return refusals

    # --- one change ---

    def _change(self, change: Change) -> None:
        netns, value = change.netns, change.value
        if isinstance(value, Netns):
            self._netns(change)
            return
        if netns not in self.spaces:
            if change.verb == "delete":
                return
            raise RefusedError(f"No such namespace {netns}")
        if change.verb == "delete":
            self._delete(netns, value.key)
        else:
            self._write(netns, value, again=change.verb == "replace")

    def _netns(self, change: Change) -> None:
        if change.verb == "delete":
            for value in list(self.spaces.get(change.netns, {}).values()):
                if isinstance(value, Link):
                    self._unlink(change.netns, value.name)
            self.spaces.pop(change.netns, None)
        else:
            space = self.spaces.setdefault(change.netns, {("link", "lo"): Loopback(up=False)})
            space[change.value.key] = change.value

    def _write(self, netns: str, value: Value, *, again: bool) -> None:
        space = self.spaces[netns]
        old = space.get(value.key)
        match value:
            case Bridge() | Veth() | Vxlan() | Ipip() | Tun() | Wireguard():
                self._link(netns, value, again=again)
                return
            case BridgePort(name, bridge):
                self._must(netns, name)
                if not isinstance(self._must(netns, bridge), Bridge):
                    raise RefusedError("Operation not supported")
            case Address(dev) | Neighbour(dev) | Offload(dev):
                self._must(netns, dev)
            case WireguardKey(dev, _, _, file):
                self._must(netns, dev)
                if ("file", file) not in space:
                    raise RefusedError(f"{file} is not there")
            case WireguardPeer(dev):
                if not isinstance(self._must(netns, dev), Wireguard):
                    raise RefusedError("Operation not supported")
            case FdbEntry(dev):
                if not isinstance(self._must(netns, dev), Vxlan):
                    raise RefusedError("Operation not supported")
            case Route():
                self._reachable(netns, value)
            case Sysctl(name):
                if not any(fnmatch(name, known) for known in (*state.SYSCTLS[names.kind_of(netns)], *SILENCE)):
                    raise RefusedError(f"sysctl: cannot stat {name}")
                for dev in hangs_on(value):
                    self._must(netns, dev)
            case Process(argv):
                if not any(("file", word) in space for word in argv):
                    raise RefusedError(f"{argv}: its file is not there")
            case Loopback() | File() | IpSet():
                pass
            case _:
                raise RefusedError(f"nobody makes {value}")
        made = not isinstance(value, Loopback | Sysctl | File)  # those are there, or simply written
        if made and old is not None and old != value and not again:
            raise RefusedError(f"File exists: {old}")
        space[value.key] = value

    def _must(self, netns: str, dev: str) -> Value:
        link = self.spaces[netns].get(("link", dev))
        if link is None:
            raise RefusedError(f"Cannot find device {dev}")
        return link

    def _reachable(self, netns: str, route: Route) -> None:
        hops = route.nexthops or ((route.via, route.dev),)
        for via, dev in hops:
            link = self._must(netns, dev)
            if not getattr(link, "up", True):
                raise RefusedError("Network is down")
            subnets = [ip_interface(item.cidr).network for item in self._on(netns, dev, Address)]
            if via and not route.onlink and not any(ip_address(via) in subnet for subnet in subnets):
                raise RefusedError("Nexthop has invalid gateway")

    def _on(self, netns: str, dev: str, kind: type[Value]) -> list[Address]:
        values = self.spaces[netns].values()
        return [value for value in values if isinstance(value, kind) and dev in hangs_on(value)]  # type: ignore[misc]

    # --- links ---

    def _link(self, netns: str, value: Made, *, again: bool) -> None:
        space = self.spaces[netns]
        old = space.get(value.key)
        if old is None:
            self._create(netns, value)
        elif (netns, value.name) in self.half and isinstance(old, Veth) and isinstance(value, Veth):
            if old.peer != value.peer:
                raise RefusedError("File exists")
            self.half.discard((netns, value.name))
        elif again and in_place(old, value):
            self._drop_with_change(netns, old, value)
        elif old != value:
            raise RefusedError("File exists")
        space[value.key] = value

    def _create(self, netns: str, value: Made) -> None:
        if isinstance(value, Vxlan):
            self._must(netns, value.dev)
            others = (other for other in self.spaces[netns].values() if isinstance(other, Vxlan))
            if any((other.vni, other.port) == (value.vni, value.port) for other in others):
                raise RefusedError("A VXLAN device with the specified VNI already exists")
        if isinstance(value, Veth):
            other, dev = _end(value.peer)
            if other not in self.spaces:
                raise RefusedError(f"No such namespace {other}")
            if ("link", dev) in self.spaces[other]:
                raise RefusedError("File exists")
            self.spaces[other]["link", dev] = Veth(dev, f"{netns}/{value.name}", "02:00:00:00:00:00", up=False)
            self.half.add((other, dev))

    def _drop_with_change(self, netns: str, old: Value, new: Made) -> None:
        assert isinstance(old, Made)
        self._drop(netns, new.name, Neighbour)
        if old.up and not new.up:
            self._drop(netns, new.name, Route)

    def _drop(self, netns: str, dev: str, *kinds: type[Value]) -> None:
        space = self.spaces[netns]
        for key, value in list(space.items()):
            if isinstance(value, kinds) and dev in hangs_on(value):
                del space[key]

    def _unlink(self, netns: str, name: str) -> None:
        link = self.spaces.get(netns, {}).pop(("link", name), None)
        if link is None:
            return
        self.half.discard((netns, name))
        hanging = (BridgePort, Address, Route, Neighbour, FdbEntry, Sysctl, Offload, WireguardKey, WireguardPeer)
        self._drop(netns, name, *hanging)
        for other in list(self.spaces[netns].values()):
            if isinstance(other, Vxlan) and other.dev == name:
                self._unlink(netns, other.name)
        if isinstance(link, Veth):
            self._unlink(*_end(link.peer))

    # --- deletes ---

    def _delete(self, netns: str, key: Key) -> None:
        space = self.spaces[netns]
        value = space.get(key)
        match value:
            case None:
                return
            case Bridge() | Veth() | Vxlan() | Ipip() | Tun() | Wireguard() | OtherLink():
                self._unlink(netns, value.name)
            case Sysctl():
                raise RefusedError("a sysctl cannot be deleted")
            case Address(dev, cidr):
                self._delete_address(netns, dev, cidr)
            case IpSet():
                left = [one for one in space.values() if one is not value]
                if any(f" {value.name}," in f"{sentence}," for sentence in setless(left)):
                    raise RefusedError("the set is in use")
                del space[key]
            case _:
                del space[key]

    def _delete_address(self, netns: str, dev: str, cidr: str) -> None:
        """The first address of a subnet is the primary one (dicts keep the order in which keys came)."""
        space = self.spaces[netns]
        subnet = ip_interface(cidr).network
        same = [item for item in self._on(netns, dev, Address) if ip_interface(item.cidr).network == subnet]
        for item in same if same[0].cidr == cidr else [Address(dev, cidr)]:
            del space[item.key]
        if not self._on(netns, dev, Address):
            self._drop(netns, dev, Route, Neighbour)

    # --- iptables-restore and nft ---

    def _restore(self, netns: str, tool: str, changes: list[Change]) -> list[Refusal]:
        if netns not in self.spaces:
            return [Refusal(c, f"No such namespace {netns}") for c in changes if c.verb != "delete"]
        space = dict(self.spaces[netns])
        for change in changes:
            if change.verb == "delete":
                space.pop(change.value.key, None)
                if isinstance(change.value, NftTable):
                    for key in [key for key in space if key[:3] == change.value.key]:
                        del space[key]
            else:
                space[change.value.key] = change.value
        missing = [*dangling(space.values()), *setless(space.values()), *nft_dangling(space.values())]
        if missing:
            return [Refusal(change, f"{tool}: {missing[0]}") for change in changes]
        self.spaces[netns] = space
        return []


def _transaction(change: Change) -> tuple[str, str]:
    """(namespace, tool) for what goes in one transaction, else two empty words."""
    tools = {Chain: "iptables-restore", NftTable: "nft", NftSet: "nft", NftChain: "nft", NftElement: "nft"}
    tool = tools.get(type(change.value), "")
    return (change.netns, tool) if tool else ("", "")


def _end(peer: str) -> tuple[str, str]:
    netns, _, dev = peer.rpartition("/")
    return netns, dev


def dangling(values: Iterable[Value]) -> Iterator[str]:
    """Jumps to chains that are not there, as sentences."""
    chains = {value.key: value for value in values if isinstance(value, Chain)}
    for key, chain in chains.items():
        for target in targets(chain) - TARGETS:
            if target and not target.startswith("-") and (*key[:3], target) not in chains:
                yield f"{chain.table} {chain.name} jumps to {target}, which is not there"


_SET = re.compile(r"--match-set (\S+) ")


def setless(values: Iterable[Value]) -> Iterator[str]:
    """Rules that name ipsets that are not there, as sentences."""
    there = {value.name for value in values if isinstance(value, IpSet)}
    for chain in (value for value in values if isinstance(value, Chain)):
        for name in {name for rule in chain.rules for name in _SET.findall(rule)} - there:
            yield f"{chain.table} {chain.name} names the set {name}, which is not there"


def nft_dangling(values: Iterable[Value]) -> Iterator[str]:
    """What nftables values lead to and is not there, as sentences."""
    there = {value.key: value for value in values if isinstance(value, Nft)}
    for key, value in there.items():
        rules = value.rules if isinstance(value, NftChain) else (value.data,) if isinstance(value, NftElement) else ()
        named = [
            (*key[:3], "chain", name) for rule in rules for name in re.findall(r"\b(?:goto|jump) ([^\s,}]+)", rule)
        ]
        named += [(*key[:3], "set", name) for rule in rules for name in re.findall(r"@([^\s,}]+)", rule)]
        named += [key[:3]] + ([(*key[:3], "set", value.set)] if isinstance(value, NftElement) else [])
        yield from (f"{' '.join(key)} needs {' '.join(other)}" for other in named if other not in there)


def sync(kernel: Kernel, want: State, *, holds: Sequence[Hold] = (), rounds: int = 1) -> list[list[Change]]:
    """Observe, diff, apply until nothing differs. Returns the rounds' changes; more rounds than allowed is an error."""
    done: list[list[Change]] = []
    while changes := diff(kernel.observe(), want, holds=holds):
        assert len(done) < rounds, f"round {len(done) + 1} still has:\n" + "\n".join(map(str, changes[:10]))
        refusals = kernel.apply(changes)
        assert not refusals, "\n".join(map(str, refusals[:10]))
        done.append(changes)
    return done


def holding(want: State) -> Kernel:
    """A kernel that has exactly this."""
    kernel = Kernel()
    sync(kernel, want)
    return kernel


def copied(kernel: Kernel) -> Kernel:
    other = Kernel()
    other.spaces = {netns: dict(values) for netns, values in kernel.spaces.items()}
    other.half = set(kernel.half)
    return other


def words(want: Mapping[str, Iterable[Value]]) -> str:
    """A state as a page: namespaces by name, values in the order they are written, in `ip` and `iptables` words.

    The content of a file stands indented under it; the interpreter of this machine is `python3`.
    """
    changes = diff({}, {netns: frozenset(values) for netns, values in want.items()})
    sections = []
    for netns in sorted(want):
        lines = [line for change in changes if change.netns == netns for line in _lines(change.value)]
        sections.append("\n".join([f"# {netns}", *lines, ""]))
    return "\n".join(sections).replace(sys.executable, "python3")


def _lines(value: Value) -> Iterator[str]:
    yield from state.words(value)
    if isinstance(value, File):
        yield from (f"    {line}" for line in value.content.splitlines())
