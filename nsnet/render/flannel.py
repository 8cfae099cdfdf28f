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
cluster's range and is not masqueraded. With IPv6 there is a second tunnel, flannel-v6.<VNI>, whose outer packets are
IPv6 too, and the same rules stand in ip6tables. There is no all-zero FDB entry: an unknown destination is dropped.

Sources: flannel `pkg/backend/vxlan`, `pkg/backend/hostgw`, `pkg/trafficmngr/iptables`, `pkg/subnet` (facts/FLANNEL.md
§4-6). Upstream's leftovers (a changed VtepMAC leaves the old FDB row) are not copied: what is not wanted is removed.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_interface

from nsnet import model, names
from nsnet.model import Family, family_of
from nsnet.render.view import Lease, Leg, Node, View
from nsnet.state import Address, Chain, FdbEntry, File, Neighbour, Route, Value, Vxlan

UPLINK = "eth0"
MULTICAST: dict[Family, str] = {"ip": "224.0.0.0/4", "ip6": "ff00::/8"}
MASQ = '-m comment --comment "flanneld masq"'
FORWARD = '-m comment --comment "flanneld forward"'

# flanneld appends: its jumps come after kube-proxy's.
MASQ_JUMP = ("nat", "POSTROUTING", f"{MASQ} -j FLANNEL-POSTRTG")
FORWARD_JUMP = ("filter", "FORWARD", f"{FORWARD} -j FLANNEL-FWD")


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    masq = view.cluster.flannel.ipMasq
    for node in view.nodes:
        if not node.legs:
            continue
        for leg in node.legs:
            same = [lease for lease in view.leases if family_of(lease.subnet) == leg.family]
            own = next((lease for lease in same if lease.subnet == leg.subnet), None)
            remote = tuple(lease for lease in same if lease.subnet != leg.subnet)
            yield node.netns, _overlay(node, leg, own, remote, view.cluster.flannel.Backend)
            yield node.netns, _rules(leg, _network(view.pod_cidrs, leg.family), masq)
        yield node.netns, (subnet_env(node, view.pod_cidrs, masq),)


def _network(pod_cidrs: tuple[str, ...], family: Family) -> str:
    return next(cidr for cidr in pod_cidrs if family_of(cidr) == family)


def jumps(*, masq: bool) -> tuple[tuple[str, str, str], ...]:
    """What flanneld appends to built-in chains, as (table, chain, rule); `masq`: --ip-masq."""
    return (MASQ_JUMP, FORWARD_JUMP) if masq else (FORWARD_JUMP,)


@lru_cache(maxsize=1024)
def _overlay(
    node: Node, leg: Leg, own: Lease | None, remote: tuple[Lease, ...], backend: model.Backend
) -> frozenset[Value]:
    """Links, addresses and routes: nothing before the node has its lease; leases of another backend are skipped."""
    kind = backend.Type.lower()
    if own is None:
        return frozenset()
    known = [lease for lease in remote if lease.backend == kind]
    if kind == "host-gw":
        return frozenset(_direct(lease) for lease in known if _on_link(node, lease))
    values: set[Value] = set(_vtep(node, leg, own, backend))
    for lease in known:
        if backend.DirectRouting and _on_link(node, lease):
            values.add(_direct(lease))
        elif lease.mac:
            values.update(_through(device(backend, leg.family), lease))
    return frozenset(values)


def device(backend: model.Backend, family: Family) -> str:
    return f"flannel{'-v6' if family == 'ip6' else ''}.{backend.VNI}"


def _vtep(node: Node, leg: Leg, own: Lease, backend: model.Backend) -> tuple[Value, Value]:
    dev, local = device(backend, leg.family), node.machine.of(leg.family)
    tunnel = Vxlan(dev, own.mac, node.mtu, backend.VNI, local, UPLINK, backend.Port)
    return tunnel, Address(dev, str(ip_interface(_first(leg.subnet))))


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
    return node.machine.network.has(lease.public_ip)


def _first(subnet: str) -> str:
    return subnet.partition("/")[0]


# --- rules and subnet.env ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _rules(leg: Leg, cluster: str, masq: bool) -> tuple[Chain, ...]:
    """Its own chains, in the order and spelling of iptables-save. Marked packets are kube-proxy's business."""
    subnet, family = leg.subnet, leg.family
    accept = (f"-s {cluster} {FORWARD} -j ACCEPT", f"-d {cluster} {FORWARD} -j ACCEPT")
    forward = Chain("filter", "FLANNEL-FWD", accept, family=family)
    if not masq:
        return (forward,)
    rules = (
        f"-m mark --mark 0x4000/0x4000 {MASQ} -j RETURN",
        f"-s {subnet} -d {cluster} {MASQ} -j RETURN",
        f"-s {cluster} -d {subnet} {MASQ} -j RETURN",
        f"! -s {cluster} -d {subnet} {MASQ} -j RETURN",
        f"-s {cluster} ! -d {MULTICAST[family]} {MASQ} -j MASQUERADE --random-fully",
        f"! -s {cluster} -d {cluster} {MASQ} -j MASQUERADE --random-fully",
    )
    return forward, Chain("nat", "FLANNEL-POSTRTG", rules, family=family)


def subnet_env(node: Node, pod_cidrs: tuple[str, ...], masq: bool) -> File:
    """The file the CNI plugin reads; FLANNEL_SUBNET and FLANNEL_IPV6_SUBNET are the bridge's addresses."""
    legs = sorted(node.legs, key=lambda leg: leg.family)
    lines = (
        *(line for leg in legs for line in _env(leg, _network(pod_cidrs, leg.family))),
        f"FLANNEL_MTU={node.mtu}",
        f"FLANNEL_IPMASQ={str(masq).lower()}",
    )
    path = names.netns_run_dir(node.netns) / "flannel" / "subnet.env"
    return File(str(path), "\n".join(lines) + "\n", mode=0o644)


def _env(leg: Leg, network: str) -> tuple[str, str]:
    word = "FLANNEL_IPV6_" if leg.family == "ip6" else "FLANNEL_"
    return f"{word}NETWORK={network}", f"{word}SUBNET={leg.gateway}"
