"""Completes the Cluster document: its networks with their subnets, its nodes and hosts with their addresses.

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
from nsnet.control import flannel
from nsnet.control.addresses import NOWHERE, Range, is_ipv6, number, span, subnet, subnet_or_none, text
from nsnet.control.wrong import cluster_error, meant, some
from nsnet.model import Cluster, HostEntry, Key, Network, Node, NodeEntry

NODES, OUTSIDE, CLIENT = "nodes", "outside", "client"
ROUTER = "router"  # `<cluster>.fabric.router` is the router's namespace, so no switch may be called so
INSIDE = tuple(f"172.{number}.0.0/16" for number in (*range(18, 32), 17, 16))
OUTER = ("203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24")  # RFC 5737: documentation
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NODE = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")

Entry = TypeVar("Entry", NodeEntry, HostEntry)


def completed(cluster: Cluster, declared: Mapping[Key, Node]) -> Cluster:
    """The whole document; the same object where nothing was missing. `declared`: Node objects of the manifests.

    Raises ObjectError for what cannot be: overlapping ranges, addresses outside their network or taken twice, unknown
    networks, ends of links and so on.
    """
    cluster = _networking(cluster)
    nodes, hosts = entries(cluster, declared), hosts_of(cluster)
    _names(cluster, nodes, hosts)
    networks = networks_of(cluster)
    at = {network.name: subnet(network.subnet) for network in networks}
    nodes = tuple(_placed(cluster, entry, at, networks[0].name, f"nodes[{i}]") for i, entry in enumerate(nodes))
    home = OUTSIDE if OUTSIDE in at else networks[0].name
    hosts = tuple(_placed(cluster, entry, at, home, f"hosts[{i}]") for i, entry in enumerate(hosts))
    nodes, hosts = _addressed(cluster, nodes, hosts, at)
    _links(cluster, nodes, hosts, at)
    underlay = msgspec.structs.replace(cluster.underlay, networks=networks)
    whole = msgspec.structs.replace(cluster, underlay=underlay, nodes=nodes, hosts=hosts)
    return cluster if whole == cluster else whole


def hosts_of(cluster: Cluster) -> tuple[HostEntry, ...]:
    """The hosts outside the cluster: one, where the document does not say."""
    return (HostEntry(CLIENT),) if cluster.hosts is None else cluster.hosts


# --- pods' and Services' ranges ---------------------------------------------------------------------------------------


def _networking(cluster: Cluster) -> Cluster:
    said = cluster.networking
    pods = _range(cluster, "podSubnet", said.podSubnet)
    services = _range(cluster, "serviceSubnet", said.serviceSubnet)
    if services.size < 16:
        raise cluster_error(cluster, "networking.serviceSubnet", f"{services} is too small", "at least a /28")
    networking = msgspec.structs.replace(said, clusterDNS=_dns(cluster, services))
    net_conf = flannel.net_conf(cluster, pods)
    if networking == said and net_conf == cluster.flannel:
        return cluster
    return msgspec.structs.replace(cluster, networking=networking, flannel=net_conf)


def _range(cluster: Cluster, field: str, said: str) -> Range:
    """The one IPv4 range. IPv6 and dual stack are read and refused as a whole: half of it would be a lie."""
    parts = [part.strip() for part in said.split(",") if part.strip()]
    four = [part for part in parts if not is_ipv6(part)]
    if len(four) != len(parts):
        hint = f"write {four[0]} alone" if four else "write an IPv4 subnet"
        raise cluster_error(cluster, f"networking.{field}", f"{said}: IPv6 is not emulated yet", hint)
    found = subnet_or_none(four[0]) if len(four) == 1 else None
    if found is None:
        raise cluster_error(cluster, f"networking.{field}", f'"{said}" is not a subnet', "as 10.244.0.0/16")
    return found


def _dns(cluster: Cluster, services: Range) -> str:
    """clusterDNS, by default the tenth address of the Services' range, as kubeadm takes it."""
    said = cluster.networking.clusterDNS
    if not said:
        return text(services.first + 10)
    if number(said) not in services.hosts():
        raise cluster_error(
            cluster, "networking.clusterDNS", f"{said} is outside serviceSubnet {services}", f"by default it is "
            f"{text(services.first + 10)}: leave it out",
        )  # fmt: skip
    return said


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
    """A Node object as an entry; it keeps its address if that lies in one of the networks."""
    address = model.internal_ip(node)
    for known in networks:
        there = subnet(known.subnet)
        if number(address) in there.hosts() and number(address) != there.first + 1:
            return NodeEntry(node.metadata.name, known.name, address)
    network = model.annotation(node, "nsnet/network")
    return NodeEntry(node.metadata.name, network if network in _names_of(networks) else "")


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
    taken = [_segment(cluster, index, network) for index, network in enumerate(networks) if network.subnet]
    taken += [_range(cluster, name, getattr(cluster.networking, name)) for name in ("podSubnet", "serviceSubnet")]
    found = tuple(_with_subnet(cluster, network, taken) for network in networks)
    _overlaps(cluster, found)
    return found


