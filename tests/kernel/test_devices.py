"""Devices that not every kernel has, and what hangs on them: what is applied is observed, and gone when deleted.

ipip and wireguard are modules of stock kernels; where they are missing these tests are skipped, and scripts/test-in-vm
runs them on a kernel that has them.
"""

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from nsnet import names
from nsnet.diff import diff
from nsnet.kernel import apply, destroy, observe
from nsnet.state import (
    OFFLOADS,
    Address,
    Bridge,
    Change,
    File,
    Ipip,
    Listener,
    Offload,
    OtherLink,
    Route,
    Sysctl,
    Tun,
    Value,
    Vxlan,
    Wireguard,
    WireguardKey,
    WireguardPeer,
    text,
)
from tests.built import wireguard_pair
from tests.byhand import World, adds, merged, namespace, pair
from tests.kernel import needs

NODE, SWITCH = "t.node.n", "t.fabric.nodes"
BASE = merged(
    namespace(SWITCH, Bridge("br0", "02:00:00:00:00:01")),
    namespace(NODE),
    pair(f"{SWITCH}/port1", "br0", f"{NODE}/eth0", "172.18.0.2/16"),
)
KEY_FILE, PSK_FILE = str(names.wireguard_key_file(NODE)), str(names.wireguard_psk_file(NODE))
OWN, PEER, OTHER = wireguard_pair("n"), wireguard_pair("peer"), wireguard_pair("other")
KEYS = (File(KEY_FILE, f"{OWN[0]}\n", 0o400), File(PSK_FILE, f"{OTHER[0]}\n", 0o400))
IDENTITY = WireguardKey("flannel-wg", OWN[1], 51820, KEY_FILE)
NEAR = WireguardPeer("flannel-wg", PEER[1], "172.18.0.3:51820", ("10.2.0.0/24",))
MANY = tuple(sorted(f"10.{100 + (number >> 8)}.{number & 255}.0/24" for number in range(2000)))

VIA = Route("10.2.0.0/24", "flannel.ipip", "172.18.0.3", onlink=True)
WHOLE = Route("10.0.0.0/8", "flannel0", scope="global")
VTEP = Vxlan("flannel.1", "02:00:00:00:00:07", 1450, 1, "172.18.0.2", "eth0")
TUNNEL = Ipip("flannel.ipip", 1480, "172.18.0.2")
ROWS: list[tuple[str, tuple[Value, ...]]] = [
    ("ipip", (TUNNEL,)),
    ("ipip", (Ipip("flannel.ipip", 1400, "172.18.0.2", "172.18.0.3", pmtudisc=True, up=False),)),
    ("ipip", (TUNNEL, Address("flannel.ipip", "10.1.0.0/32"), VIA)),
    ("tun", (Tun("flannel0", 1472),)),
    ("tun", (Tun("flannel0", 1400, up=False),)),
    ("tun", (Tun("flannel0", 1472), Address("flannel0", "10.1.0.0/32"), WHOLE)),
    ("wireguard", (Wireguard("flannel-wg", 1420),)),
    ("wireguard", (Wireguard("flannel-wg", 1420), *KEYS, IDENTITY, Route("10.0.0.0/8", "flannel-wg"))),
    ("wireguard", (Wireguard("flannel-wg", 1420), *KEYS, IDENTITY, NEAR)),
    ("wireguard", (
        Wireguard("flannel-wg", 1420), *KEYS, IDENTITY,
        WireguardPeer("flannel-wg", PEER[1], "[fd00::3]:51821", ("10.2.0.0/24", "fd00:2::/64"), 25, PSK_FILE),
        WireguardPeer("flannel-wg", OTHER[1], "172.18.0.4:51820", MANY),
    )),
    ("veth", (Offload("eth0", OFFLOADS),)),
    ("veth", (Offload("eth0", ("tso",)),)),
    ("vxlan", (VTEP, Offload("flannel.1", ("tx", "tso")))),
]  # fmt: skip
REPLACED: list[tuple[str, Value, Value]] = [
    ("ipip", TUNNEL, Ipip("flannel.ipip", 1300, "172.18.0.2", up=False)),
    ("ipip", TUNNEL, Ipip("flannel.ipip", 1480, "172.18.0.9")),
    ("tun", Tun("flannel0", 1472), Tun("flannel0", 1300, up=False)),
    ("tun", Tun("flannel0", 1472), OtherLink("flannel0", "bridge")),
    ("wireguard", NEAR, WireguardPeer("flannel-wg", PEER[1], "172.18.0.9:1", ("10.3.0.0/24",), 5, PSK_FILE)),
    ("wireguard", NEAR, WireguardPeer("flannel-wg", OTHER[1], "172.18.0.3:51820", ("10.2.0.0/24",))),
    ("wireguard", IDENTITY, WireguardKey("flannel-wg", OWN[1], 7, KEY_FILE)),
    ("veth", Offload("eth0", OFFLOADS), Offload("eth0", ("gso",))),
]


