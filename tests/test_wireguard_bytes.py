"""WireGuard's messages, packed by hand, are what pyroute2 (the field's codec) makes of the same words; and back."""

import base64
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.generic.wireguard import WG_CMD_SET_DEVICE, wgmsg

from nsnet import names
from nsnet.kernel import wireguard
from nsnet.kernel.netlink import Message
from nsnet.state import Change, WireguardKey, WireguardPeer
from tests.built import wireguard_pair

NODE = "demo.node.node1"
OWN, PEER, SHARED = (wireguard_pair(name) for name in ("node1", "node2", "shared"))
NOTHING = base64.b64encode(bytes(32)).decode()

Attributes = list[tuple[str, Any]]


def encoded(*attributes: tuple[str, Any]) -> bytes:
    message = wgmsg()
    message["cmd"], message["version"] = WG_CMD_SET_DEVICE, 1
    message["attrs"] = list(attributes)
    message.encode()
    return bytes(message.data[16:])


def peer(*attributes: tuple[str, Any]) -> tuple[str, Any]:
    return ("WGDEVICE_A_PEERS", [{"attrs": [("WGPEER_A_PUBLIC_KEY", PEER[1]), *attributes]}])


def allowed(family: int, packed: bytes, length: int) -> dict[str, Attributes]:
    parts = (("FAMILY", family), ("IPADDR", packed), ("CIDR_MASK", length))
    return {"attrs": [(f"WGALLOWEDIP_A_{name}", value) for name, value in parts]}


DEVICE = ("WGDEVICE_A_IFNAME", "flannel-wg")
FOUR = allowed(2, bytes((10, 244, 2, 0)), 24)
SIX = allowed(10, bytes.fromhex("fd00010002440002") + bytes(8), 64)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name, key in (("key", OWN[0]), ("psk", SHARED[0])):
        (tmp_path / name).write_text(f"{key}\n")
    return {name: str(tmp_path / name) for name in ("key", "psk")}


def test_what_is_written(files: dict[str, str]) -> None:
    rows: list[tuple[Change, bytes]] = [
        (
            Change("add", NODE, WireguardKey("flannel-wg", OWN[1], 51820, files["key"])),
            encoded(DEVICE, ("WGDEVICE_A_PRIVATE_KEY", OWN[0]), ("WGDEVICE_A_LISTEN_PORT", 51820)),
        ),
        (
            Change("add", NODE, WireguardPeer("flannel-wg", PEER[1], "172.18.0.3:51820", ("10.244.2.0/24",))),
            encoded(
                DEVICE,
                peer(
                    ("WGPEER_A_PRESHARED_KEY", NOTHING),
                    ("WGPEER_A_FLAGS", 2),
                    ("WGPEER_A_ENDPOINT", {"addr": "172.18.0.3", "port": 51820}),
                    ("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", 0),
                    ("WGPEER_A_ALLOWEDIPS", [FOUR]),
                ),
            ),
        ),
        (
            Change(
                "replace",
                NODE,
                WireguardPeer(
                    "flannel-wg", PEER[1], "[fd00::3]:7", ("10.244.2.0/24", "fd00:100:244:2::/64"), 25, files["psk"]
                ),
            ),
            encoded(
                DEVICE,
                peer(
                    ("WGPEER_A_PRESHARED_KEY", SHARED[0]),
                    ("WGPEER_A_FLAGS", 2),
                    ("WGPEER_A_ENDPOINT", {"addr": "fd00::3", "port": 7, "flowinfo": 0, "scope_id": 0}),
                    ("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", 25),
                    ("WGPEER_A_ALLOWEDIPS", [FOUR, SIX]),
                ),
            ),
        ),
        (
            Change("delete", NODE, WireguardPeer("flannel-wg", PEER[1], "172.18.0.3:51820", ("10.244.2.0/24",))),
            encoded(DEVICE, peer(("WGPEER_A_FLAGS", 1))),
        ),
    ]
    for change, expected in rows:
        assert b"".join(wireguard.bodies(change)) == expected, change


def test_a_file_without_a_key_is_refused(files: dict[str, str]) -> None:
    Path(files["key"]).write_text("c2hvcnQ=\n")
    with pytest.raises(ValueError, match="holds no key of 32 bytes"):
        list(wireguard.bodies(Change("add", NODE, WireguardKey("flannel-wg", OWN[1], 51820, files["key"]))))


def test_what_is_read(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A device in two messages, the second of which goes on with the first one's peer; keys are told by their files."""
    monkeypatch.setattr(names, "wireguard_key_file", lambda _: Path(files["key"]))
    monkeypatch.setattr(names, "wireguard_psk_file", lambda _: Path(files["psk"]))
    kept = bytearray(base64.b64decode(OWN[0]))
    kept[0], kept[31] = kept[0] & 0xF8, kept[31] & 0x7F | 0x40  # as the kernel keeps a private key
    bodies = [
        encoded(
            DEVICE,
            ("WGDEVICE_A_PRIVATE_KEY", base64.b64encode(bytes(kept)).decode()),
            ("WGDEVICE_A_PUBLIC_KEY", OWN[1]),
            ("WGDEVICE_A_LISTEN_PORT", 51820),
            peer(
                ("WGPEER_A_PRESHARED_KEY", SHARED[0]),
                ("WGPEER_A_ENDPOINT", {"addr": "fd00::3", "port": 7, "flowinfo": 0, "scope_id": 0}),
                ("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", 25),
                ("WGPEER_A_ALLOWEDIPS", [SIX]),
            ),
        ),
        encoded(DEVICE, peer(("WGPEER_A_ALLOWEDIPS", [FOUR]))),
    ]
    heard = [Message(0, body, 0, len(body)) for body in bodies]
    assert list(wireguard.decoded(NODE, "flannel-wg", heard)) == [
        WireguardKey("flannel-wg", OWN[1], 51820, files["key"]),
        WireguardPeer("flannel-wg", PEER[1], "[fd00::3]:7", ("10.244.2.0/24", "fd00:100:244:2::/64"), 25, files["psk"]),
    ]
