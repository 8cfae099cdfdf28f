"""How packets get to the pods of other nodes, one function per flannel backend: node and leases → links, routes, peers.

vxlan       flannel.1, and per remote lease the three entries of flannel's own design note: a neighbour (the VTEP's MAC
            by the subnet's first address), an FDB entry (that MAC by the other node's address), a route via that
            address. With IPv6 a second tunnel, flannel-v6.<VNI>, whose outer packets are IPv6 too
host-gw     a plain route per lease by the other node's address
ipip        flannel.ipip, and per lease a route by the other node's address, onlink: the gateway is the outer address
udp         flannel0, a TUN device that has the route to the whole pod network; a process per node reads it, finds the
            lease and sends the packet in UDP (`nsnet.programs.flannel_udp`): how flannel began
wireguard   flannel-wg, which has that route as well; who gets a packet is for its peers' allowed-ips to say. Mode
            separate has flannel-wg-v6 for IPv6, the others carry both families by one device

DirectRouting (vxlan, ipip) takes the plain route where both nodes are in one underlay network. Every device has the
subnet's first address as /32 (/128), so node → pod of another node carries that address: it lies inside the cluster's
range and is not masqueraded.

Sources: flannel `pkg/backend/{vxlan,hostgw,ipip,udp,wireguard}` (facts/FLANNEL.md §1, §5). Where it differs: private
addresses do not make Mode auto prefer IPv4 to a public IPv6 (all addresses here are private), and a udp device keeps
standing when its process ends.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_interface

import msgspec

from nsnet import names
from nsnet.model import Backend, Family, family_of
from nsnet.render.view import Lease, Leg, Node
from nsnet.state import (
    Address,
    FdbEntry,
    File,
    Ipip,
    Neighbour,
    Process,
    Route,
    Tun,
    Value,
    Vxlan,
    Wireguard,
    WireguardKey,
    WireguardPeer,
    socket_address,
)

UPLINK = "eth0"
UDP_PROGRAM = "nsnet.programs.flannel_udp"
_json = msgspec.json.Encoder()


class Overlay(msgspec.Struct, frozen=True):
    """What a backend is told of a node: its own legs, and the leases of others that speak the same backend."""

    node: Node
    legs: tuple[Leg, ...]
    own: tuple[Lease, ...]
    remote: tuple[Lease, ...]
    pod_cidrs: tuple[str, ...]
    backend: Backend

    def of(self, leg: Leg) -> tuple[Lease, ...]:
        """The remote leases of a leg's family."""
        return tuple(lease for lease in self.remote if family_of(lease.subnet) == leg.family)

    def network(self, family: Family) -> str:
        return network(self.pod_cidrs, family)


def network(pod_cidrs: Iterable[str], family: Family) -> str:
    """Flannel's network of a family: the cluster's pods."""
    return next(cidr for cidr in pod_cidrs if family_of(cidr) == family)


def values(overlay: Overlay) -> frozenset[Value]:
    """Links, addresses, routes and what else the backend has on the node."""
    return frozenset(_BACKENDS[overlay.backend.kind](overlay))


def _direct(lease: Lease, *, onlink: bool = False) -> Route:
    return Route(lease.subnet, UPLINK, via=lease.public_ip, onlink=onlink)


def _on_link(node: Node, lease: Lease) -> bool:
    return node.machine.network.has(lease.public_ip)


def _first(subnet: str) -> str:
    return subnet.partition("/")[0]


def _own_address(dev: str, leg: Leg) -> Address:
    return Address(dev, str(ip_interface(_first(leg.subnet))))


# --- vxlan, host-gw, ipip ---------------------------------------------------------------------------------------------


def vxlan_device(backend: Backend, family: Family) -> str:
    return f"flannel{'-v6' if family == 'ip6' else ''}.{backend.VNI}"


def _vxlan(overlay: Overlay) -> Iterator[Value]:
    node, backend = overlay.node, overlay.backend
    macs = {lease.subnet: lease.mac for lease in overlay.own}
    for leg in overlay.legs:
        dev = vxlan_device(backend, leg.family)
        local = node.machine.of(leg.family)
        yield Vxlan(dev, macs[leg.subnet], node.mtu, backend.VNI, local, UPLINK, backend.port)
        yield _own_address(dev, leg)
        for lease in overlay.of(leg):
            if backend.DirectRouting and _on_link(node, lease):
                yield _direct(lease)
            elif lease.mac:
                yield from _through(dev, lease)


def _through(dev: str, lease: Lease) -> tuple[Value, Value, Value]:
    """The way to a lease through the tunnel."""
    vtep = _first(lease.subnet)
    return (
        Neighbour(dev, vtep, lease.mac),
        FdbEntry(dev, lease.mac, lease.public_ip),
        Route(lease.subnet, dev, via=vtep, onlink=True),
    )


