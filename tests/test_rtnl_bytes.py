"""The messages packed by hand are, byte for byte, what pyroute2 (the field's codec) makes of the same words."""

from collections.abc import Iterator
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from nsnet.kernel import rtnl
from nsnet.kernel.netlink import Message, Request
from nsnet.state import (
    Address,
    Bridge,
    BridgePort,
    Change,
    FdbEntry,
    Ipip,
    Link,
    Loopback,
    Neighbour,
    OtherLink,
    Route,
    Tun,
    Value,
    Veth,
    Vxlan,
    Wireguard,
    lines,
    text,
)

INDEX = {"lo": 1, "eth0": 2, "cni0": 3, "flannel.1": 4, "veth1": 5}
UP = {"flags": 1, "change": 1}
PERMANENT = {"state": 0x80}
MAIN = {"family": 2, "table": 254, "proto": 3, "scope": 0, "type": 1}
IPV6_MAIN = {**MAIN, "family": 10}

Attributes = list[tuple[str, Any]]


def encoded(kind: type, fields: dict[str, Any], attributes: Attributes) -> bytes:
    """What pyroute2 sends behind the message header."""
    message = kind()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data[16:])


def nest(*attributes: tuple[str, Any]) -> dict[str, Attributes]:
    return {"attrs": list(attributes)}


