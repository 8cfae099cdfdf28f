"""observe: what the kernel has, as values; nothing is written, nothing is remembered.

Per namespace one route socket and one sock_diag socket, all dumps of each in one send; only the main routing table is
asked for, and link statistics are not. Everything else costs a process or a walk and is done only where it can say
something:

- iptables: `iptables-save` costs a process and 20 ms, so it is run only where netfilter has any table. That is one
  netlink dump (NFT_MSG_GETTABLE), or a look into /proc/net/ip_tables_names for the legacy build; neither creates a
  table, which `iptables-save` itself would never do either but `iptables -L` does. Pods have no rules of ours, so there
  nobody looks. The processes of several nodes run side by side.
- nftables: other tables than iptables' are read by netlink, which costs a millisecond where there is none.
- ipsets: of nodes, by one netlink dump; a set that is there without a rule that names it is found, too.
- sysctls: where `state.SYSCTLS` names some.
- WireGuard's keys and peers: where there is such a device; offloads: of the cables of nodes, hosts and the fabric, and
  of tunnels.
- the older xtables beside nf_tables: where their tables are named, which no whole look at a pod asks.
- queueing disciplines: the dump of links says their kind; only where it is one of a person's a process asks further.
- conntrack entries: only where they are asked for by name; they are many, and no whole look needs them.
- whether conntrack's table is full: of nodes, by two numbers.
- processes and files: one walk for the whole cluster.
- health: asked of every exechealthz, and of the balancer's checks, whenever listeners are looked at.

A namespace that does not bear the mark is not there.
"""

import errno
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cached_property
from struct import Struct
from typing import NamedTuple

from nsnet import names
from nsnet.errors import MachineError
from nsnet.kernel import (
    conntrack,
    ethtool,
    files,
    health,
    ipset,
    netns,
    process,
    qdisc,
    refusals,
    rtnl,
    sockdiag,
    sysctl,
    tracking,
)
from nsnet.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Message, Netlink, Request, attributes
from nsnet.state import (
    KINDS,
    SYSCTLS,
    Family,
    IpSet,
    Key,
    Listener,
    Netns,
    Process,
    Scope,
    Sysctl,
    Value,
    Veth,
    far_end,
)

_LINKS = {"netns", "link", "port", "qdisc", "segments"}
_DUMPS: Mapping[str, Request] = {
    "address": rtnl.GET_ADDRESSES,
    "neighbour": rtnl.GET_NEIGHBOURS,
    "route": rtnl.GET_ROUTES,
}
_ROUTE_KINDS = {*_LINKS, *_DUMPS, "fdb", "wireguard", "offload"}

_NFT_GETTABLE = (10 << 8) | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_NFGENMSG = Struct("=BBH")
_NF_FAMILIES: Mapping[int, Family] = {2: "ip", 10: "ip6"}  # iptables' and ip6tables' tables

_FEW = 100  # namespaces, up to which their files are looked for one by one
_WORKERS = max(2, os.cpu_count() or 1)


class Look(NamedTuple):
    """What rtnetlink says of one namespace; veth ends are not matched yet."""

    netns: str
    links: rtnl.Interfaces
    values: list[Value]


