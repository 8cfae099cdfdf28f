"""Completes the Cluster document: its networks with their subnets, its nodes and hosts with their addresses.

The families of podSubnet are the cluster's. Every network has a subnet of each of them (and of what it says besides),
and every machine an address of each family of its network: `address` is of the cluster's first one, the others are
among its `addresses`.

Defaults (INTERFACE.md): nodes node1 and node2 in network `nodes` 172.18.0.0/16, as kind's; further networks take the
next /16; without `hosts` there is one, `client`, in `outside` 203.0.113.0/24 (RFC 5737). A default gives way to what is
said: it never overlaps another range. The router owns the first address of every network; machines without an address
take the next free ones in order, nodes before hosts. What is there stays: an address once given is in the document.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import msgspec

from nsnet import model
from nsnet.control import flannel, machines
from nsnet.control.addresses import NOWHERE, Range, around, number, ranges, span, subnet, subnet_or_none, text
from nsnet.control.ipfamilies import LARGEST, SUBNETS
from nsnet.control.wrong import cluster_error, meant, some
from nsnet.model import (
    API_FAMILIES,
    Cluster,
    Family,
    HostEntry,
    Key,
    Network,
    Networking,
    Node,
    NodeEntry,
    families_of,
    family_of,
    subnets,
)

NODES, OUTSIDE, CLIENT = "nodes", "outside", "client"
ROUTER = "router"  # `<cluster>.fabric.router` is the router's namespace, so no switch may be called so
ETCD = "etcd"  # the same of `up --store etcd`
_NUMBERS = (*range(18, 32), 17, 16)
INSIDE: Mapping[Family, tuple[str, ...]] = {
    "ip": tuple(f"172.{number}.0.0/16" for number in _NUMBERS),
    "ip6": tuple(f"fd00:172:{number}::/64" for number in _NUMBERS),
}
OUTER: Mapping[Family, tuple[str, ...]] = {
    "ip": ("203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24"),  # RFC 5737: documentation
    "ip6": ("2001:db8:113::/64", "2001:db8:100::/64", "2001:db8:2::/64"),  # RFC 3849
}
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NODE = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")

Entry = TypeVar("Entry", NodeEntry, HostEntry)
Ranges = tuple[Range, ...]  # of one network or field: one per family


def completed(cluster: Cluster, declared: Mapping[Key, Node]) -> Cluster:
    """The whole document; the same object where nothing was missing. `declared`: Node objects of the manifests.

    Raises ObjectError for what cannot be: overlapping ranges, addresses outside their network or taken twice, unknown
    networks, ends of links and so on.
    """
    cluster = _networking(cluster)
    nodes, hosts = entries(cluster, declared), hosts_of(cluster)
    _names(cluster, nodes, hosts)
    networks = networks_of(cluster)
    at = {network.name: ranges(network.subnet) for network in networks}
    nodes = tuple(_placed(cluster, entry, at, networks[0].name, f"nodes[{i}]") for i, entry in enumerate(nodes))
    nodes = machines.placed(cluster, nodes)
    home = OUTSIDE if OUTSIDE in at else networks[0].name
    hosts = tuple(_placed(cluster, entry, at, home, f"hosts[{i}]") for i, entry in enumerate(hosts))
    nodes, hosts = _addressed(cluster, nodes, hosts, at)
    _links(cluster, nodes, hosts, at)
    underlay = msgspec.structs.replace(cluster.underlay, networks=machines.carried(cluster, networks))
    whole = msgspec.structs.replace(cluster, underlay=underlay, nodes=nodes, hosts=hosts)
    return cluster if whole == cluster else whole


def hosts_of(cluster: Cluster) -> tuple[HostEntry, ...]:
    """The hosts outside the cluster: one, where the document does not say."""
    return (HostEntry(CLIENT),) if cluster.hosts is None else cluster.hosts


# --- pods' and Services' ranges ---------------------------------------------------------------------------------------


def with_subnets(cluster: Cluster) -> Cluster:
    """Where only one of podSubnet and serviceSubnet is said, the default of the other has its families."""
    said, plain = cluster.networking, Networking()
    written = cluster.raw.get("networking") or {}
    names = [name for name in SUBNETS if name in written or getattr(said, name) != getattr(plain, name)]
    if len(names) != 1:
        return cluster
    families = list(dict.fromkeys(map(family_of, subnets(getattr(said, names[0])))))
    missing = {name: ",".join(known[one] for one in families) for name, known in SUBNETS.items() if name not in names}
    networking = msgspec.structs.replace(said, **missing)
    return cluster if networking == said else msgspec.structs.replace(cluster, networking=networking)


def _networking(cluster: Cluster) -> Cluster:
    cluster = with_subnets(cluster)
    said = cluster.networking
    pods = _ranges(cluster, "podSubnet", said.podSubnet)
    services = _ranges(cluster, "serviceSubnet", said.serviceSubnet)
    _same_families(cluster, pods, services)
    for each in services:
        _service_size(cluster, each)
    networking = msgspec.structs.replace(said, clusterDNS=_dns(cluster, services))
    net_conf = flannel.net_conf(cluster, pods)
    if networking == said and net_conf == cluster.flannel:
        return cluster
    return msgspec.structs.replace(cluster, networking=networking, flannel=net_conf)


def _ranges(cluster: Cluster, field: str, said: str) -> Ranges:
    """One range, or one of each family."""
    found = [subnet_or_none(part) for part in subnets(said)]
    whole = tuple(one for one in found if one is not None)
    if not whole or len(whole) < len(found) or len({one.family for one in whole}) < len(whole):
        hint = "as 10.244.0.0/16, or 10.244.0.0/16,fd00:10:244::/56 for both families"
        raise cluster_error(cluster, f"networking.{field}", f'"{said}" is not a subnet', hint)
    return whole


def _same_families(cluster: Cluster, pods: Ranges, services: Ranges) -> None:
    """A Service of a family without pods would reach nobody; and there can be only one first family."""
    if [one.family for one in pods] == [one.family for one in services]:
        return
    words = {
        name: " and ".join(API_FAMILIES[one.family] for one in found) for name, found in (("p", pods), ("s", services))
    }
    message = f"is {words['s']}, and podSubnet {words['p']}"
    fitting = ",".join(SUBNETS["serviceSubnet"][one.family] for one in pods)
    hint = f"the same families in the same order, as serviceSubnet: {fitting}"
    raise cluster_error(cluster, "networking.serviceSubnet", message, hint)


def _service_size(cluster: Cluster, services: Range) -> None:
    field = "networking.serviceSubnet"
    if services.size < 16:
        raise cluster_error(cluster, field, f"{services} is too small", f"at least a /{services.bits - 4}")
    if services.family == "ip6" and services.length < LARGEST:
        hint = f"an IPv6 serviceSubnet is at most a /{LARGEST}: write {text(services.first)}/112"
        raise cluster_error(cluster, field, f"{services} is too large", hint)


def _dns(cluster: Cluster, services: Ranges) -> str:
    """clusterDNS, by default the tenth address of the Services' first range, as kubeadm takes it."""
    said, default = cluster.networking.clusterDNS, text(services[0].first + 10)
    if not said:
        return default
    if not any(number(said) in one.hosts() for one in services):
        raise cluster_error(
            cluster, "networking.clusterDNS", f"{said} is outside serviceSubnet {_listed(services)}",
            f"by default it is {default}: leave it out",
        )  # fmt: skip
    return said


