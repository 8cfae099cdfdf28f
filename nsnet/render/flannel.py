"""What flanneld writes on a node: its VTEP, what it knows of every other lease, its iptables rules and subnet.env.

vxlan, per remote lease (route last, so that the kernel never asks by ARP):

    ip neighbour replace 10.244.2.0 lladdr <VtepMAC> dev flannel.1 nud permanent
    bridge fdb replace <VtepMAC> dev flannel.1 dst <PublicIP> self permanent
    ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink

host-gw, and vxlan with DirectRouting where both nodes sit in one underlay network: one plain route by the other's
address. Across a router that route would name a gateway that is not on the link; the kernel refuses it ("Nexthop has
invalid gateway"), flanneld logs that every ten seconds, and pods of those nodes do not reach each other. So it is left
out here, and `control` tells the user by an Event.

The VTEP has the subnet's first address as /32, so node → pod of another node carries that address: it lies inside the
cluster's range and is not masqueraded. There is no all-zero FDB entry: an unknown destination is dropped.

Sources: flannel `pkg/backend/vxlan`, `pkg/backend/hostgw`, `pkg/trafficmngr/iptables`, `pkg/subnet` (facts/FLANNEL.md
§4-6). Upstream's leftovers (a changed VtepMAC leaves the old FDB row) are not copied: what is not wanted is removed.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_network

from nsnet import model, names
from nsnet.render.view import Lease, Node, View, within
from nsnet.state import Address, Chain, FdbEntry, File, Neighbour, Route, Value, Vxlan

UPLINK = "eth0"
MASQ = '-m comment --comment "flanneld masq"'
FORWARD = '-m comment --comment "flanneld forward"'

# flanneld appends: its jumps come after kube-proxy's.
MASQ_JUMP = ("nat", "POSTROUTING", f"{MASQ} -j FLANNEL-POSTRTG")
FORWARD_JUMP = ("filter", "FORWARD", f"{FORWARD} -j FLANNEL-FWD")


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    masq = view.cluster.flannel.ipMasq
    for node in view.nodes:
        if not node.subnet:
            continue
        own = next((lease for lease in view.leases if lease.subnet == node.subnet), None)
        remote = tuple(lease for lease in view.leases if lease.subnet != node.subnet)
        yield node.netns, _overlay(node, own, remote, view.cluster.flannel.Backend)
        yield node.netns, (*_rules(node.subnet, view.pod_cidr, masq), subnet_env(node, view.pod_cidr, masq))


def jumps(*, masq: bool) -> tuple[tuple[str, str, str], ...]:
    """What flanneld appends to built-in chains, as (table, chain, rule); `masq`: --ip-masq."""
    return (MASQ_JUMP, FORWARD_JUMP) if masq else (FORWARD_JUMP,)


@lru_cache(maxsize=1024)
def _overlay(node: Node, own: Lease | None, remote: tuple[Lease, ...], backend: model.Backend) -> frozenset[Value]:
    """Links, addresses and routes: nothing before the node has its lease; leases of another backend are skipped."""
    kind = backend.Type.lower()
    if own is None:
        return frozenset()
    known = [lease for lease in remote if lease.backend == kind]
    if kind == "host-gw":
        return frozenset(_direct(lease) for lease in known if _on_link(node, lease))
    values: set[Value] = set(_vtep(node, own, backend))
    for lease in known:
        if backend.DirectRouting and _on_link(node, lease):
            values.add(_direct(lease))
        elif lease.mac:
            values.update(_through(_device(backend), lease))
    return frozenset(values)


def _device(backend: model.Backend) -> str:
    return f"flannel.{backend.VNI}"


def _vtep(node: Node, own: Lease, backend: model.Backend) -> tuple[Value, Value]:
    dev = _device(backend)
    device = Vxlan(dev, own.mac, node.mtu, backend.VNI, node.machine.ip, UPLINK, backend.Port)
    return device, Address(dev, f"{_first(node.subnet)}/32")


def _through(dev: str, lease: Lease) -> tuple[Value, Value, Value]:
    """The way to a lease through the tunnel."""
    vtep = _first(lease.subnet)
    return (
        Neighbour(dev, vtep, lease.mac),
        FdbEntry(dev, lease.mac, lease.public_ip),
        Route(lease.subnet, dev, via=vtep, onlink=True),
    )


def _direct(lease: Lease) -> Route:
    return Route(lease.subnet, UPLINK, via=lease.public_ip)


def _on_link(node: Node, lease: Lease) -> bool:
    return within(node.machine.network.subnet, lease.public_ip)


def _first(subnet: str) -> str:
    return subnet.partition("/")[0]


# --- rules and subnet.env ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _rules(subnet: str, cluster: str, masq: bool) -> tuple[Chain, ...]:
    """Its own chains, in the order and spelling of iptables-save. Marked packets are kube-proxy's business."""
    forward = Chain("filter", "FLANNEL-FWD", (f"-s {cluster} {FORWARD} -j ACCEPT", f"-d {cluster} {FORWARD} -j ACCEPT"))
    if not masq:
        return (forward,)
    rules = (
        f"-m mark --mark 0x4000/0x4000 {MASQ} -j RETURN",
        f"-s {subnet} -d {cluster} {MASQ} -j RETURN",
        f"-s {cluster} -d {subnet} {MASQ} -j RETURN",
        f"! -s {cluster} -d {subnet} {MASQ} -j RETURN",
        f"-s {cluster} ! -d 224.0.0.0/4 {MASQ} -j MASQUERADE --random-fully",
        f"! -s {cluster} -d {cluster} {MASQ} -j MASQUERADE --random-fully",
    )
    return forward, Chain("nat", "FLANNEL-POSTRTG", rules)


def subnet_env(node: Node, cluster: str, masq: bool) -> File:
    """The file the CNI plugin reads; FLANNEL_SUBNET is the bridge's address."""
    lines = (
        f"FLANNEL_NETWORK={ip_network(cluster)}",
        f"FLANNEL_SUBNET={node.gateway}",
        f"FLANNEL_MTU={node.mtu}",
        f"FLANNEL_IPMASQ={str(masq).lower()}",
    )
    path = names.netns_run_dir(node.netns) / "flannel" / "subnet.env"
    return File(str(path), "\n".join(lines) + "\n", mode=0o644)