def words(value: object) -> str:
    """A test's name: the (last) value as a person would type it."""
    last: Any = value[-1] if isinstance(value, tuple) else value
    return last if isinstance(last, str) else text(last)[:60]


@pytest.fixture
def base() -> Iterator[World]:
    try:
        assert apply(adds(BASE)) == []
        yield BASE
    finally:
        assert destroy("t")


def there() -> frozenset[Value]:
    return frozenset(value for value in observe("t")[NODE] if not isinstance(value, Sysctl | Listener))


def go(*values: Value) -> None:
    """From whatever is there to the base with these values, in one diff."""
    have = {NODE: there()}
    want = {NODE: BASE[NODE] | frozenset(values)}
    changes = [change for change in diff(have, want) if not isinstance(change.value, Sysctl)]
    assert [str(refusal) for refusal in apply(changes)] == []
    assert there() == want[NODE]


@pytest.mark.parametrize(("feature", "values"), ROWS, ids=words)
@pytest.mark.usefixtures("base")
def test_applied_is_observed_and_deleted_is_gone(feature: str, values: tuple[Value, ...]) -> None:
    needs.features(feature)
    go(*values)
    go()


@pytest.mark.parametrize(("feature", "old", "new"), REPLACED, ids=words)
@pytest.mark.usefixtures("base")
def test_replaced(feature: str, old: Value, new: Value) -> None:
    """What stands beside the value stays, and so does a second write of the same."""
    needs.features(feature)
    beside = (Wireguard("flannel-wg", 1420), *KEYS) if feature == "wireguard" else ()
    identity = () if isinstance(old, WireguardKey) or not beside else (IDENTITY,)
    if isinstance(new, OtherLink):
        subprocess.run(["ip", "-n", NODE, "link", "add", new.name, "type", new.kind], check=True)
        new, old = old, new
    else:
        go(*beside, *identity, old)
    go(*beside, *identity, new)
    assert apply([Change("replace", NODE, new, new)]) == []
    assert new in there()


@pytest.mark.usefixtures("base")
def test_a_key_from_elsewhere_is_drift() -> None:
    """Somebody gives the device another private key, and a peer a secret of their own: neither is from our files."""
    needs.features("wireguard")
    device = Wireguard("flannel-wg", 1420)
    go(device, *KEYS, IDENTITY, NEAR)
    foreign = File(KEY_FILE, f"{PEER[0]}\n", 0o400)
    apply(
        [
            Change("replace", NODE, foreign),
            Change("replace", NODE, WireguardKey("flannel-wg", PEER[1], 51820, KEY_FILE)),
        ]
    )
    assert WireguardKey("flannel-wg", PEER[1], 51820, KEY_FILE) in there()
    apply([Change("replace", NODE, KEYS[0])])
    assert WireguardKey("flannel-wg", PEER[1], 51820, "") in there()
    go(device, *KEYS, IDENTITY, NEAR)


@pytest.mark.usefixtures("base")
def test_a_peer_without_a_device_and_a_key_without_a_file_are_refused() -> None:
    needs.features("wireguard")
    (refusal,) = apply([Change("add", NODE, NEAR)])
    assert refusal.reason
    go(Wireguard("flannel-wg", 1420))
    (refusal,) = apply([Change("add", NODE, IDENTITY)])
    assert KEY_FILE in refusal.reason
