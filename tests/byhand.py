"""Wanted states written by hand, in the kernel's words alone: what tests of `kernel/` build and look at."""

from collections.abc import Iterable, Mapping

from nsnet import names
from nsnet.state import (
    Address,
    Bridge,
    BridgePort,
    Change,
    FdbEntry,
    Loopback,
    Neighbour,
    Netns,
    Route,
    Sysctl,
    Value,
    Veth,
    Vxlan,
)

World = dict[str, frozenset[Value]]


def namespace(name: str, *values: Value) -> World:
    """One namespace of ours with these values."""
    return {name: frozenset({Netns(names.mark(name.partition(".")[0])), Loopback(), *values})}


def merged(*worlds: World) -> World:
    """All of them; of a namespace that is in several, the values of all."""
    found: World = {}
    for world in worlds:
        for name, values in world.items():
            found[name] = found.get(name, frozenset()) | values
    return found


def pair(port: str, bridge: str, end: str, ip: str, mtu: int = 1500) -> World:
    """A veth pair: `port` (netns/device) enslaved to the bridge, `end` with an address and a MAC made of it."""
    (near, near_dev), (far, far_dev) = port.split("/"), end.split("/")
    address = ip.partition("/")[0]
    return {
        near: frozenset({Veth(near_dev, end, names.mac(address, "02:43"), mtu), BridgePort(near_dev, bridge, True)}),
        far: frozenset({Veth(far_dev, port, names.mac(address), mtu), Address(far_dev, ip)}),
    }


def adds(world: Mapping[str, Iterable[Value]]) -> list[Change]:
    return [Change("add", name, value) for name, values in world.items() for value in values]


def cluster(name: str, nodes: int, pods: int) -> World:
    """Nodes on one switch, a VXLAN overlay between them, and pods on each node's bridge: what flannel makes."""
    switch, numbers = names.fabric_netns(name, "nodes"), range(1, nodes + 1)
    bare = (node(name, number, numbers) for number in numbers)
    full = (pod(name, number, one) for number in numbers for one in range(pods))
    return merged(namespace(switch, Bridge("br0", "02:00:00:00:00:01")), *bare, *full)


def node(name: str, number: int, numbers: Iterable[int]) -> World:
    netns = names.node_netns(name, f"node{number}")
    outer = f"172.18.0.{number + 1}"
    values: list[Value] = [
        Bridge("cni0", names.mac(f"10.{number}.0.1"), 1450),
        Address("cni0", f"10.{number}.0.1/16"),
        Vxlan("flannel.1", names.vtep_mac(name, f"node{number}", 1), 1450, 1, outer, "eth0"),
        Address("flannel.1", f"10.{number}.0.0/32"),
        Sysctl("net.ipv4.ip_forward", "1"),
    ]
    for other in numbers:
        if other != number:
            vtep = names.vtep_mac(name, f"node{other}", 1)
            values += [
                Route(f"10.{other}.0.0/16", "flannel.1", f"10.{other}.0.0", onlink=True),
                Neighbour("flannel.1", f"10.{other}.0.0", vtep),
                FdbEntry("flannel.1", vtep, f"172.18.0.{other + 1}"),
                Neighbour("eth0", f"172.18.0.{other + 1}", names.mac(f"172.18.0.{other + 1}")),
            ]
    port = f"{names.fabric_netns(name, 'nodes')}/{names.veth(netns)}"
    return merged(namespace(netns, *values), pair(port, "br0", f"{netns}/eth0", f"{outer}/16"))


def address_of(number: int, one: int) -> str:
    return f"10.{number}.{one // 200 + 1}.{one % 200 + 2}"


def pod(name: str, number: int, one: int) -> World:
    netns, host = names.pod_netns(name, "default", f"p{number}-{one}"), names.node_netns(name, f"node{number}")
    ip, gateway = address_of(number, one), f"10.{number}.0.1"
    return merged(
        namespace(netns, Route("default", "eth0", gateway), Neighbour("eth0", gateway, names.mac(gateway))),
        {host: frozenset({Neighbour("cni0", ip, names.mac(ip))})},
        pair(f"{host}/{names.veth(netns)}", "cni0", f"{netns}/eth0", f"{ip}/16", 1450),
    )