def _listed(every: Ranges) -> str:
    return ",".join(map(str, every))


# --- who is there -----------------------------------------------------------------------------------------------------


def entries(cluster: Cluster, declared: Mapping[Key, Node]) -> tuple[NodeEntry, ...]:
    """The nodes the document says, and after them those that only stand as Node objects, by name."""
    said = cluster.nodes
    listed = said if isinstance(said, tuple) else tuple(NodeEntry(f"node{n}") for n in range(1, said + 1))
    names = {entry.name for entry in listed}
    more = [node for key, node in sorted(declared.items()) if key.name not in names]
    networks = networks_of(cluster) if more else ()
    return (*listed, *(_declared(networks, node) for node in more))


def _declared(networks: Sequence[Network], node: Node) -> NodeEntry:
    """A Node object as an entry; it keeps its addresses if they lie in one of the networks."""
    for known in networks:
        there = ranges(known.subnet)
        kept = tuple(address for address in model.internal_ips(node) if _may_have(there, number(address)))
        if kept and kept[0] == model.internal_ip(node):
            return NodeEntry(node.metadata.name, known.name, kept[0], kept[1:])
    network = model.annotation(node, "nsnet/network")
    return NodeEntry(node.metadata.name, network if network in _names_of(networks) else "")


def _may_have(network: Ranges, address: int) -> bool:
    """Could a machine have it, and not the router?"""
    one = around(address, network)
    return one is not None and address in one.hosts() and address != one.first + 1


