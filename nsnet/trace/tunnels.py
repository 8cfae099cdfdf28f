"""What a tunnel's device makes of a packet: another packet that carries it, and the device that takes it out again.

`carried` says which outer packet a device sends, `taken_out` which device of the namespace where that one ends takes
the inner one out of it. Each names why not, as the kernel (or flannel's process) would have it:

    Vxlan      neighbour's MAC → FDB → the VTEP's address; a VTEP of this VNI and port with this MAC
    Ipip       the route's gateway is the outer destination; a device whose `local` that is
    Wireguard  the peer whose allowed-ips have the destination; who has that key there must allow the source to us
    Tun        the process that reads the device, by the leases in its file; the process that listens there
"""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network

import msgspec

from nsnet.names import called
from nsnet.state import File, Ipip, Process, State, Tun, Vxlan, Wireguard, WireguardKey, WireguardPeer, socket_address
from nsnet.trace.values import Hop, Packet, Trip, Way
from nsnet.trace.view import View, family_of

Tunnel = Vxlan | Ipip | Wireguard | Tun
PROGRAM = "nsnet.programs.flannel_udp"
_VXLAN = {"ip": 50, "ip6": 70}  # the inner Ethernet header, VXLAN, UDP and the outer IP header
_WIREGUARD = {"ip": 60, "ip6": 80}  # type, key index, nonce and tag, UDP and the outer IP header


class NotCarriedError(Exception):
    """Why a packet does not get through a tunnel, as a sentence."""


class Carried(msgspec.Struct, frozen=True):
    """The outer packet, and the step as a person would say it. `token`: a MAC or key that the far end must have."""

    outer: Packet
    hop: Hop
    name: str  # what the outer packet is called
    overhead: int  # bytes that it has more
    token: str = ""


class _UdpConfig(msgspec.Struct, frozen=True):
    """What flannel's process reads, as far as packets ask for it."""

    device: str
    listen: tuple[str, int]
    leases: dict[str, str] = {}


def carried(state: State, trip: Trip, here: View, nexthop: str) -> Carried:
    """What leaves for a packet that is sent to the device `trip.dev_out`. Raises NotCarriedError."""
    link = here.links[trip.dev_out]
    match link:
        case Vxlan():
            return _by_vxlan(trip, here, link, nexthop)
        case Ipip():
            outer = Packet("ipip", link.remote or nexthop, src=link.local)
            return Carried(outer, Hop(trip.netns, f"ipip to {outer.dst}"), "IPIP", 20)
        case Wireguard():
            return _by_wireguard(trip, here, link)
    assert isinstance(link, Tun)
    return _by_process(state, trip, link)


def _by_vxlan(trip: Trip, here: View, link: Vxlan, nexthop: str) -> Carried:
    mac = here.neighbours.get((link.name, nexthop))
    vtep = here.fdb.get((link.name, mac)) if mac else None
    if mac is None:
        raise NotCarriedError(f"{link.name} has no neighbour entry for {nexthop}")
    if vtep is None:
        raise NotCarriedError(f"{link.name} has no FDB entry for {mac}, the MAC of {nexthop}")
    hop = Hop(trip.netns, f"vxlan id {link.vni} to {vtep}", f"fdb {mac} dst {vtep}")
    return Carried(Packet("udp", vtep, link.port, link.local), hop, "VXLAN", _VXLAN[family_of(vtep)], mac)


def _by_wireguard(trip: Trip, here: View, link: Wireguard) -> Carried:
    if _key(here, link.name) is None:
        raise NotCarriedError(f"{link.name} has no key")
    peer = _allowed(here.peers.get(link.name, ()), trip.packet.dst)
    if peer is None:
        raise NotCarriedError(f"no peer of {link.name} has {trip.packet.dst} in its allowed-ips")
    address, _, port = peer.endpoint.rpartition(":")
    if not port:
        raise NotCarriedError(f"the peer {peer.public_key} of {link.name} has no endpoint")
    hop = Hop(trip.netns, f"wireguard to {peer.endpoint}", f"peer {peer.public_key}")
    outer = Packet("udp", address.strip("[]"), int(port))
    return Carried(outer, hop, "WireGuard", _WIREGUARD[family_of(outer.dst)], peer.public_key)


def _key(here: View, dev: str) -> WireguardKey | None:
    return here.keys.get(dev)


def _allowed(peers: Iterable[WireguardPeer], address: str) -> WireguardPeer | None:
    """Whose the address is: the longest prefix that has it."""
    wanted = ip_address(address)
    fitting = ((ip_network(cidr), peer) for peer in peers for cidr in peer.allowed_ips)
    found = [(network.prefixlen, peer) for network, peer in fitting if wanted in network]
    return max(found, key=lambda item: item[0])[1] if found else None


def _by_process(state: State, trip: Trip, link: Tun) -> Carried:
    config = next((one for one in _configs(state, trip.netns) if one.device == link.name), None)
    if config is None:
        raise NotCarriedError(f"no process reads {link.name}")
    leases = ((ip_network(subnet), node) for subnet, node in config.leases.items())
    wanted = ip_address(trip.packet.dst)
    node = next((node for subnet, node in leases if wanted in subnet), None)
    if node is None:
        raise NotCarriedError(f"process flannel_udp has no lease for {trip.packet.dst}")
    hop = Hop(trip.netns, f"process flannel_udp: to {socket_address(node, config.listen[1])}")
    return Carried(Packet("udp", node, config.listen[1], *config.listen), hop, "UDP", 28)