def shape(name: str, mac: str, mtu: int) -> Attributes:
    return [("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac), ("IFLA_MTU", mtu)]


def kind(name: str, *data: tuple[str, Any]) -> tuple[str, Any]:
    inside = [("IFLA_INFO_DATA", nest(*data))] if data else []
    return ("IFLA_LINKINFO", nest(("IFLA_INFO_KIND", name), *inside))


QUEUES = [("IFLA_NUM_TX_QUEUES", 1), ("IFLA_NUM_RX_QUEUES", 1)]
HAIRPIN = (
    "IFLA_LINKINFO",
    nest(("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", nest(("IFLA_BRPORT_MODE", 1)))),
)
NEAR = Veth("veth1", "demo.pod.default.web/eth0", "02:44:0a:01:01:02", 1450)
FAR = Veth("eth0", "demo.node.node1/veth1", "0a:58:0a:01:01:02", 1450)

LINKS: dict[str, tuple[Request, dict[str, Any], Attributes]] = {
    "mark of a new namespace": (rtnl.marked("nsnet/demo"), {"index": 1, **UP}, [("IFLA_IFALIAS", "nsnet/demo")]),
    "bridge": (
        rtnl.bridge(Bridge("cni0", "0a:58:0a:01:00:01", 1450), 3)[0],
        {"index": 3, **UP},
        [*shape("cni0", "0a:58:0a:01:00:01", 1451), kind("bridge")],
    ),
    "the bridge's MTU, for good": (
        rtnl.bridge(Bridge("cni0", "0a:58:0a:01:00:01", 1450), 3)[1],
        {"index": 3},
        [("IFLA_MTU", 1450)],
    ),
    "vxlan": (
        rtnl.tunnel(Vxlan("flannel.1", "92:b9:4a:a4:ec:62", 1450, 7, "172.18.0.2", "eth0"), 4, 2),
        {"index": 4, **UP},
        [
            *shape("flannel.1", "92:b9:4a:a4:ec:62", 1450),
            kind(
                "vxlan",
                ("IFLA_VXLAN_ID", 7),
                ("IFLA_VXLAN_LINK", 2),
                ("IFLA_VXLAN_LOCAL", "172.18.0.2"),
                ("IFLA_VXLAN_LEARNING", 0),
                ("IFLA_VXLAN_PORT", 8472),
            ),
        ],
    ),
    "ipip": (
        rtnl.tunnel(Ipip("flannel.ipip", 1480, "172.18.0.2", "172.18.0.3", pmtudisc=True), 4),
        {"index": 4, **UP},
        [
            ("IFLA_IFNAME", "flannel.ipip"),
            ("IFLA_MTU", 1480),
            kind(
                "ipip", ("IFLA_IPIP_LOCAL", "172.18.0.2"), ("IFLA_IPIP_REMOTE", "172.18.0.3"), ("IFLA_IPIP_PMTUDISC", 1)
            ),
        ],
    ),
    "wireguard": (
        rtnl.tunnel(Wireguard("flannel-wg", 1420, up=False), 4),
        {"index": 4},
        [("IFLA_IFNAME", "flannel-wg"), ("IFLA_MTU", 1420), kind("wireguard")],
    ),
    "pair, enslaved": (
        rtnl.pair(NEAR, FAR, (5, 2), netns_fd=9, master=3),
        {"index": 5, **UP},
        [
            *shape("veth1", "02:44:0a:01:01:02", 1450),
            *QUEUES,
            ("IFLA_MASTER", 3),
            kind(
                "veth",
                (
                    "VETH_INFO_PEER",
                    {
                        "index": 2,
                        "attrs": [*shape("eth0", "0a:58:0a:01:01:02", 1450), *QUEUES, ("IFLA_NET_NS_FD", 9)],
                    },
                ),
            ),
        ],
    ),
    "other end and hairpin": (
        rtnl.named(5, "demo.pod.default.web/eth0", True),
        {"index": 5},
        [("IFLA_IFALIAS", "demo.pod.default.web/eth0"), HAIRPIN],
    ),
    "no IPv6 addresses by itself": (
        rtnl.without_ipv6(2),
        {"index": 2},
        [("IFLA_AF_SPEC", nest(("AF_INET6", nest(("IFLA_INET6_ADDR_GEN_MODE", 1)))))],
    ),
    "up": (rtnl.up_or_down(2, True), {"index": 2, **UP}, []),
    "down": (rtnl.up_or_down(2, False), {"index": 2, "change": 1}, []),
    "mac, mtu and up": (
        rtnl.reshaped(FAR, 2),
        {"index": 2, **UP},
        [("IFLA_ADDRESS", "0a:58:0a:01:01:02"), ("IFLA_MTU", 1450)],
    ),
    "group": (rtnl.grouped(5, 77), {"index": 5}, [("IFLA_GROUP", 77)]),
    "delete group": (rtnl.group_gone(77), {}, [("IFLA_GROUP", 77)]),
    "delete": (rtnl.gone(5), {"index": 5}, []),
}


@pytest.mark.parametrize("name", LINKS)
def test_links(name: str) -> None:
    request, fields, attributes = LINKS[name]
    assert request.body.hex() == encoded(ifinfmsg, fields, attributes).hex()


def to(dst: str, *more: tuple[str, Any]) -> Attributes:
    return [("RTA_DST", dst), *more]


VALUES: list[tuple[Value, type, dict[str, Any], Attributes]] = [
    (
        Address("eth0", "10.1.1.2/16"),
        ifaddrmsg,
        {"family": 2, "prefixlen": 16, "index": 2},
        [("IFA_LOCAL", "10.1.1.2"), ("IFA_ADDRESS", "10.1.1.2")],
    ),
    (
        Address("eth0", "fd00::2/64"),
        ifaddrmsg,
        {"family": 10, "prefixlen": 64, "index": 2, "flags": rtnl.IFA_F_NODAD},
        [("IFA_LOCAL", "fd00::2"), ("IFA_ADDRESS", "fd00::2")],
    ),
    (
        Neighbour("cni0", "10.1.1.2", "0a:58:0a:01:01:02"),
        ndmsg,
        {"family": 2, "ifindex": 3, **PERMANENT},
        [("NDA_DST", "10.1.1.2"), ("NDA_LLADDR", "0a:58:0a:01:01:02")],
    ),
    (
        FdbEntry("flannel.1", "92:b9:4a:a4:ec:62", "172.18.0.3"),
        ndmsg,
        {"family": 7, "ifindex": 4, "flags": 2, **PERMANENT},
        [("NDA_LLADDR", "92:b9:4a:a4:ec:62"), ("NDA_DST", "172.18.0.3")],
    ),
    (
        Route("default", "eth0", "10.1.0.1"),
        rtmsg,
        MAIN,
        [("RTA_GATEWAY", "10.1.0.1"), ("RTA_OIF", 2)],
    ),
    (
        Route("10.2.0.0/16", "flannel.1", "10.2.0.0", onlink=True),
        rtmsg,
        {**MAIN, "dst_len": 16, "flags": 4},
        to("10.2.0.0", ("RTA_GATEWAY", "10.2.0.0"), ("RTA_OIF", 4)),
    ),
    (
        Route("10.9.0.0/24", "cni0", proto="static", src="10.1.0.1", metric=50, mtu=1400),
        rtmsg,
        {**MAIN, "dst_len": 24, "proto": 4, "scope": 253},
        to(
            "10.9.0.0",
            ("RTA_OIF", 3),
            ("RTA_PREFSRC", "10.1.0.1"),
            ("RTA_PRIORITY", 50),
            ("RTA_METRICS", nest(("RTAX_MTU", 1400))),
        ),
    ),
    (Route("10.8.0.0/16", kind="blackhole"), rtmsg, {**MAIN, "dst_len": 16, "type": 6}, to("10.8.0.0")),
    (
        Route("10.7.0.0/16", nexthops=(("172.18.0.3", "eth0"), ("172.18.0.4", "eth0")), proto="bird"),
        rtmsg,
        {**MAIN, "dst_len": 16, "proto": 12},
        to(
            "10.7.0.0",
            (
                "RTA_MULTIPATH",
                [
                    {"oif": 2, "attrs": [("RTA_GATEWAY", "172.18.0.3")]},
                    {"oif": 2, "attrs": [("RTA_GATEWAY", "172.18.0.4")]},
                ],
            ),
        ),
    ),
    (
        Route("fd01::/64", "eth0", "fd00::1"),
        rtmsg,
        {**IPV6_MAIN, "dst_len": 64},
        to("fd01::", ("RTA_GATEWAY", "fd00::1"), ("RTA_OIF", 2)),
    ),
    (
        Route("::/0", "eth0", "fd00::1"),
        rtmsg,
        IPV6_MAIN,
        [("RTA_GATEWAY", "fd00::1"), ("RTA_OIF", 2)],
    ),
    (
        Route("fd00:10:244:2::/64", "flannel.1", "fd00:10:244:2::", onlink=True),
        rtmsg,
        {**IPV6_MAIN, "dst_len": 64, "flags": 4},
        to("fd00:10:244:2::", ("RTA_GATEWAY", "fd00:10:244:2::"), ("RTA_OIF", 4)),
    ),
    (
        Neighbour("cni0", "fd00:10:244:1::2", "0a:58:0a:01:01:02"),
        ndmsg,
        {"family": 10, "ifindex": 3, **PERMANENT},
        [("NDA_DST", "fd00:10:244:1::2"), ("NDA_LLADDR", "0a:58:0a:01:01:02")],
    ),
    (
        FdbEntry("flannel.1", "92:b9:4a:a4:ec:62", "fd00:172:18::3"),
        ndmsg,
        {"family": 7, "ifindex": 4, "flags": 2, **PERMANENT},
        [("NDA_LLADDR", "92:b9:4a:a4:ec:62"), ("NDA_DST", "fd00:172:18::3")],
    ),
]


@pytest.mark.parametrize(
    ("value", "message", "fields", "attributes"), VALUES, ids=lambda item: text(item) if isinstance(item, Value) else ""
)
def test_values(value: Value, message: type, fields: dict[str, Any], attributes: Attributes) -> None:
    (request,) = rtnl.requests(value, "add", INDEX)
    assert request.body.hex() == encoded(message, fields, attributes).hex()


@pytest.mark.parametrize(
    ("value", "message", "fields", "attributes"), VALUES, ids=lambda item: text(item) if isinstance(item, Value) else ""
)
def test_deleting_says_the_same(value: Value, message: type, fields: dict[str, Any], attributes: Attributes) -> None:
    """A route is deleted whatever its scope (255, nowhere, matches all), an address whatever its flags."""
    (request,) = rtnl.requests(value, "delete", INDEX)
    anywhere = {"scope": 255} if isinstance(value, Route) else {"flags": 0} if isinstance(value, Address) else {}
    assert request.body.hex() == encoded(message, {**fields, **anywhere}, attributes).hex()


def test_bridge_port() -> None:
    enslave, hairpin = rtnl.requests(BridgePort("veth1", "cni0", True), "add", INDEX)
    assert enslave.body == encoded(ifinfmsg, {"index": 5}, [("IFLA_MASTER", 3)])
    assert hairpin.body == encoded(ifinfmsg, {"index": 5}, [HAIRPIN])
    (free,) = rtnl.requests(BridgePort("veth1", "cni0"), "delete", INDEX)
    assert free.body == encoded(ifinfmsg, {"index": 5}, [("IFLA_MASTER", 0)])


# --- the other direction: pyroute2 speaks, we read ------------------------------------------------------------------


def heard(body: bytes) -> Message:
    return Message(0, b"\xff" * 16 + body, 16, 16 + len(body))


def device(index: int, name: str, *more: tuple[str, Any], up: bool = True) -> bytes:
    attributes = [*shape(name, f"02:00:00:00:00:{index:02x}", 1500), *more]
    return encoded(ifinfmsg, {"index": index, "flags": 1 if up else 0}, attributes)


DEVICES = rtnl.interfaces(
    heard(body)
    for body in (
        device(1, "lo", ("IFLA_IFALIAS", "nsnet/demo")),
        device(2, "eth0", ("IFLA_LINK", 5), ("IFLA_IFALIAS", "demo.node.node1/veth1"), kind("veth")),
        device(3, "cni0", kind("bridge")),
        device(
            4,
            "flannel.1",
            kind(
                "vxlan",
                ("IFLA_VXLAN_ID", 7),
                ("IFLA_VXLAN_LINK", 2),
                ("IFLA_VXLAN_LOCAL", "172.18.0.2"),
                ("IFLA_VXLAN_LEARNING", 1),
                ("IFLA_VXLAN_PORT", 4789),
            ),
            up=False,
        ),
        device(5, "veth1", ("IFLA_LINK", 2), ("IFLA_MASTER", 3), HAIRPIN),
        device(6, "tunl0", kind("ipip")),
        device(7, "gre7", kind("gre")),
        device(8, "flannel.ipip", kind("ipip", ("IFLA_IPIP_LOCAL", "172.18.0.2"), ("IFLA_IPIP_PMTUDISC", 0))),
        device(9, "flannel-wg", kind("wireguard"), up=False),
        device(10, "flannel0", kind("tun", ("IFLA_TUN_TYPE", 1), ("IFLA_TUN_PI", 0), ("IFLA_TUN_PERSIST", 1))),
        device(11, "tap0", kind("tun", ("IFLA_TUN_TYPE", 2), ("IFLA_TUN_PI", 0), ("IFLA_TUN_PERSIST", 1))),
        device(12, "ours0", kind("tun", ("IFLA_TUN_TYPE", 1), ("IFLA_TUN_PI", 0), ("IFLA_TUN_PERSIST", 0))),
    )
)

READ: dict[int, Loopback | Link | None] = {
    1: Loopback(up=True),
    2: Veth("eth0", "demo.node.node1/veth1", "02:00:00:00:00:02", 1500),
    3: Bridge("cni0", "02:00:00:00:00:03", 1500),
    4: Vxlan("flannel.1", "02:00:00:00:00:04", 1500, 7, "172.18.0.2", "eth0", 4789, learning=True, up=False),
    6: None,
    8: Ipip("flannel.ipip", 1500, "172.18.0.2"),
    9: Wireguard("flannel-wg", 1500, up=False),
    10: Tun("flannel0", 1500),
    11: OtherLink("tap0", "tun"),
    12: OtherLink("ours0", "tun"),
}


@pytest.mark.parametrize("number", READ)
def test_links_read(number: int) -> None:
    one = DEVICES[number]
    assert rtnl.link(DEVICES, one, one.alias) == READ[number]


def test_a_veth_whose_other_end_is_not_confirmed_is_not_one_of_ours() -> None:
    found = rtnl.link(DEVICES, DEVICES[2], "")
    assert (type(found).__name__, DEVICES[2].peer) == ("OtherLink", 5)


def test_ports_read() -> None:
    assert list(rtnl.ports(DEVICES)) == [BridgePort("veth1", "cni0", True)]


def with_its_route(messages: list[Message], devices: rtnl.Interfaces) -> Iterator[Address]:
    made = to("10.1.0.0", ("RTA_OIF", 2), ("RTA_PREFSRC", "10.1.1.2"))
    route = encoded(rtmsg, {**MAIN, "proto": 2, "dst_len": 16, "scope": 253}, made)
    return rtnl.addresses(messages, [heard(route)], devices)


def test_an_address_without_its_route() -> None:
    told = encoded(ifaddrmsg, {"family": 2, "prefixlen": 16, "index": 2}, [("IFA_LOCAL", "10.1.1.2")])
    (found,) = rtnl.addresses([heard(told)], [], DEVICES)
    assert found == Address("eth0", "10.1.1.2/16", routed=False)
    (again,) = lines(Change("replace", "t.node.n", Address("eth0", "10.1.1.2/16"), found))
    assert again == "ip -n t.node.n route add 10.1.0.0/16 dev eth0 proto kernel scope link src 10.1.1.2"


@pytest.mark.parametrize(
    ("value", "message", "fields", "attributes"), VALUES, ids=lambda item: text(item) if isinstance(item, Value) else ""
)
def test_values_read(value: Value, message: type, fields: dict[str, Any], attributes: Attributes) -> None:
    answer = [heard(encoded(message, fields, attributes))]
    readers: dict[type, Any] = {
        Address: with_its_route,
        Neighbour: rtnl.neighbours,
        FdbEntry: rtnl.fdb,
        Route: rtnl.routes,
    }
    assert list(readers[type(value)](answer, DEVICES)) == [value]


KERNEL_MADE: dict[str, tuple[Any, type, dict[str, Any], Attributes]] = {
    "route of an address": (rtnl.routes, rtmsg, {**MAIN, "proto": 2, "dst_len": 16}, to("10.1.0.0", ("RTA_OIF", 2))),
    "local table": (rtnl.routes, rtmsg, {**MAIN, "table": 255, "type": 2, "dst_len": 32}, to("10.1.1.2")),
    "multicast": (rtnl.routes, rtmsg, {**IPV6_MAIN, "type": 5, "dst_len": 8}, to("ff00::", ("RTA_OIF", 2))),
    "127.0.0.1": (
        with_its_route,
        ifaddrmsg,
        {"family": 2, "prefixlen": 8, "scope": 254, "index": 1},
        [("IFA_ADDRESS", "127.0.0.1"), ("IFA_LOCAL", "127.0.0.1")],
    ),
    "link-local": (
        with_its_route,
        ifaddrmsg,
        {"family": 10, "prefixlen": 64, "scope": 253, "index": 2},
        [("IFA_ADDRESS", "fe80::1")],
    ),
    "learned neighbour": (
        rtnl.neighbours,
        ndmsg,
        {"family": 2, "ifindex": 3, "state": 2},
        [("NDA_DST", "10.1.1.9"), ("NDA_LLADDR", "0a:58:0a:01:01:09")],
    ),
    "learned FDB entry": (
        rtnl.fdb,
        ndmsg,
        {"family": 7, "ifindex": 4, "state": 2, "flags": 2},
        [("NDA_LLADDR", "92:b9:4a:a4:ec:62"), ("NDA_DST", "172.18.0.3")],
    ),
}


@pytest.mark.parametrize("name", KERNEL_MADE)
def test_what_the_kernel_made_is_left_out(name: str) -> None:
    reader, message, fields, attributes = KERNEL_MADE[name]
    assert list(reader([heard(encoded(message, fields, attributes))], DEVICES)) == []


def test_a_long_name_of_an_end_becomes_an_alias_that_fits() -> None:
    end = f"{'n' * 250}/eth0"
    assert len(rtnl.alias_of(end)) == 255
    assert rtnl.alias_of(end) != rtnl.alias_of(end.replace("eth0", "eth1"))
    assert rtnl.alias_of("demo.pod.default.web/eth0") == "demo.pod.default.web/eth0"