def _names_of(networks: Sequence[Network]) -> set[str]:
    return {network.name for network in networks}


def _names(cluster: Cluster, nodes: Sequence[NodeEntry], hosts: Sequence[HostEntry]) -> None:
    """Names that can be names, none of them twice. A node may be called as in Kubernetes, a DNS name with dots."""
    if not nodes:
        raise cluster_error(cluster, "nodes", "there is no node", "a cluster has at least one")
    seen: dict[str, str] = {}
    sides: tuple[tuple[str, Sequence[Any], re.Pattern[str]], ...] = (("nodes", nodes, _NODE), ("hosts", hosts, _LABEL))
    for field, items, pattern in sides:
        for index, item in enumerate(items):
            where = f"{field}[{index}].name"
            if not pattern.fullmatch(item.name):
                hint = "lower-case letters, digits and -, beginning and ending with a letter or digit"
                raise cluster_error(cluster, where, f'"{item.name}" is not a DNS {_form(field)}', hint)
            if item.name in seen:
                raise cluster_error(
                    cluster, where, f'"{item.name}" is given twice, in {seen[item.name]} too', "rename one"
                )
            seen[item.name] = field


def _form(field: str) -> str:
    return "name" if field == "nodes" else "label"


# --- networks ---------------------------------------------------------------------------------------------------------


def networks_of(cluster: Cluster) -> tuple[Network, ...]:
    """All networks with their subnets; `outside` is added where a host is in it. Raises ObjectError."""
    networks = list(cluster.underlay.networks) or [Network(NODES)]
    if OUTSIDE not in _names_of(networks) and any(host.network in ("", OUTSIDE) for host in hosts_of(cluster)):
        networks.append(Network(OUTSIDE))
    _network_names(cluster, networks)
    cluster = with_subnets(cluster)
    said = [_segments(cluster, index, network) for index, network in enumerate(networks)]
    taken = [one for segments in said for one in segments]
    for name in SUBNETS:
        taken += _ranges(cluster, name, getattr(cluster.networking, name))
    found = tuple(_with_subnet(cluster, network, taken) for network in networks)
    _overlaps(cluster, found)
    return found


def _network_names(cluster: Cluster, networks: Sequence[Network]) -> None:
    seen: set[str] = set()
    for index, network in enumerate(networks):
        field = f"underlay.networks[{index}].name"
        if network.name == ROUTER:
            raise cluster_error(cluster, field, "router is the name of what joins the networks", "choose another name")
        if network.name == ETCD:
            raise cluster_error(cluster, field, "etcd is the name of the cluster's own etcd", "choose another name")
        if not _LABEL.fullmatch(network.name):
            raise cluster_error(
                cluster, field, f'"{network.name}" is not a DNS label', "lower-case letters, digits and -"
            )
        if network.name in seen:
            raise cluster_error(cluster, field, f'"{network.name}" is given twice', "each network has its own name")
        seen.add(network.name)


def _segments(cluster: Cluster, index: int, network: Network) -> Ranges:
    field = f"underlay.networks[{index}].subnet"
    found: list[Range] = []
    for part in subnets(network.subnet):
        one = subnet_or_none(part)
        if one is None:
            raise cluster_error(cluster, field, f'"{part}" is not a subnet', "as 172.18.0.0/24")
        if one.length > one.bits - 2:
            hint = f"the router takes one address: at least a /{one.bits - 2}"
            raise cluster_error(cluster, field, f"{one} is too small", hint)
        if any(one.family == other.family for other in found):
            hint = "one subnet of each family, as 172.18.0.0/16,fd00:172:18::/64"
            raise cluster_error(cluster, field, f"{part} is the second {API_FAMILIES[one.family]} subnet", hint)
        found.append(one)
    return tuple(found)


