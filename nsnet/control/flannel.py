"""The subnet manager: every node has one subnet of podSubnet, written down as flannel's etcd backend does.

`net-conf.json`'s defaults and checks are flannel's (`pkg/subnet/config.go`): SubnetLen 24 where Network is a /22 or
larger, else Network + 2; SubnetMin the second subnet, because the first one's .0 would be the network's own address;
SubnetMax the last. A node keeps its subnet as long as that fits, whatever its address becomes. A new node takes the one
it says (`podCIDR`), the one of a lease that bears its address, the one its subnet.env says if nobody holds that, else
the first free one from SubnetMin in node order;
`allocation: random` chooses among the first hundred free ones as flannel does, by a hash instead of dice, so that
`plan` says what `up` does.

A lease that no node of the cluster owns (of a real flanneld on the same etcd, or a reservation) is left alone and its
subnet is not given away.

A WireGuard node's private key is the one thing that is no function of names: it is drawn once and kept, in a Secret
that the Node owns, and its public half stands in the lease (flannel keeps the key in /run/flannel/wgkey).

With IPv6 every node has a second subnet, of IPv6Network, in the same way: SubnetLen's default is 64 there, or Network +
2 where that is smaller than /62. The lease of both bears both names (facts/FLANNEL.md §2).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from nsnet import names
from nsnet.control.addresses import Range, number, ranges, subnet, subnet_or_none, text
from nsnet.control.table import Table, drop, of, owned_by, owner
from nsnet.control.wrong import cluster_error
from nsnet.errors import ObjectError
from nsnet.model import (
    API_FAMILIES,
    NO_SUBNET,
    Cluster,
    Family,
    Flannel,
    Key,
    Node,
    NodeEntry,
    ObjectMeta,
    SubnetLease,
    families_of,
    family_of,
    internal_ips,
    key_of,
    pod_cidrs,
    subnet_of,
)

CANDIDATES = 100  # how many free subnets flannel's dice have
LONGEST_DEVICE = 15  # IFNAMSIZ - 1
PREFIX = "flannel.alpha.coreos.com"


# --- net-conf.json ----------------------------------------------------------------------------------------------------


class _Form(NamedTuple):
    """What net-conf.json calls a family's things, and flannel's limits of them."""

    prefix: str  # of SubnetLen, SubnetMin, SubnetMax
    usual: int  # SubnetLen, where the network is large enough
    smallest: int  # a network's longest prefix
    unset: str


_FORMS: Mapping[Family, _Form] = {
    "ip": _Form("", 24, 28, "0.0.0.0"),  # noqa: S104 - flannel's word for unset
    "ip6": _Form("IPv6", 64, 124, "::"),
}


def net_conf(cluster: Cluster, networks: Sequence[Range]) -> Flannel:
    """The net-conf.json of flannel with SubnetLen, SubnetMin and SubnetMax of each family. Raises ObjectError."""
    found: dict[str, Any] = {}
    for network in networks:
        found |= _filled_in(cluster, network)
    there = {network.family for network in networks}
    if "ip6" in there:
        _device_name(cluster)
    _families(cluster, there)
    for family, name in API_FAMILIES.items():
        wanted = family in there
        _enabled(cluster, f"Enable{name}", wanted)
        if wanted is not (family == "ip"):  # flannel's default is IPv4 alone
            found[f"Enable{name}"] = wanted
    return msgspec.structs.replace(cluster.flannel, **found)


def _families(cluster: Cluster, there: set[Family]) -> None:
    """Ipip and udp know IPv4 alone; wireguard's Mode may ask for a family that is not there."""
    backend = cluster.flannel.Backend
    if backend.kind in {"ipip", "udp"} and there != {"ip"}:
        message = (
            f"backend {backend.kind} carries IPv4 alone, and networking.podSubnet is {cluster.networking.podSubnet}"
        )
        raise cluster_error(cluster, "flannel.Backend.Type", message, "vxlan, host-gw and wireguard carry both")
    needed: Mapping[str, Family] = {"ipv4": "ip", "ipv6": "ip6"}
    if backend.kind == "wireguard" and needed.get(backend.Mode, next(iter(there))) not in there:
        message = f"{backend.Mode} is not a family of networking.podSubnet {cluster.networking.podSubnet}"
        raise cluster_error(cluster, "flannel.Backend.Mode", message, "leave it out, or write auto")