class Seen:
    """What several calls of `read` share: the links of namespaces that were looked at, and who runs in all of them."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self.looks: dict[str, Look] = {}

    @cached_property
    def programs(self) -> dict[str, frozenset[Process]]:
        return process.observe(self._cluster)


def observe(cluster: str, only: Scope | None = None) -> dict[str, frozenset[Value]]:
    """The cluster's namespaces that bear its mark, each with its values.

    With `only`: of those namespaces the values under those keys (an empty set: all; a key of one word: all of that
    kind), and no more is read than that takes. Raises MachineError without the rights to enter namespaces.
    """
    try:
        return read(cluster, only, netns.candidates(cluster), Seen(cluster))
    except FileNotFoundError:  # a namespace went away while we looked: once more, without it
        return read(cluster, only, netns.candidates(cluster), Seen(cluster))
    except PermissionError as error:
        raise MachineError(f"cannot look into network namespaces: {error.strerror}", "run it as root") from error


def read(
    cluster: str, only: Scope | None, there: Collection[str], seen: Seen, *, trusting: bool = False
) -> dict[str, frozenset[Value]]:
    """`observe` among the namespaces that are `there`; `seen` takes part in what is known, and adds to it.

    `trusting`: of what is behind a bridge's port its own word is taken, and nobody looks at the other end; nor at the
    port's sysctls, for a packet comes in by the bridge.
    """
    wanted = {name: _kinds(only, name) for name in there if only is None or name in only}
    more: dict[str, list[Value]] = {}
    with ThreadPoolExecutor(_WORKERS) as pool:
        filters: list[tuple[str, Future[frozenset[Value]]]] = []
        for name in sorted(wanted, key=_nodes_first):
            look, further = _look(name, names.mark(cluster), wanted[name])
            if look is None:
                continue
            seen.looks[name], more[name] = look, [*further, *_devices(look, wanted[name])]
            keys = frozenset() if only is None else only[name]
            if "chain" in wanted[name] and (families := _families(name, keys)):
                filters.append((name, pool.submit(_read_chains, name, keys, families)))
            if "nft" in wanted[name] and (keys or names.kind_of(name) != "pod"):
                filters.append((name, pool.submit(_read_nft, name, keys)))
            if "sysctl" in wanted[name]:
                more[name] += _sysctls(name, keys, [one.name for one in look.links.values() if trusting and one.port])
            if "legacy" in wanted[name] and (keys or names.kind_of(name) != "pod"):
                more[name] += _read_legacy(name)
            if "ipset" in wanted[name] and (keys or names.kind_of(name) == "node"):
                more[name] += _read_sets(name, keys)
            if "tracking" in wanted[name] and names.kind_of(name) == "node":
                more[name] += tracking.read(name)
            more[name] += conntrack.read(name, _protocols(keys)) if "conntrack" in wanted[name] else ()
        _add_files_and_processes(cluster, seen, wanted, more)
        _add_links(cluster, seen.looks, there, wanted, more, trusting=trusting)
        for name, future in filters:
            more[name] += future.result()
    return {name: _chosen(seen.looks[name].values + values, only, name) for name, values in more.items()}


def _kinds(only: Scope | None, name: str) -> frozenset[str]:
    """Which kinds of value must be read."""
    keys = frozenset[Key]() if only is None else only[name]
    everything = KINDS - {"offload"} if names.kind_of(name) == "pod" else KINDS
    return frozenset(key[0] for key in keys) if keys else everything


def _nodes_first(name: str) -> tuple[bool, str]:
    """Their iptables processes then run while pods are read."""
    return names.kind_of(name) == "pod", name


def _chosen(values: Iterable[Value], only: Scope | None, name: str) -> frozenset[Value]:
    if only is None or not only[name]:
        return frozenset(values)
    keys = only[name]
    return frozenset(value for value in values if value.key in keys or value.key[:1] in keys or value.key[:2] in keys)


# --- one namespace ----------------------------------------------------------------------------------------------------


def _look(name: str, mark: str, kinds: frozenset[str]) -> tuple[Look | None, frozenset[Listener]]:
    """Reads a namespace by netlink; None when it is not ours, or gone."""
    with ExitStack() as stack:
        try:
            with netns.inside(name):
                route = stack.enter_context(Netlink(NETLINK_ROUTE))
                diag = stack.enter_context(sockdiag.socket()) if "listener" in kinds else None
        except FileNotFoundError:
            return None, frozenset()
        except OSError as error:
            if error.errno == errno.EINVAL:  # a name that leads to no namespace
                return None, frozenset()
            raise
        look = _read_route(name, mark, route, kinds)
        if look is None or diag is None:
            return look, frozenset()
        return look, sockdiag.listeners(diag)


def _read_route(name: str, mark: str, route: Netlink, kinds: frozenset[str]) -> Look | None:
    if not _ROUTE_KINDS.intersection(kinds):
        lo = rtnl.interface(route.get(rtnl.GET_LO))
        return Look(name, {}, []) if lo.alias == mark else None
    asked = [kind for kind in _DUMPS if kind in kinds or (kind == "route" and "address" in kinds)]
    heard, *answers = route.dump([rtnl.GET_LINKS, *(_DUMPS[kind] for kind in asked)])
    told = dict(zip(asked, answers, strict=True))
    links = rtnl.interfaces(heard)
    if links[rtnl.LO].alias != mark:
        return None
    values: list[Value] = [Netns(mark), *rtnl.ports(links), *rtnl.segments(links)]
    values += qdisc.read(name, {one.name for one in links.values() if one.qdisc in qdisc.OURS})
    for kind in kinds & told.keys():
        values += _decode(kind, told, links)
    if "fdb" in kinds:
        tunnels = [rtnl.get_fdb(one.number) for one in links.values() if one.kind == "vxlan"]
        for messages in route.dump(tunnels) if tunnels else ():
            values += rtnl.fdb(messages, links)
    return Look(name, links, values)


def _decode(kind: str, told: Mapping[str, list[Message]], links: rtnl.Interfaces) -> Iterator[Value]:
    match kind:
        case "address":
            yield from rtnl.addresses(told["address"], told["route"], links)
        case "neighbour":
            yield from rtnl.neighbours(told["neighbour"], links)
        case _:
            yield from rtnl.routes(told["route"], links)


def _devices(look: Look, kinds: Collection[str]) -> Iterator[Value]:
    """What devices tell by ways of their own."""
    asked = ("wireguard", "veth", "vxlan")
    by_kind = {kind: [one.name for one in look.links.values() if one.kind == kind] for kind in asked}
    if "wireguard" in kinds and by_kind["wireguard"]:
        from nsnet.kernel import wireguard

        yield from wireguard.read(look.netns, by_kind["wireguard"])
    if "offload" in kinds and by_kind["veth"]:
        cables = by_kind["veth"] if names.kind_of(look.netns) == "fabric" else ["eth0"]
        yield from ethtool.read(look.netns, {*set(cables) & set(by_kind["veth"]), *by_kind["vxlan"]})


def _sysctls(name: str, keys: frozenset[Key], but: Collection[str]) -> frozenset[Sysctl]:
    some = [key[1] for key in keys if key[0] == "sysctl" and len(key) > 1]
    all_of_them = not keys or len(some) < _count(keys, "sysctl")
    wanted = (*SYSCTLS.get(names.kind_of(name), ()), *sysctl.further(name)) if all_of_them else some
    return sysctl.read(name, wanted, but) if wanted else frozenset()


def _count(keys: Iterable[Key], kind: str) -> int:
    return sum(key[0] == kind for key in keys)


# --- chains -----------------------------------------------------------------------------------------------------------


def _families(name: str, keys: frozenset[Key]) -> frozenset[Family]:
    """Of which families it is worth a process to read them."""
    asked = [key for key in keys if key[0] == "chain"]
    if asked and all(len(key) > 1 for key in asked):
        return frozenset(family for family in _NF_FAMILIES.values() if any(key[1] == family for key in asked))
    return with_tables(name) if asked or names.kind_of(name) != "pod" else frozenset()


def with_tables(name: str) -> frozenset[Family]:
    """The families that have any table."""
    with netns.inside(name):
        found = {family for family, _ in _nft_tables()}
        return frozenset(found | {family for family, _ in _legacy_tables()})


def tables(name: str, family: Family) -> frozenset[str]:
    """The tables of a family that iptables reads; of its older build there where that is the machine's choice."""
    from nsnet.kernel.iptables import HOOKS, is_nft

    with netns.inside(name):
        every = _nft_tables() if is_nft(family) else _legacy_tables()
        return frozenset(table for there, table in every if there == family and table in HOOKS)