def _network_names(cluster: Cluster, networks: Sequence[Network]) -> None:
    seen: set[str] = set()
    for index, network in enumerate(networks):
        field = f"underlay.networks[{index}].name"
        if network.name == ROUTER:
            raise cluster_error(cluster, field, "router is the name of what joins the networks", "choose another name")
        if not _LABEL.fullmatch(network.name):
            raise cluster_error(
                cluster, field, f'"{network.name}" is not a DNS label', "lower-case letters, digits and -"
            )
        if network.name in seen:
            raise cluster_error(cluster, field, f'"{network.name}" is given twice', "each network has its own name")
        seen.add(network.name)


def _segment(cluster: Cluster, index: int, network: Network) -> Range:
    field = f"underlay.networks[{index}].subnet"
    if is_ipv6(network.subnet):
        raise cluster_error(cluster, field, f"{network.subnet}: IPv6 is not emulated yet", "write an IPv4 subnet")
    found = subnet_or_none(network.subnet)
    if found is None:
        raise cluster_error(cluster, field, f'"{network.subnet}" is not a subnet', "as 172.18.0.0/24")
    if found.length > 30:
        raise cluster_error(cluster, field, f"{found} is too small", "the router takes one address: at least a /30")
    return found


def _with_subnet(cluster: Cluster, network: Network, taken: list[Range]) -> Network:
    """The network with a subnet, by default the next one that overlaps nothing in `taken`, which it joins."""
    if network.subnet:
        return network
    candidates = OUTER if network.name == OUTSIDE else INSIDE
    for cidr in candidates:
        found = subnet(cidr)
        if not any(found.overlaps(other) for other in taken):
            taken.append(found)
            return msgspec.structs.replace(network, subnet=cidr)
    raise cluster_error(
        cluster, "underlay.networks", f"no default subnet is free for network {network.name}", "give it a `subnet:`"
    )


def _overlaps(cluster: Cluster, networks: Sequence[Network]) -> None:
    """Every two ranges are apart. Sorted by their beginning, an overlap is one of neighbours."""
    said = cluster.networking
    ranges = [
        (subnet(said.podSubnet), "networking.podSubnet", "podSubnet"),
        (subnet(said.serviceSubnet), "networking.serviceSubnet", "serviceSubnet"),
        *(
            (subnet(network.subnet), f"underlay.networks[{index}].subnet", f"network {network.name}")
            for index, network in enumerate(networks)
        ),
    ]
    ranges.sort(key=lambda item: item[0])
    for (one, _, what), (two, field, other) in pairwise(ranges):
        if one.overlaps(two):
            raise cluster_error(cluster, field, f"{other} {two} overlaps {what} {one}", "the ranges must be apart")


# --- addresses --------------------------------------------------------------------------------------------------------


def _placed(cluster: Cluster, entry: Entry, at: Mapping[str, Range], home: str, field: str) -> Entry:
    """The entry with its network: the one it says, the one its address is in, or `home`."""
    name = entry.network or _around(entry.address, at) or home
    if name not in at:
        hint = f"networks: {some(at)}"
        raise cluster_error(cluster, f"{field}.network", f'there is no network "{name}"{meant(name, at)}', hint)
    return entry if name == entry.network else msgspec.structs.replace(entry, network=name)