def _device_name(cluster: Cluster) -> None:
    """IPv6's tunnel has a longer name, and a device's name ends at 15 characters."""
    backend = cluster.flannel.Backend
    name = f"flannel-v6.{backend.VNI}"
    if backend.kind == "vxlan" and len(name) > LONGEST_DEVICE:
        message = f"{name} is longer than a device's name may be"
        raise cluster_error(cluster, "flannel.Backend.VNI", message, "with IPv6 at most 9999")


def _enabled(cluster: Cluster, field: str, wanted: bool) -> None:
    said = getattr(cluster.flannel, field)
    if said is not None and said is not wanted:
        subnets = cluster.networking.podSubnet
        message = f"is {str(said).lower()}, and networking.podSubnet is {subnets}"
        raise cluster_error(cluster, f"flannel.{field}", message, "leave it out: it follows from podSubnet")


def _filled_in(cluster: Cluster, network: Range) -> dict[str, Any]:
    form = _FORMS[network.family]
    if network.length > form.smallest:
        hint = f"at least a /{form.smallest}, for four subnets"
        raise cluster_error(cluster, "networking.podSubnet", f"{network} is too small", hint)
    names = [f"{form.prefix}{name}" for name in ("SubnetLen", "SubnetMin", "SubnetMax")]
    length = getattr(cluster.flannel, names[0]) or max(form.usual, network.length + 2)
    if not network.length + 2 <= length <= network.bits - 2:
        hint = f"from {network.length + 2} (four subnets) to {network.bits - 2}"
        raise cluster_error(cluster, f"flannel.{names[0]}", f"{length} does not go with podSubnet {network}", hint)
    size = 1 << (network.bits - length)
    first = _bound(cluster, names[1], network.first + size, network, length)
    last = _bound(cluster, names[2], network.last + 1 - size, network, length)
    if first > last:
        hint = "SubnetMin is the first subnet that is given out, SubnetMax the last"
        raise cluster_error(cluster, f"flannel.{names[2]}", f"{text(last)} is less than SubnetMin {text(first)}", hint)
    return dict(zip(names, (length, text(first), text(last)), strict=True))


def _bound(cluster: Cluster, field: str, default: int, network: Range, length: int) -> int:
    said = getattr(cluster.flannel, field)
    if not said or said == _FORMS[network.family].unset:
        return default
    at = number(said)
    if not network.has(at):
        hint = f"by default it is {text(default)}"
        raise cluster_error(cluster, f"flannel.{field}", f"{said} is outside podSubnet {network}", hint)
    if at % (1 << (network.bits - length)):
        hint = f"the subnet around it is {subnet(f'{said}/{length}')}"
        raise cluster_error(cluster, f"flannel.{field}", f"{said} is not the beginning of a /{length}", hint)
    return at


# --- subnets ----------------------------------------------------------------------------------------------------------


