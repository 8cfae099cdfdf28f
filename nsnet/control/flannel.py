"""The subnet manager: every node has one subnet of podSubnet, written down as flannel's etcd backend does.

`net-conf.json`'s defaults and checks are flannel's (`pkg/subnet/config.go`): SubnetLen 24 where Network is a /22 or
larger, else Network + 2; SubnetMin the second subnet, because the first one's .0 would be the network's own address;
SubnetMax the last. A node keeps its subnet as long as that fits, whatever its address becomes. A new node takes the one
it says (`podCIDR`), the one of a lease that bears its address, else the first free one from SubnetMin in node order;
`allocation: random` chooses among the first hundred free ones as flannel does, by a hash instead of dice, so that
`plan` says what `up` does.

A lease that no node of the cluster owns (of a real flanneld on the same etcd, or a reservation) is left alone and its
subnet is not given away.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import msgspec

from nsnet import names
from nsnet.control.addresses import Range, number, subnet, subnet_or_none, text
from nsnet.control.table import Table, drop, of, owned_by, owner
from nsnet.control.wrong import cluster_error
from nsnet.errors import ObjectError
from nsnet.model import Cluster, Flannel, Key, Node, NodeEntry, ObjectMeta, SubnetLease, key_of

CANDIDATES = 100  # how many free subnets flannel's dice have
PREFIX = "flannel.alpha.coreos.com"


# --- net-conf.json ----------------------------------------------------------------------------------------------------


def net_conf(cluster: Cluster, network: Range) -> Flannel:
    """The net-conf.json of flannel with SubnetLen, SubnetMin and SubnetMax filled in. Raises ObjectError."""
    said = cluster.flannel
    if network.length > 28:
        raise cluster_error(
            cluster, "networking.podSubnet", f"{network} is too small", "at least a /28, for four subnets"
        )
    length = said.SubnetLen or (24 if network.length <= 22 else network.length + 2)
    if not network.length + 2 <= length <= 30:
        hint = f"from {network.length + 2} (four subnets) to 30"
        raise cluster_error(cluster, "flannel.SubnetLen", f"{length} does not go with podSubnet {network}", hint)
    size = 1 << (32 - length)
    first = _bound(cluster, "SubnetMin", network.first + size, network, length)
    last = _bound(cluster, "SubnetMax", network.last + 1 - size, network, length)
    if first > last:
        hint = "SubnetMin is the first subnet that is given out, SubnetMax the last"
        raise cluster_error(cluster, "flannel.SubnetMax", f"{text(last)} is less than SubnetMin {text(first)}", hint)
    return msgspec.structs.replace(said, SubnetLen=length, SubnetMin=text(first), SubnetMax=text(last))


def _bound(cluster: Cluster, field: str, default: int, network: Range, length: int) -> int:
    said = getattr(cluster.flannel, field)
    if not said or said == "0.0.0.0":  # noqa: S104 - flannel's word for unset
        return default
    at = number(said)
    if not network.has(at):
        hint = f"by default it is {text(default)}"
        raise cluster_error(cluster, f"flannel.{field}", f"{said} is outside podSubnet {network}", hint)
    if at % (1 << (32 - length)):
        hint = f"the subnet around it is {subnet(f'{said}/{length}')}"
        raise cluster_error(cluster, f"flannel.{field}", f"{said} is not the beginning of a /{length}", hint)
    return at


# --- subnets ----------------------------------------------------------------------------------------------------------


def subnets(cluster: Cluster, nodes: Mapping[str, Node], leases: Mapping[Key, SubnetLease]) -> dict[str, str]:
    """The subnet of every node, by name. `nodes`: the Node objects there are. Raises ObjectError."""
    assert isinstance(cluster.nodes, tuple)
    foreign = {key: lease for key, lease in leases.items() if not owned_by(lease, "Node")}
    wanted = {entry.name: entry.address for entry in cluster.nodes}
    mine = {lease.PublicIP: lease for lease in foreign.values() if lease.PublicIP in wanted.values()}
    held = _Held(cluster, [lease for lease in foreign.values() if lease.PublicIP not in mine])
    for index, entry in enumerate(cluster.nodes):
        if entry.podCIDR:
            held.demand(entry.name, entry.podCIDR, key_of(cluster), f"nodes[{index}].podCIDR")
    for entry in cluster.nodes:
        node = nodes.get(entry.name)
        if node and node.spec.podCIDR and not entry.podCIDR:
            if owned_by(node, "Cluster"):
                held.keep(entry.name, node.spec.podCIDR)
            else:
                held.demand(entry.name, node.spec.podCIDR, key_of(node), "spec.podCIDR")
    for entry in cluster.nodes:
        if entry.name not in held.by_node and entry.address in mine:
            held.keep(entry.name, mine[entry.address].subnet)
    missing = [entry for entry in cluster.nodes if entry.name not in held.by_node]
    if missing:
        held.give(missing)
    return held.by_node


class _Held:
    """Who holds which subnet while they are given out."""

    def __init__(self, cluster: Cluster, foreign: Iterable[SubnetLease]) -> None:
        self.cluster = cluster
        self.network = subnet(cluster.networking.podSubnet)
        self.length = cluster.flannel.SubnetLen
        self.first = number(cluster.flannel.SubnetMin)
        self.last = number(cluster.flannel.SubnetMax)
        self.by_node: dict[str, str] = {}
        self.taken: dict[int, str] = {}  # first address of each subnet of our length → who has it
        for lease in foreign:
            other = subnet_or_none(lease.subnet)
            if other and other.overlaps(self.network):
                self.taken |= dict.fromkeys(self._blocks(other), f"lease {lease.subnet} of {lease.PublicIP}")

    def _blocks(self, other: Range) -> range:
        """Where the subnets of our length begin that a subnet of another length touches."""
        size = 1 << (32 - self.length)
        first = max(other.first, self.network.first)
        return range(first - first % size, min(other.last, self.network.last) + 1, size)

    def demand(self, node: str, cidr: str, key: Key, field: str) -> None:
        """The subnet that somebody wrote down must fit into Network, though not between SubnetMin and SubnetMax.

        So in kube mode: a podCIDR is taken as it is, and kubeadm begins with the first subnet.
        """
        wanted = subnet(cidr)
        if not self.network.covers(wanted):
            hint = f"set networking.podSubnet so that it has it, as {subnet(f'{text(wanted.first)}/16')}"
            raise ObjectError(key, field, f"{cidr} is outside podSubnet {self.network}", hint)
        if wanted.length != self.length:
            hint = f"write a /{self.length}, or set flannel.SubnetLen to {wanted.length}"
            raise ObjectError(key, field, f"{cidr} is not a /{self.length}, as flannel.SubnetLen says", hint)
        holder = self.taken.get(wanted.first)
        if holder:
            raise ObjectError(key, field, f"{cidr} is taken by {holder}", "each node has a subnet of its own")
        self._hold(node, wanted)

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
        size = 1 << (32 - self.length)
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
        hint = "choose a larger podSubnet, a larger flannel.SubnetLen or fewer nodes"
        return cluster_error(self.cluster, "nodes", f"{count} nodes, but {what}{others}", hint)


# --- leases -----------------------------------------------------------------------------------------------------------


def annotations(cluster: Cluster, node: str, address: str) -> dict[str, str]:
    """What flanneld writes on its Node object."""
    data = _backend_data(cluster, node)
    return {
        f"{PREFIX}/backend-type": cluster.flannel.Backend.Type,
        f"{PREFIX}/backend-data": msgspec.json.encode(data).decode(),
        f"{PREFIX}/public-ip": address,
    }


def _backend_data(cluster: Cluster, node: str) -> dict[str, int | str] | None:
    backend = cluster.flannel.Backend
    if backend.Type.lower() != "vxlan":
        return None
    return {"VNI": backend.VNI, "VtepMAC": names.vtep_mac(cluster.metadata.name, node, backend.VNI)}


def write_leases(table: Table, cluster: Cluster) -> None:
    """One lease per node; those of nodes that are gone, or have another subnet now, go."""
    wanted: dict[Key, SubnetLease] = {}
    for node in of(table, Node).values():
        lease = _lease(cluster, node)
        wanted[key_of(lease)] = lease
    leases = of(table, SubnetLease)
    drop(table, [key for key, lease in leases.items() if owned_by(lease, "Node") and key not in wanted])
    for key, lease in wanted.items():
        if leases.get(key) != lease:
            leases[key] = lease


def _lease(cluster: Cluster, node: Node) -> SubnetLease:
    name = node.metadata.name
    address = next((item.address for item in node.status.addresses if item.type == "InternalIP"), "")
    meta = ObjectMeta(name=node.spec.podCIDR.replace("/", "-"), ownerReferences=(owner(node),))
    return SubnetLease(meta, address, cluster.flannel.Backend.Type, _backend_data(cluster, name))
