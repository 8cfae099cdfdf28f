"""The walk through flannel's other tunnels: how each carries a packet, and what stops it on the way, named."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from nsnet import names
from nsnet.state import File, Ipip, Process, State, Tun, Value, Wireguard, WireguardKey, WireguardPeer
from nsnet.trace import Packet, Way, answer, walk
from tests.built import wireguard_pair
from tests.variants import VARIANTS

NODE1, NODE2 = (names.node_netns("demo", node) for node in ("node1", "node2"))
FROM, TO = names.pod_netns("demo", "default", "a"), names.pod_netns("demo", "default", "c")
DST = "10.244.2.2"
KEY2 = wireguard_pair("node2")[1]

STEPS = {
    "ipip": "ipip to 172.18.0.3",
    "udp": "process flannel_udp: to 172.18.0.3:8285",
    "wireguard": "wireguard to 172.18.0.3:51820",
}
Damage = Callable[[Value], Value | None]


def one_way(state: State, dst: str = DST) -> Way:
    (way,) = walk(state, FROM, Packet("tcp", dst, 80))
    return way


@pytest.mark.parametrize("backend", STEPS)
def test_there_and_back(backend: str) -> None:
    state = VARIANTS[backend]
    way = one_way(state)
    assert (way.result, way.netns, way.packet.src) == ("delivered", TO, "10.244.1.2")
    said = [hop.what for hop in way.hops]
    assert said.index(STEPS[backend]) < said.index("delivered to 172.18.0.3") < said.index(f"delivered to {DST}")
    (back,) = answer(state, way, Packet("tcp", DST, 80))
    assert (back.result, back.netns) == ("delivered", FROM)


def test_direct_routing_goes_without_the_tunnel() -> None:
    """node1 and node3 are in one rack, node2 in another."""
    state = VARIANTS["ipip, racks"]
    assert not [hop for hop in one_way(state, "10.244.3.2").hops if "ipip" in hop.what]
    assert [hop for hop in one_way(state).hops if hop.what == "ipip to 172.19.0.2"]


def without(kind: type[Value]) -> Damage:
    return lambda value: None if isinstance(value, kind) else value


def changed(kind: type[Value], **fields: object) -> Damage:
    return lambda value: replace(value, **fields) if isinstance(value, kind) else value


def _no_lease(value: Value) -> Value:
    if not isinstance(value, File) or not value.path.endswith("flannel-udp.json"):
        return value
    return replace(value, content=value.content.replace("10.244.2.0/24", "10.244.9.0/24"))


DAMAGES: list[tuple[str, str, Damage, str, str]] = [
    ("ipip", NODE2, changed(Ipip, local="172.18.0.9"), "dropped", "no IPIP device with local 172.18.0.3 is up here"),
    ("ipip", NODE2, changed(Ipip, up=False), "dropped", "no IPIP device with local 172.18.0.3 is up here"),
    ("ipip", NODE1, changed(Ipip, remote="172.18.0.9"), "dropped", "the IPIP packet is unreachable: nobody on"),
    ("udp", NODE1, without(Process), "unreachable", "no process reads flannel0"),
    ("udp", NODE1, _no_lease, "unreachable", "process flannel_udp has no lease for 10.244.2.2"),
    ("udp", NODE2, without(Process), "dropped", "no process of flannel's listens on port 8285 here"),
    ("udp", NODE2, changed(Tun, up=False), "dropped", "no process of flannel's listens on port 8285 here"),
    ("wireguard", NODE1, without(WireguardKey), "unreachable", "flannel-wg has no key"),
    ("wireguard", NODE1, without(WireguardPeer), "unreachable", "no peer of flannel-wg has 10.244.2.2 in"),
    ("wireguard", NODE2, without(WireguardPeer), "dropped", "flannel-wg does not allow 10.244.1.2 to this peer"),
    (
        "wireguard", NODE2, changed(WireguardPeer, allowed_ips=("10.244.9.0/24",)), "dropped",
        "flannel-wg does not allow 10.244.1.2 to this peer",
    ),
    (
        "wireguard", NODE2, changed(WireguardKey, public_key=wireguard_pair("other")[1]), "dropped",
        f"no WireGuard device with the key {KEY2} is up on port 51820 here",
    ),
    (
        "wireguard", NODE2, changed(Wireguard, up=False), "dropped",
        f"no WireGuard device with the key {KEY2} is up on port 51820 here",
    ),
    (
        "wireguard", NODE1, changed(WireguardPeer, endpoint=""), "unreachable",
        f"the peer {KEY2} of flannel-wg has no endpoint",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "netns", "damage", "result", "why"),
    DAMAGES,
    ids=lambda item: getattr(item, "__qualname__", str(item))[:40],
)
def test_what_stops_a_packet_is_named(backend: str, netns: str, damage: Damage, result: str, why: str) -> None:
    whole = VARIANTS[backend]
    left = frozenset(value for value in map(damage, whole[netns]) if value is not None)
    way = one_way({**whole, netns: left})
    assert (way.result, way.reason[: len(why)]) == (result, why)
