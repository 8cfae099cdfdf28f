"""What is a hint that somebody changed a namespace, and what is only the kernel learning and forgetting."""

import socket
import subprocess
from collections.abc import Iterator

import pytest

from nsnet.kernel import notify
from nsnet.kernel.netns import inside

NAME = "hints.node.node1"
PEER = "hints.node.node2"


def ip(*words: str) -> None:
    subprocess.run(["ip", "-n", NAME, *words], check=True)


@pytest.fixture
def hints() -> Iterator[socket.socket]:
    """A node with a bridge, an address, a route, a permanent neighbour and a VXLAN device with an FDB entry."""
    for name in (NAME, PEER):
        subprocess.run(["ip", "netns", "add", name], check=True)
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", PEER)
    ip("link", "set", "eth0", "up")
    subprocess.run(["ip", "-n", PEER, "link", "set", "eth0", "up"], check=True)
    subprocess.run(["ip", "-n", PEER, "address", "add", "192.0.2.2/24", "dev", "eth0"], check=True)
    ip("address", "add", "192.0.2.1/24", "dev", "eth0")
    ip("route", "add", "198.51.100.0/24", "via", "192.0.2.9")
    ip("neighbour", "add", "192.0.2.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0", "nud", "permanent")
    ip("link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", "8472", "dev", "eth0", "nolearning")
    ip("link", "set", "flannel.1", "up")
    subprocess.run(_fdb("add"), check=True)
    with notify.subscribe(NAME) as listener:
        yield listener
    for name in (NAME, PEER):
        subprocess.run(["ip", "netns", "delete", name], check=True)


def _fdb(verb: str, dst: str = "192.0.2.7") -> list[str]:
    entry = ["02:00:00:00:00:07", "dev", "flannel.1", "dst", dst, "self", "permanent"]
    return ["bridge", "-n", NAME, "fdb", verb, *entry]


@pytest.mark.parametrize(
    "words",
    [
        "link set eth0 mtu 1400",
        "link set eth0 down",
        "link delete flannel.1",
        "link add br0 type bridge",
        "address delete 192.0.2.1/24 dev eth0",
        "address add 192.0.2.3/24 dev eth0",
        "route delete 198.51.100.0/24",
        "route add blackhole 203.0.113.0/24",
        "neighbour delete 192.0.2.9 dev eth0",
        "neighbour replace 192.0.2.9 lladdr 02:00:00:00:00:0a dev eth0 nud permanent",
    ],
)
def test_what_a_hand_does_is_a_hint(hints: socket.socket, words: str) -> None:
    notify.changed(hints)
    ip(*words.split())
    assert notify.changed(hints)
    assert not notify.changed(hints)


@pytest.mark.parametrize("argv", [_fdb("delete"), _fdb("replace", "192.0.2.8")], ids=["delete", "replace"])
def test_forwarding_entries_are_hints(hints: socket.socket, argv: list[str]) -> None:
    notify.changed(hints)
    subprocess.run(argv, check=True)
    assert notify.changed(hints)


def test_arp_is_not(hints: socket.socket) -> None:
    notify.changed(hints)
    with inside(NAME):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        client.settimeout(5)
        client.connect(("192.0.2.2", 9))
        client.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
    shown = subprocess.run(["ip", "-n", NAME, "neighbour"], check=True, capture_output=True, text=True).stdout
    assert "192.0.2.2 dev eth0 lladdr" in shown
    assert not notify.changed(hints)


def test_lost_notifications_are_a_hint(hints: socket.socket) -> None:
    hints.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for number in range(50):
        ip("route", "replace", "198.51.100.0/24", "via", "192.0.2.9", "mtu", str(1000 + number))
    assert notify.changed(hints)


def test_a_namespace_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        notify.subscribe("hints.node.nothing")