def _host_gw(overlay: Overlay) -> Iterator[Value]:
    """Across a router the route would name a gateway that is not on the link: the kernel refuses it, so it is left out.

    flanneld logs that every ten seconds; here `control` tells the user by an Event.
    """
    return (_direct(lease) for lease in overlay.remote if _on_link(overlay.node, lease))


def _ipip(overlay: Overlay) -> Iterator[Value]:
    node, (leg,) = overlay.node, overlay.legs
    dev = "flannel.ipip"
    yield Ipip(dev, node.mtu, node.machine.of("ip"))
    yield _own_address(dev, leg)
    for lease in overlay.remote:
        if overlay.backend.DirectRouting and _on_link(node, lease):
            yield _direct(lease, onlink=True)
        else:
            yield Route(lease.subnet, dev, via=lease.public_ip, onlink=True)


# --- udp --------------------------------------------------------------------------------------------------------------


def _udp(overlay: Overlay) -> Iterator[Value]:
    node, (leg,) = overlay.node, overlay.legs
    dev = "flannel0"
    path = str(names.netns_run_dir(node.netns) / "flannel-udp.json")
    yield Tun(dev, node.mtu)
    yield _own_address(dev, leg)
    yield Route(overlay.network("ip"), dev, scope="global")
    yield File(path, _udp_config(overlay, dev, _first(leg.subnet)))
    yield Process((sys.executable, "-m", UDP_PROGRAM, path))


def _udp_config(overlay: Overlay, dev: str, own: str) -> str:
    """What the program reads (`nsnet.programs.flannel_udp.Config`)."""
    leases = sorted(overlay.remote, key=lambda lease: ip_interface(lease.subnet))
    said = {
        "device": dev,
        "own": own,
        "listen": [overlay.node.machine.of("ip"), overlay.backend.port],
        "leases": {lease.subnet: lease.public_ip for lease in leases},
    }
    return _json.encode(said).decode()


# --- wireguard --------------------------------------------------------------------------------------------------------


def _wireguard(overlay: Overlay) -> Iterator[Value]:
    node, backend = overlay.node, overlay.backend
    psk = str(names.wireguard_psk_file(node.netns)) if backend.PSK else ""
    yield File(str(names.wireguard_key_file(node.netns)), node.private_key, mode=0o400)
    if psk:
        yield File(psk, f"{backend.PSK}\n", mode=0o400)
    for dev, port, legs in _wireguard_devices(overlay):
        yield Wireguard(dev, node.mtu)
        yield WireguardKey(dev, overlay.own[0].key, port, str(names.wireguard_key_file(node.netns)))
        for leg in legs:
            yield _own_address(dev, leg)
            yield Route(overlay.network(leg.family), dev)
        yield from _peers(dev, port, psk, backend, [lease for leg in legs for lease in overlay.of(leg)])


def _wireguard_devices(overlay: Overlay) -> Iterator[tuple[str, int, tuple[Leg, ...]]]:
    """(device, port, the families it carries)."""
    backend = overlay.backend
    if backend.Mode != "separate":
        yield "flannel-wg", backend.ListenPort, overlay.legs
        return
    for leg in overlay.legs:
        four = leg.family == "ip"
        yield ("flannel-wg", backend.ListenPort, (leg,)) if four else ("flannel-wg-v6", backend.ListenPortV6, (leg,))


def _peers(dev: str, port: int, psk: str, backend: Backend, leases: Iterable[Lease]) -> Iterator[WireguardPeer]:
    """One for each key: all the leases that bear it are its node's."""
    by_key: dict[str, list[Lease]] = {}
    for lease in leases:
        if lease.key:
            by_key.setdefault(lease.key, []).append(lease)
    for key, some in by_key.items():
        subnets = tuple(sorted(lease.subnet for lease in some))
        endpoint = socket_address(_reached_at(some, backend.Mode), port)
        yield WireguardPeer(dev, key, endpoint, subnets, backend.PersistentKeepaliveInterval, psk)


def _reached_at(leases: Iterable[Lease], mode: str) -> str:
    """The node's address that its peers send to."""
    publics: dict[Family, str] = {family_of(lease.public_ip): lease.public_ip for lease in leases}
    wanted: Mapping[str, Family] = {"ipv6": "ip6"}
    return publics.get(wanted.get(mode, "ip")) or next(iter(publics.values()))


_BACKENDS: Mapping[str, Callable[[Overlay], Iterator[Value]]] = {
    "vxlan": _vxlan,
    "host-gw": _host_gw,
    "ipip": _ipip,
    "udp": _udp,
    "wireguard": _wireguard,
}
