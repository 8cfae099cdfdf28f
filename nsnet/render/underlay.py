"""What lies under the cluster: a switch per network, a router between them, and each machine's eth0.

    <cluster>.fabric.router ── <network> ─── router │ br0 │ node-node1 ─── eth0   <cluster>.node.node1
                                                    │     │ host-client ── eth0   <cluster>.host.client
                                          <cluster>.fabric.<network>

The router owns the first address of every network and has connected routes only: it knows nodes and hosts, and no pod
or Service range, as a real network outside a cluster does not. A node needs its default route even where all it talks
to is on one network: without it, node → ClusterIP fails before the DNAT of OUTPUT is reached.

Neighbours on one network are known, so they are permanent entries: the kernel's IPv4 neighbour table is one for the
whole machine (1,024 entries) and permanent ones do not count.

Every sysctl is set, also where the kernel's default is the same: what a new namespace starts with differs between
machines (facts/FAILURES.md). A node gets what CNI sets (ip_forward) and what kubeadm asks for (bridge-nf-call-iptables:
without it replies between pods of one node bypass the reverse NAT); what kube-proxy sets stands in kubeproxy.py. A
switch must not do that: its frames are not for iptables. The same of IPv6 where the network has it. A node takes no
router's word for its routes (accept_ra).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_network

from nsnet import names
from nsnet.model import MachineEntry, bits, family_of, lost_by_chance, micros, percent
from nsnet.render.machines import first
from nsnet.render.view import MEMO, Machine, Network, View, default_route
from nsnet.state import (
    OFFLOADS,
    Address,
    Bridge,
    BridgePort,
    Chain,
    FdbEntry,
    Loopback,
    Neighbour,
    Netns,
    Offload,
    Qdisc,
    Route,
    Sysctl,
    Value,
    Veth,
    Vxlan,
)

SWITCH = "br0"
TRUNK, PORT = "trunk", 4789  # the way to the other machines, and VXLAN's own UDP port
ROUTER = "router"  # its port's name in every switch

NODE_SYSCTLS = (
    Sysctl("net.ipv4.ip_forward", "1"),
    Sysctl("net.bridge.bridge-nf-call-iptables", "1"),
    Sysctl("net.ipv4.conf.all.rp_filter", "0"),
    Sysctl("net.ipv4.conf.default.rp_filter", "0"),
)
SWITCH_SYSCTLS = (
    Sysctl("net.ipv4.ip_forward", "0"),
    Sysctl("net.bridge.bridge-nf-call-iptables", "0"),
    Sysctl("net.ipv4.fib_multipath_hash_policy", "0"),
    Sysctl("net.ipv4.conf.all.send_redirects", "0"),
    Sysctl("net.ipv4.conf.default.send_redirects", "0"),
)
ROUTER_SYSCTLS = (
    Sysctl("net.ipv4.ip_forward", "1"),
    Sysctl("net.bridge.bridge-nf-call-iptables", "0"),
    Sysctl("net.ipv4.fib_multipath_hash_policy", "1"),  # by ports too, as fabrics do: one connection keeps its way
    # What it balances may leave by the leg it came in: nobody shall be told of a shorter way past the balancer.
    Sysctl("net.ipv4.conf.all.send_redirects", "0"),
    Sysctl("net.ipv4.conf.default.send_redirects", "0"),
)
HAS_IPV6 = (
    Sysctl("net.ipv6.conf.default.disable_ipv6", "0"),
    Sysctl("net.ipv6.conf.default.addr_gen_mode", "1"),  # no link-local addresses: neighbours are known, and DAD costs
)
NODE_SYSCTLS_IPV6 = (
    *HAS_IPV6,
    Sysctl("net.ipv6.conf.all.forwarding", "1"),
    Sysctl("net.ipv6.conf.default.accept_ra", "0"),
    Sysctl("net.bridge.bridge-nf-call-ip6tables", "1"),
)
SWITCH_SYSCTLS_IPV6 = (Sysctl("net.bridge.bridge-nf-call-ip6tables", "0"),)  # it has no address of its own
ROUTER_SYSCTLS_IPV6 = (
    *HAS_IPV6,
    Sysctl("net.ipv6.conf.all.forwarding", "1"),
    Sysctl("net.bridge.bridge-nf-call-ip6tables", "0"),
    Sysctl("net.ipv6.fib_multipath_hash_policy", "1"),
)


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    ground = (Netns(names.mark(view.name)), Loopback())
    by_network: defaultdict[str, list[Machine]] = defaultdict(list)
    for machine in view.machines:
        by_network[machine.network.name].append(machine)
    yield view.router, (*ground, *ROUTER_SYSCTLS)
    if any(network.has_ipv6 for network in view.networks.values()):
        yield view.router, ROUTER_SYSCTLS_IPV6
    for network in view.networks.values():
        machines = tuple(by_network[network.name])
        here = tuple(machine for machine in machines if machine.on == view.here) if view.here else machines
        router = view.router if view.here in ("", first(view.cluster)) else ""
        yield network.netns, (*ground, *SWITCH_SYSCTLS, *_switch(network, here, router))
        if network.has_ipv6:
            yield network.netns, SWITCH_SYSCTLS_IPV6
        if view.here:
            yield network.netns, _trunk(network, machines, view.cluster.underlay.machines, view.here)
        yield view.router, _routed(network, machines)
        for machine in machines:
            yield machine.netns, (*ground, *_machine(machine, machines))


@lru_cache(maxsize=256)
def _switch(network: Network, machines: tuple[Machine, ...], router: str) -> tuple[Value, ...]:
    """The bridge of a network and its ports, one per machine and one for the router."""
    bridge = Bridge(SWITCH, names.hashed_mac(network.netns), network.mtu)
    values: list[Value] = [bridge]
    if router:
        values += _port(network, ROUTER, f"{router}/{names.device(network.name)}", network.mtu)
    for machine in machines:
        values += _port(network, _port_name(machine), f"{machine.netns}/eth0", machine.mtu)
        values += _offload(machine, _port_name(machine))
        values += _impaired(_port_name(machine), machine)
    return tuple(values)


def _offload(machine: Machine, dev: str) -> tuple[Offload, ...]:
    """Both ends of the cable: what one leaves to the other would not be done at all."""
    return () if machine.link is None or machine.link.offload else (Offload(dev, OFFLOADS),)


@lru_cache(maxsize=256)
def _trunk(
    network: Network, machines: tuple[Machine, ...], carriers: tuple[MachineEntry, ...], here: str
) -> tuple[Value, ...]:
    """The port by which the switch is one with those of the other machines: a VXLAN over their own addresses.

    Or a cable to a bridge of the machine's own, which is one with theirs already.
    Who is behind which is known, so nothing is flooded and nothing learned: one forwarding entry per machine's MAC. A
    machine that has not said its address yet is not led to.
    """
    mac = names.hashed_mac(f"{network.netns}/{TRUNK}/{here}")
    if network.bridge:
        return (Veth(TRUNK, f"/{network.bridge}", mac, network.mtu), BridgePort(TRUNK, SWITCH))
    at = {carrier.name: carrier.address for carrier in carriers if carrier.address}
    if here not in at:
        return ()
    vni = 1 + int(names.hashed_mac(network.netns).replace(":", "")[4:], 16) % ((1 << 24) - 1)
    tunnel = Vxlan(TRUNK, mac, network.mtu, vni, at[here], "", PORT)
    away = [(machine.mac, machine.on) for machine in machines if machine.on != here]
    home = carriers[0].name
    if home != here:
        away.append((gateway_mac(network), home))
    return (tunnel, BridgePort(TRUNK, SWITCH), *(FdbEntry(TRUNK, mac, at[on]) for mac, on in away if on in at))


def _impaired(dev: str, machine: Machine) -> Iterator[Value]:
    """What the link does to frames that leave by one of its ends: each way is impaired."""
    link = machine.link
    if link is None:
        return
    loss = 0.0 if machine.plain else percent(link.loss)
    kind = "tbf" if machine.plain else "netem"
    qdisc = Qdisc(dev, kind, delay=micros(link.delay), loss=loss, rate=bits(link.rate))
    if qdisc.words:
        yield qdisc


def _lossy(machine: Machine) -> Iterator[Value]:
    """Without netem the machine itself drops what comes and goes, by chance."""
    if machine.plain and machine.link is not None and machine.link.loss:
        rule = lost_by_chance(percent(machine.link.loss))
        for leg in machine.network.legs:
            yield Chain("mangle", "PREROUTING", (f"-i eth0 {rule}",), "ACCEPT", leg.family)
            yield Chain("mangle", "POSTROUTING", (f"-o eth0 {rule}",), "ACCEPT", leg.family)


def _port_name(machine: Machine) -> str:
    return names.device(f"{machine.kind}-{machine.name}")


def _port(network: Network, name: str, peer: str, mtu: int) -> tuple[Value, Value]:
    return Veth(name, peer, names.hashed_mac(f"{network.netns}/{name}"), mtu), BridgePort(name, SWITCH)


@lru_cache(maxsize=256)
def _routed(network: Network, machines: tuple[Machine, ...]) -> tuple[Value, ...]:
    """The router's leg in a network: the gateway's address, and the machines it finds there."""
    dev = names.device(network.name)
    return (
        Veth(dev, f"{network.netns}/{ROUTER}", gateway_mac(network), network.mtu),
        *(Address(dev, network.cidr(gateway)) for gateway in network.gateways),
        *(Neighbour(dev, ip, machine.mac) for machine in machines for ip in _local(machine)),
        *(
            Route(str(ip_network(ip)), dev, via=machine.of(family_of(ip)))
            for machine in machines
            for ip in machine.more
            if not network.has(ip)
        ),
    )


def gateway_mac(network: Network) -> str:
    return names.mac(network.gateway, "02:42")


def _local(machine: Machine) -> Iterator[str]:
    """The addresses of a machine that lie in its network; the router has a route to any other."""
    yield machine.ip
    yield from (ip for ip in machine.more if machine.network.has(ip))


@lru_cache(maxsize=MEMO)
def _machine(machine: Machine, machines: tuple[Machine, ...]) -> tuple[Value, ...]:
    """eth0 of a node or host: its addresses, its default route and the neighbours it knows."""
    network = machine.network
    port = f"{network.netns}/{_port_name(machine)}"
    return (
        Veth("eth0", port, machine.mac, machine.mtu),
        *_offload(machine, "eth0"),
        *_impaired("eth0", machine),
        *_lossy(machine),
        *(Address("eth0", network.cidr(ip)) for ip in machine.ips),
        *(Route(default_route(leg.family), "eth0", via=leg.gateway) for leg in network.legs),
        *(Neighbour("eth0", gateway, gateway_mac(network)) for gateway in network.gateways),
        *(Neighbour("eth0", ip, other.mac) for other in machines if other != machine for ip in _local(other)),
        *(NODE_SYSCTLS if machine.kind == "node" else ()),
        *((NODE_SYSCTLS_IPV6 if machine.kind == "node" else HAS_IPV6) if network.has_ipv6 else ()),
    )