def _with_subnet(cluster: Cluster, network: Network, taken: list[Range]) -> Network:
    """The network with a subnet of each family of the cluster, by default the next that overlaps nothing in `taken`."""
    said = subnets(network.subnet)
    there = set(map(family_of, said))
    more = tuple(_free_subnet(cluster, network, one, taken) for one in families_of(cluster) if one not in there)
    return msgspec.structs.replace(network, subnet=",".join((*said, *more))) if more else network


def _free_subnet(cluster: Cluster, network: Network, family: Family, taken: list[Range]) -> str:
    for cidr in (OUTER if network.name == OUTSIDE else INSIDE)[family]:
        found = subnet(cidr)
        if not any(found.overlaps(other) for other in taken):
            taken.append(found)
            return cidr
    message = f"no default {API_FAMILIES[family]} subnet is free for network {network.name}"
    raise cluster_error(cluster, "underlay.networks", message, "give it a `subnet:`")


def _overlaps(cluster: Cluster, networks: Sequence[Network]) -> None:
    """Every two ranges are apart. Sorted by their beginning, an overlap is one of neighbours."""
    said = [(getattr(cluster.networking, name), f"networking.{name}", name) for name in SUBNETS]
    said += [
        (network.subnet, f"underlay.networks[{index}].subnet", f"network {network.name}")
        for index, network in enumerate(networks)
    ]
    every = [(one, field, what) for pair, field, what in said for one in ranges(pair)]
    every.sort(key=lambda item: item[0])
    for (one, _, what), (two, field, other) in pairwise(every):
        if one.overlaps(two):
            raise cluster_error(cluster, field, f"{other} {two} overlaps {what} {one}", "the ranges must be apart")


# --- addresses --------------------------------------------------------------------------------------------------------


def _placed(cluster: Cluster, entry: Entry, at: Mapping[str, Ranges], home: str, field: str) -> Entry:
    """The entry with its network: the one it says, the one its address is in, or `home`."""
    name = entry.network or _around(entry.address, at) or home
    if name not in at:
        hint = f"networks: {some(at)}"
        raise cluster_error(cluster, f"{field}.network", f'there is no network "{name}"{meant(name, at)}', hint)
    return entry if name == entry.network else msgspec.structs.replace(entry, network=name)


def _around(address: str, at: Mapping[str, Ranges]) -> str:
    return next((name for name, network in at.items() if around(number(address), network)), "")


class _Machine(NamedTuple):
    field: str
    label: str  # node node1
    entry: NodeEntry | HostEntry


def _addressed(
    cluster: Cluster, nodes: Sequence[NodeEntry], hosts: Sequence[HostEntry], at: Mapping[str, Ranges]
) -> tuple[tuple[NodeEntry, ...], tuple[HostEntry, ...]]:
    """Every machine with its addresses: first what is said, then the next free ones in order."""
    every = [_Machine(f"nodes[{i}]", f"node {entry.name}", entry) for i, entry in enumerate(nodes)]
    every += [_Machine(f"hosts[{i}]", f"host {entry.name}", entry) for i, entry in enumerate(hosts)]
    routers = {one.first + 1: name for name, network in at.items() for one in network}
    taken = {address: f"the router, in network {name}" for address, name in routers.items()}
    for machine in every:
        _take(cluster, machine, at, taken)
    pools = [span(said) for said in cluster.loadBalancer.addresses or ()]  # addresses kept for load balancers
    free = {(name, one.family): _free(one, taken, pools) for name, network in at.items() for one in network}
    return (
        tuple(_with_addresses(cluster, entry, free, at, f"nodes[{i}]") for i, entry in enumerate(nodes)),
        tuple(_with_addresses(cluster, entry, free, at, f"hosts[{i}]") for i, entry in enumerate(hosts)),
    )