def _configs(state: State, netns: str) -> Iterator[_UdpConfig]:
    """What the processes of flannel's in a namespace go by."""
    values = state.get(netns, frozenset())
    paths = {path for one in values if isinstance(one, Process) and PROGRAM in one.argv for path in one.argv}
    for value in values:
        if isinstance(value, File) and value.path in paths:
            yield msgspec.json.decode(value.content, type=_UdpConfig)


# --- the far end ------------------------------------------------------------------------------------------------------


def taken_out(state: State, sent: Carried, inner: Trip, here: View, end: Way, there: View) -> str:
    """The device by which the inner packet comes in where the outer one ended. Raises NotCarriedError."""
    if end.result != "delivered":
        raise NotCarriedError(f"the {sent.name} packet is {end.result}: {end.reason}")
    link = here.links[inner.dev_out]
    match link:
        case Vxlan():
            wrong = _wrong_checksum(link, sent, inner, here, end)
            if wrong:
                raise NotCarriedError(wrong)
            return _out_of_vxlan(link, sent, end, there)
        case Ipip():
            return _out_of_ipip(end, there)
        case Wireguard():
            return _out_of_wireguard(sent, here, inner, end, there)
    listening = (one for one in _configs(state, end.netns) if one.listen == (end.packet.dst, end.packet.dport))
    config = next(listening, None)
    if config is None or not there.is_up(config.device):
        raise NotCarriedError(f"no process of flannel's listens on port {end.packet.dport} here")
    return config.device


def _out_of_vxlan(link: Vxlan, sent: Carried, end: Way, there: View) -> str:
    same = [
        one
        for one in there.links.values()
        if isinstance(one, Vxlan)
        and (one.vni, one.port) == (link.vni, link.port)
        and family_of(one.local) == family_of(end.packet.dst)
    ]
    if not same or not same[0].up:
        raise NotCarriedError(_no_vxlan(there, link))
    if same[0].mac != sent.token:
        raise NotCarriedError(f"the frame is for {sent.token}, and {same[0].name} has {same[0].mac}")
    return same[0].name


def _wrong_checksum(link: Vxlan, sent: Carried, inner: Trip, here: View, end: Way) -> str:
    """Why the UDP checksum of the packet that arrived is wrong; empty where it is not.

    A device that offloads the inner checksum (tx) writes the outer one at once, from what the inner one will be. To NAT
    such a packet looks as if the outer one were still to be computed, so a new port leaves it as it is (Linux
    `net/core/utils.c`, inet_proto_csum_replace4). It is looked at where the sender's cable offloads nothing: frames
    then have sums, and no word that says they are right.
    """
    kind = inner.packet.protocol
    own = not inner.dev_in and not (inner.came and here.is_local(inner.came.dst))  # `lo` offloads, too
    partial = kind == "tcp" or (kind == "udp" and not own)  # the node's own UDP goes by what its cable offloads
    offloaded = partial and not _computes(here, link.name)
    hop = next((hop for hop in end.hops[len(inner.hops) :] if _is_new_port(hop, inner.netns)), None)
    if not offloaded or hop is None or not _computes(here, link.dev):
        return ""
    by = f"{called(hop.netns)} masquerades it as well, by {hop.what}"
    return f"the UDP checksum of the {sent.name} packet is wrong: {by}"


def _computes(here: View, dev: str) -> bool:
    """Does the device's driver leave no checksum to whoever comes after it?"""
    return dev in here.offloads and "tx" in here.offloads[dev].off


def _is_new_port(hop: Hop, netns: str) -> bool:
    return hop.netns == netns and ("MASQUERADE --random-fully" in hop.rule or "masquerade fully-random" in hop.rule)


def _no_vxlan(there: View, link: Vxlan) -> str:
    others = [one for one in there.links.values() if isinstance(one, Vxlan)]
    has = (f"{one.name} has id {one.vni} and port {one.port}{'' if one.up else ' and is down'}" for one in others)
    return f"no VXLAN device with id {link.vni} and port {link.port} is up here: {', '.join(has) or 'there is none'}"


def _out_of_ipip(end: Way, there: View) -> str:
    ends = (end.packet.dst, end.packet.src)
    fitting = (one for one in there.links.values() if isinstance(one, Ipip) and one.up)
    found = next((one for one in fitting if one.local == ends[0] and one.remote in ("", ends[1])), None)
    if found is None:
        raise NotCarriedError(f"no IPIP device with local {ends[0]} is up here")
    return found.name


def _out_of_wireguard(sent: Carried, here: View, inner: Trip, end: Way, there: View) -> str:
    """Its key must be the one that we know, it must know ours, and take the source from us."""
    own = _key(here, inner.dev_out)
    found = [key for key in there.keys.values() if key.port == end.packet.dport and there.is_up(key.dev)]
    if not found or found[0].public_key != sent.token:
        raise NotCarriedError(f"no WireGuard device with the key {sent.token} is up on port {end.packet.dport} here")
    dev = found[0].dev
    peer = _allowed(there.peers.get(dev, ()), inner.packet.src)
    if peer is None or own is None or peer.public_key != own.public_key:
        raise NotCarriedError(f"{dev} does not allow {inner.packet.src} to this peer")
    return dev