def subnets(
    cluster: Cluster, nodes: Mapping[str, Node], leases: Mapping[Key, SubnetLease], envs: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """The subnets of every node, by name: one per family, in podSubnet's order. Raises ObjectError.

    `nodes`: the Node objects there are. `envs`: what nodes' subnet.env say.
    """
    assert isinstance(cluster.nodes, tuple)
    each = [_of_family(cluster, network, nodes, leases, envs) for network in ranges(cluster.networking.podSubnet)]
    return {entry.name: tuple(found[entry.name] for found in each) for entry in cluster.nodes}


def _of_family(
    cluster: Cluster,
    network: Range,
    nodes: Mapping[str, Node],
    leases: Mapping[Key, SubnetLease],
    envs: Mapping[str, str],
) -> dict[str, str]:
    assert isinstance(cluster.nodes, tuple)
    family = network.family
    foreign = [lease for lease in leases.values() if not owned_by(lease, "Node")]
    wanted = {entry.address for entry in cluster.nodes}
    mine = {lease.PublicIP: lease for lease in foreign if lease.PublicIP in wanted}
    held = _Held(cluster, network, [lease for lease in foreign if lease.PublicIP not in mine])
    for index, entry in enumerate(cluster.nodes):
        if cidr := subnet_of(entry.podCIDR, family):
            held.demand(entry.name, cidr, key_of(cluster), f"nodes[{index}].podCIDR")
    for entry in cluster.nodes:
        node = nodes.get(entry.name)
        had = subnet_of(",".join(pod_cidrs(node)), family) if node else ""
        if node and had and not subnet_of(entry.podCIDR, family):
            if owned_by(node, "Cluster"):
                held.keep(entry.name, had)
            else:
                held.demand(entry.name, had, key_of(node), "spec.podCIDR")
    for entry in cluster.nodes:
        if entry.name not in held.by_node and entry.address in mine:
            held.keep(entry.name, subnet_of(",".join(mine[entry.address].subnets), family))
    for entry in cluster.nodes:
        if entry.name not in held.by_node and entry.name in envs:
            held.keep(entry.name, subnet_of(envs[entry.name], family))
    missing = [entry for entry in cluster.nodes if entry.name not in held.by_node]
    if missing:
        held.give(missing)
    return held.by_node


class _Held:
    """Who holds which subnet while they are given out."""

    def __init__(self, cluster: Cluster, network: Range, foreign: Iterable[SubnetLease]) -> None:
        self.cluster = cluster
        self.network = network
        self.prefix = _FORMS[network.family].prefix
        self.length: int = getattr(cluster.flannel, f"{self.prefix}SubnetLen")
        self.first = number(getattr(cluster.flannel, f"{self.prefix}SubnetMin"))
        self.last = number(getattr(cluster.flannel, f"{self.prefix}SubnetMax"))
        self.by_node: dict[str, str] = {}
        self.taken: dict[int, str] = {}  # first address of each subnet of our length → who has it
        for lease in foreign:
            other = subnet_or_none(subnet_of(",".join(lease.subnets), network.family))
            if other and other.overlaps(self.network):
                self.taken |= dict.fromkeys(self._blocks(other), f"lease {lease.subnet} of {lease.PublicIP}")

    def _blocks(self, other: Range) -> range:
        """Where the subnets of our length begin that a subnet of another length touches."""
        size = 1 << (self.network.bits - self.length)
        first = max(other.first, self.network.first)
        return range(first - first % size, min(other.last, self.network.last) + 1, size)

    def demand(self, node: str, cidr: str, key: Key, field: str) -> None:
        """The subnet that somebody wrote down must fit into Network, though not between SubnetMin and SubnetMax.

        So in kube mode: a podCIDR is taken as it is, and kubeadm begins with the first subnet.
        """
        wanted = subnet(cidr)
        if not self.network.covers(wanted):
            hint = f"set networking.podSubnet so that it has it, as {self._proposal(wanted)}"
            raise ObjectError(key, field, f"{cidr} is outside podSubnet {self.network}", hint)
        if wanted.length != self.length:
            hint = f"write a /{self.length}, or set flannel.{self.prefix}SubnetLen to {wanted.length}"
            message = f"{cidr} is not a /{self.length}, as flannel.{self.prefix}SubnetLen says"
            raise ObjectError(key, field, message, hint)
        holder = self.taken.get(wanted.first)
        if holder:
            raise ObjectError(key, field, f"{cidr} is taken by {holder}", "each node has a subnet of its own")
        self._hold(node, wanted)

    def _proposal(self, wanted: Range) -> Range:
        return subnet(f"{text(wanted.first)}/{min(wanted.length, {'ip': 16, 'ip6': 56}[wanted.family])}")

    def keep(self, node: str, cidr: str) -> None:
        """The subnet that a node has had, where it still fits."""
        had = subnet_or_none(cidr)
        if had and had.length == self.length and self.network.covers(had) and had.first not in self.taken:
            self._hold(node, had)

    def _hold(self, node: str, wanted: Range) -> None:
        self.taken[wanted.first] = f"node {node}"
        self.by_node[node] = str(wanted)

    def give(self, missing: Sequence[NodeEntry]) -> None:
        """A free subnet for each of these nodes."""
        size = 1 << (self.network.bits - self.length)
        starts = range(self.first, self.last + 1, size)
        free = (start for start in starts if start not in self.taken)
        dice = self.cluster.flannel.allocation == "random"
        for entry in missing:
            start = self._random(entry.name, starts) if dice else next(free, None)
            if start is None:
                raise self._full(len(missing), len(starts))
            self._hold(entry.name, Range(start, start + size - 1, self.length))

    def _random(self, node: str, starts: range) -> int | None:
        found = list(islice((start for start in starts if start not in self.taken), CANDIDATES))
        digest = hashlib.sha256(f"{self.cluster.metadata.name}/{node}".encode()).digest()
        return found[int.from_bytes(digest[:8], "big") % len(found)] if found else None

    def _full(self, missing: int, room: int) -> ObjectError:
        assert isinstance(self.cluster.nodes, tuple)
        count = len(self.cluster.nodes)
        what = f"podSubnet {self.network} has room for {room} subnets of length /{self.length}"
        others = "" if count > room else f", and others hold all but {missing - 1} of them"
        hint = f"choose a larger podSubnet, a larger flannel.{self.prefix}SubnetLen or fewer nodes"
        return cluster_error(self.cluster, "nodes", f"{count} nodes, but {what}{others}", hint)


# --- leases -----------------------------------------------------------------------------------------------------------


def annotations(cluster: Cluster, node: str, addresses: Sequence[str], key: str) -> dict[str, str]:
    """What flanneld writes on its Node object; `addresses` are the node's own, `key` its public WireGuard key."""
    found = {f"{PREFIX}/backend-type": _backend_type(cluster)}
    for family in families_of(cluster):
        data, public = ("backend-data", "public-ip") if family == "ip" else ("backend-v6-data", "public-ipv6")
        found[f"{PREFIX}/{data}"] = msgspec.json.encode(_backend_data(cluster, node, family, key)).decode()
        found[f"{PREFIX}/{public}"] = _first(addresses, family)
    return found


def _backend_type(cluster: Cluster) -> str:
    """As the backend's code writes it; udp's leaves it out (flannel `pkg/backend/udp/udp_amd64.go`)."""
    kind = cluster.flannel.Backend.kind
    return "" if kind == "udp" else kind


def _backend_data(cluster: Cluster, node: str, family: Family, key: str) -> dict[str, int | str] | None:
    """None where a backend has none, or there is no such family. The two VXLAN tunnels of a node have a MAC each."""
    backend = cluster.flannel.Backend
    if family not in families_of(cluster) or backend.kind not in {"vxlan", "wireguard"}:
        return None
    if backend.kind == "wireguard":
        return {"PublicKey": key}
    end = node if family == "ip" else f"{node}/ipv6"
    return {"VNI": backend.VNI, "VtepMAC": names.vtep_mac(cluster.metadata.name, end, backend.VNI)}


def _first(addresses: Sequence[str], family: Family) -> str:
    return next((address for address in addresses if family_of(address) == family), "")


def write_leases(table: Table, cluster: Cluster, keys: Mapping[str, str]) -> None:
    """One lease per node (`keys`: its public one); those of nodes that are gone, or have another subnet, go."""
    wanted: dict[Key, SubnetLease] = {}
    for node in of(table, Node).values():
        lease = _lease(cluster, node, keys.get(node.metadata.name, ""))
        wanted[key_of(lease)] = lease
    leases = of(table, SubnetLease)
    drop(table, [key for key, lease in leases.items() if owned_by(lease, "Node") and key not in wanted])
    for key, lease in wanted.items():
        if leases.get(key) != lease:
            leases[key] = lease


def lease_name(cidrs: Iterable[str]) -> str:
    """`10.244.1.0-24`, `10.244.1.0-24&fd00:10:244:1::-64`: what a node's lease is called; empty without subnets."""
    each = {family_of(cidr): cidr for cidr in cidrs}
    parts = (each.get("ip", NO_SUBNET), *filter(None, (each.get("ip6"),)))
    return "&".join(part.replace("/", "-") for part in parts) if each else ""


def _lease(cluster: Cluster, node: Node, key: str) -> SubnetLease:
    name, addresses = node.metadata.name, internal_ips(node)
    cidrs = {family_of(cidr): cidr for cidr in pod_cidrs(node)}
    meta = ObjectMeta(name=lease_name(pod_cidrs(node)), ownerReferences=(owner(node),))
    return SubnetLease(
        meta,
        _first(addresses, "ip") if "ip" in cidrs else NO_SUBNET.partition("/")[0],
        _backend_type(cluster),
        _backend_data(cluster, name, "ip", key),
        (_first(addresses, "ip6") or None) if "ip6" in cidrs else None,
        _backend_data(cluster, name, "ip6", key),
    )