def _nft_tables() -> Iterator[tuple[Family, str]]:
    """Iptables' and ip6tables', and any other of their families."""
    with suppress(OSError):  # a kernel without nf_tables
        with Netlink(NETLINK_NETFILTER) as netfilter:
            (messages,) = netfilter.dump([Request(_NFT_GETTABLE, 0, _NFGENMSG.pack(0, 0, 0))])
        for _, data, start, end in messages:
            if data[start] in _NF_FAMILIES:
                table = attributes(data, start + 4, end)[1]
                yield _NF_FAMILIES[data[start]], table.rstrip(b"\0").decode(errors="replace")


def _legacy_tables() -> Iterator[tuple[Family, str]]:
    from nsnet.kernel.iptables import LEGACY_TABLES

    for family, path in LEGACY_TABLES.items():
        with suppress(OSError):  # a kernel without the legacy tables
            yield from ((family, table) for table in path.read_text().split())


def _read_chains(name: str, keys: frozenset[Key], families: frozenset[Family]) -> frozenset[Value]:
    from nsnet.kernel import iptables

    asked = [key for key in keys if key[0] == "chain"]
    if not asked or any(len(key) == 1 for key in asked):
        return iptables.read(name, None, sorted(families))
    return frozenset().union(*(
        iptables.read(name, frozenset((key[2], key[3]) for key in asked if key[1] == family), (family,))
        for family in families
    ))  # fmt: skip


def _read_nft(name: str, keys: frozenset[Key]) -> frozenset[Value]:
    from nsnet.kernel import nftables

    return nftables.read(name, frozenset(key for key in keys if key[0] == "nft") if keys else None)


def _read_legacy(name: str) -> frozenset[Value]:
    from nsnet.kernel import legacy

    return legacy.read(name)


def _read_sets(name: str, keys: frozenset[Key]) -> frozenset[IpSet]:
    some = frozenset(key[1] for key in keys if key[0] == "ipset" and len(key) > 1)
    return ipset.read(name, some if keys and len(some) == _count(keys, "ipset") else None)


def _protocols(keys: frozenset[Key]) -> frozenset[str]:
    """Of conntrack entries: those that are named, else UDP, which is what kube-proxy looks after."""
    return frozenset(key[1] for key in keys if key[0] == "conntrack" and len(key) > 1) or frozenset({"udp"})