def _take(cluster: Cluster, machine: _Machine, at: Mapping[str, Ranges], taken: dict[int, str]) -> None:
    """Notes the addresses that a machine says; refuses what is not in its network, or somebody else's."""
    field, label, entry = machine
    if entry.address:
        network = at[entry.network]
        if not any(number(entry.address) in one.hosts() for one in network):
            message = f"{entry.address} is not an address in network {entry.network} {_listed(network)}"
            first = " and ".join(text(one.first + 2) for one in network)
            hint = f"the first one there is {first}; underlay.networks says each network's subnet"
            raise cluster_error(cluster, f"{field}.address", message, hint)
        _claim(cluster, f"{field}.address", entry.address, label, taken)
    for index, further in enumerate(entry.addresses):
        where = f"{field}.addresses[{index}]"
        if number(further) == NOWHERE:
            raise cluster_error(cluster, where, f"{further} is not an address", "as 192.168.1.2, or fd00:192::2")
        if family_of(further) not in {one.family for one in at[entry.network]}:
            message = f"{further}: network {entry.network} has no {API_FAMILIES[family_of(further)]} subnet"
            raise cluster_error(cluster, where, message, "give it one in underlay.networks, as a pair of subnets")
        for name in SUBNETS:
            if around(number(further), ranges(getattr(cluster.networking, name))):
                raise cluster_error(cluster, where, f"{further} lies in {name}", "a node's address is outside of it")
        _claim(cluster, where, further, label, taken)


def _claim(cluster: Cluster, field: str, address: str, label: str, taken: dict[int, str]) -> None:
    holder = taken.setdefault(number(address), label)
    if holder is not label:
        raise cluster_error(
            cluster, field, f"{address} is taken by {holder}", "choose another address, or leave it out"
        )


def _free(network: Range, taken: Mapping[int, str], pools: Sequence[tuple[int, int]]) -> Iterator[str]:
    for address in network.hosts():
        if address not in taken and not any(first <= address <= last for first, last in pools):
            yield text(address)


_Free = Mapping[tuple[str, Family], Iterator[str]]  # of each network and family


def _with_addresses(cluster: Cluster, entry: Entry, free: _Free, at: Mapping[str, Ranges], field: str) -> Entry:
    """The entry with an address of each family of its network."""
    network, wanted = at[entry.network], families_of(cluster)
    ordered = sorted(network, key=lambda one: wanted.index(one.family) if one.family in wanted else len(wanted))
    first = entry.address or _next(cluster, entry, ordered[0], free, field)
    there = [number(address) for address in (first, *entry.addresses)]
    missing = [one for one in ordered if not any(map(one.has, there))]
    given: tuple[str, ...] = tuple(_next(cluster, entry, one, free, field) for one in missing)
    if first == entry.address and not given:
        return entry
    return msgspec.structs.replace(entry, address=first, addresses=(*given, *entry.addresses))


def _next(cluster: Cluster, entry: NodeEntry | HostEntry, network: Range, free: _Free, field: str) -> str:
    address = next(free[entry.network, network.family], None)
    if address is None:
        message = f"no address is left for it in network {entry.network} {network}"
        hint = f"it has room for {network.size - 3} machines besides the router: choose a larger subnet"
        raise cluster_error(cluster, f"{field}.name", f'"{entry.name}": {message}', hint)
    return address


def _links(cluster: Cluster, nodes: Sequence[NodeEntry], hosts: Sequence[HostEntry], at: Mapping[str, Ranges]) -> None:
    """Each link is one that exists: between a node or a host and its network."""
    networks: defaultdict[str, set[str]] = defaultdict(set)
    every: list[NodeEntry | HostEntry] = [*nodes, *hosts]
    for entry in every:
        networks[entry.name].add(entry.network)
    for index, link in enumerate(cluster.underlay.links):
        field = f"underlay.links[{index}].between"
        known = [*networks, *at]
        for end in link.between:
            if end not in networks and end not in at:
                hint = f"nodes, hosts and networks: {some(known)}"
                raise cluster_error(cluster, field, f'there is no "{end}"{meant(end, known)}', hint)
        one, two = link.between
        if two not in networks.get(one, ()) and one not in networks.get(two, ()):
            hint = "a link is between a node (or host) and the network it is in"
            raise cluster_error(cluster, field, f"{one} and {two} are not joined by a link", hint)