def _around(address: str, at: Mapping[str, Range]) -> str:
    return next((name for name, network in at.items() if network.has(number(address))), "")


class _Machine(NamedTuple):
    field: str
    label: str  # node node1
    entry: NodeEntry | HostEntry


def _addressed(
    cluster: Cluster, nodes: Sequence[NodeEntry], hosts: Sequence[HostEntry], at: Mapping[str, Range]
) -> tuple[tuple[NodeEntry, ...], tuple[HostEntry, ...]]:
    """Every machine with its address: first what is said, then the next free ones in order."""
    machines = [_Machine(f"nodes[{i}]", f"node {entry.name}", entry) for i, entry in enumerate(nodes)]
    machines += [_Machine(f"hosts[{i}]", f"host {entry.name}", entry) for i, entry in enumerate(hosts)]
    taken = {network.first + 1: f"the router, in network {name}" for name, network in at.items()}
    for machine in machines:
        _take(cluster, machine, at, taken)
    free = {name: _free(network, taken, _pools(cluster)) for name, network in at.items()}
    return (
        tuple(_with_address(cluster, entry, free, at, f"nodes[{i}]") for i, entry in enumerate(nodes)),
        tuple(_with_address(cluster, entry, free, at, f"hosts[{i}]") for i, entry in enumerate(hosts)),
    )


def _take(cluster: Cluster, machine: _Machine, at: Mapping[str, Range], taken: dict[int, str]) -> None:
    """Notes the addresses that a machine says; refuses what is not in its network, or somebody else's."""
    field, label, entry = machine
    if entry.address:
        network = at[entry.network]
        if number(entry.address) not in network.hosts():
            message = f"{entry.address} is not an address in network {entry.network} {network}"
            hint = f"the first one there is {text(network.first + 2)}; underlay.networks says each network's subnet"
            raise cluster_error(cluster, f"{field}.address", message, hint)
        _claim(cluster, f"{field}.address", entry.address, label, taken)
    for index, further in enumerate(entry.addresses if isinstance(entry, NodeEntry) else ()):
        where = f"{field}.addresses[{index}]"
        if number(further) == NOWHERE:
            raise cluster_error(cluster, where, f"{further} is not an IPv4 address", "IPv6 is not emulated yet")
        for name in ("podSubnet", "serviceSubnet"):
            if subnet(getattr(cluster.networking, name)).has(number(further)):
                raise cluster_error(cluster, where, f"{further} lies in {name}", "a node's address is outside of it")
        _claim(cluster, where, further, label, taken)


def _claim(cluster: Cluster, field: str, address: str, label: str, taken: dict[int, str]) -> None:
    holder = taken.setdefault(number(address), label)
    if holder is not label:
        raise cluster_error(
            cluster, field, f"{address} is taken by {holder}", "choose another address, or leave it out"
        )


def _pools(cluster: Cluster) -> list[tuple[int, int]]:
    """Addresses kept for load balancers."""
    return [span(said) for said in cluster.loadBalancer.addresses or () if not is_ipv6(said.partition("-")[0].strip())]


def _free(network: Range, taken: Mapping[int, str], pools: Sequence[tuple[int, int]]) -> Iterator[str]:
    for address in network.hosts():
        if address not in taken and not any(first <= address <= last for first, last in pools):
            yield text(address)


def _with_address(
    cluster: Cluster, entry: Entry, free: Mapping[str, Iterator[str]], at: Mapping[str, Range], field: str
) -> Entry:
    if entry.address:
        return entry
    address = next(free[entry.network], None)
    if address is None:
        network = at[entry.network]
        message = f"no address is left for it in network {entry.network} {network}"
        hint = f"it has room for {network.size - 3} machines besides the router: choose a larger subnet"
        raise cluster_error(cluster, f"{field}.name", f'"{entry.name}": {message}', hint)
    return msgspec.structs.replace(entry, address=address)


def _links(cluster: Cluster, nodes: Sequence[NodeEntry], hosts: Sequence[HostEntry], at: Mapping[str, Range]) -> None:
    """Each link is one that exists: between a node or a host and its network."""
    networks: defaultdict[str, set[str]] = defaultdict(set)
    machines: list[NodeEntry | HostEntry] = [*nodes, *hosts]
    for entry in machines:
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