# --- the whole cluster ------------------------------------------------------------------------------------------------


def _add_files_and_processes(
    cluster: str, seen: Seen, wanted: Mapping[str, frozenset[str]], more: dict[str, list[Value]]
) -> None:
    heard = [name for name in more if "listener" in wanted[name] and names.kind_of(name) == "node"]
    for name, ports in health.balanced(cluster).items() if heard else ():
        if name in heard:
            more[name] += ports
    listened = {name for name in more if "listener" in wanted[name] and any(map(_is_health_port, more[name]))}
    proxies = {name for name in more if "listener" in wanted[name] and refusals.may_be(name)}
    asked = {name for name in more if "process" in wanted[name]}
    if asked or listened or proxies:
        programs = seen.programs
        for name in asked & programs.keys():
            more[name] += programs[name]
        for name, well in health.observe({name: programs[name] for name in listened & programs.keys()}).items():
            more[name].append(well)
        for name, refusal in refusals.observe({name: programs[name] for name in proxies & programs.keys()}).items():
            more[name].append(refusal)
    named = [name for name in more if "file" in wanted[name]]
    if named:
        everything = len(named) > _FEW
        for name, found in files.observe(cluster, None if everything else named).items():
            if name in more and "file" in wanted[name]:
                more[name] += found


def _is_health_port(value: Value) -> bool:
    """Could an exechealthz listen there?"""
    return isinstance(value, Listener) and (value.protocol, value.port) == ("TCP", 8080)


def _add_links(
    cluster: str,
    looks: dict[str, Look],
    there: Collection[str],
    wanted: Mapping[str, frozenset[str]],
    more: dict[str, list[Value]],
    *,
    trusting: bool,
) -> None:
    """Matches the ends of pairs and adds the links of every namespace whose links were asked for."""
    asked = [looks[name] for name in more if _LINKS.intersection(wanted[name])]
    ends = _ends([*asked, *_further(cluster, asked, looks, there, trusting=trusting)])
    for look in asked:
        for one in look.links.values():
            trusted = trusting and one.port and one.alias.rpartition("/")[0] in there
            value = rtnl.link(look.links, one, one.alias if trusted else _peer(look.netns, one, ends))
            if value is not None:
                more[look.netns].append(value)


_Ends = dict[str, tuple[str, rtnl.Interface]]


def _ends(looks: Iterable[Look]) -> _Ends:
    """Every veth, under the alias by which its other end names it."""
    return {
        rtnl.alias_of(f"{look.netns}/{one.name}"): (look.netns, one)
        for look in looks
        for one in look.links.values()
        if one.kind == "veth"
    }


def _peer(name: str, one: rtnl.Interface, ends: _Ends) -> str:
    """The other end as `netns/device`, when both ends say so; empty otherwise. `/BRIDGE`: see `state.Veth`."""
    if one.kind == "veth" and one.alias.startswith("/"):
        return one.alias if _is_plugged_in(one) else ""
    other_netns, other = ends.get(one.alias, ("", None))
    if one.kind != "veth" or other is None:
        return ""
    mutual = other.peer == one.number and one.peer == other.number
    return f"{other_netns}/{other.name}" if mutual and other.alias == rtnl.alias_of(f"{name}/{one.name}") else ""


def _is_plugged_in(one: rtnl.Interface) -> bool:
    """Is the other end, in the machine's own namespace, up and a port of the bridge that the alias names?"""
    far = far_end(Veth(one.name, one.alias, one.mac))
    with Netlink(NETLINK_ROUTE) as route:
        own = {link.name: link for link in rtnl.interfaces(route.dump([rtnl.GET_LINKS])[0]).values()}
    end, bridge = own.get(far), own.get(one.alias[1:])
    return end is not None and bridge is not None and end.peer == one.number and end.master == bridge.number and end.up


def _further(
    cluster: str,
    asked: Iterable[Look],
    looks: dict[str, Look],
    there: Collection[str],
    *,
    trusting: bool,
) -> Iterator[Look]:
    """The links of namespaces that were not asked for, but hold the other end of a pair of those that were."""
    seen = {look.netns for look in asked}
    cables = (one for look in asked for one in look.links.values() if one.kind == "veth")
    aliases = {one.alias for one in cables if not (trusting and one.port and "/" in one.alias)}
    named = {alias.rpartition("/")[0] for alias in aliases}
    shortened = any(alias and "/" not in alias for alias in aliases)
    for name in there:
        if name in seen or not (name in named or shortened):
            continue
        look = looks.get(name)
        if look is None or not look.links:
            look, _ = _look(name, names.mark(cluster), frozenset(_LINKS))
        if look is not None:
            looks[name] = look
            yield look
