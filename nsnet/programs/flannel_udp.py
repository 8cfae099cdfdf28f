"""flannel's first backend: packets that the node sends to `flannel0` go to the other node in UDP, and the other way.

    pod → cni0 → route 10.244.0.0/16 dev flannel0 → this process: whose lease? → UDP to that node's address, port 8285
    UDP from another node → this process → flannel0 → cni0 → pod

A packet is carried as it is, without a header of its own: 28 bytes are lost. Each process takes one off its TTL, on the
way out and on the way in; one that has none left is dropped without a word, and one for nobody's lease is answered by
ICMP "network unreachable" (unless it is ICMP itself, or a later fragment).

The device is made by whoever starts us, and made anew when somebody deletes it: then it is attached to again.

    python -m nsnet.programs.flannel_udp CONFIG.json

CONFIG is `Config`, below; it is read again on the socket CONFIG.sock or at SIGHUP (see `start`).

Source: flannel `pkg/backend/udp/{udp_network_amd64.go,proxy_amd64.c}`. Upstream is told of leases one by one on a
socket pair; here all of them stand in the file.
"""

import asyncio
import contextlib
import os
import socket
import struct
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import NamedTuple

import msgspec

from nsnet.kernel import tun
from nsnet.programs import lines, plain, start

AT_ONCE = 64  # packets taken from one side before the other gets its turn
LARGEST = 65535
SMALLEST = 20  # bytes of an IPv4 header
REMEMBERED = 1 << 14  # destinations
AGAIN, SELDOM = 0.005, 0.25  # s until the next try to attach, at first and at most; no event says that a device is free
PATIENCE = 5.0  # s that who reloads waits for another device
IP_FREEBIND = 15
IPPROTO_ICMP, UNREACHABLE, NET_UNREACHABLE = 1, 3, 0

log = partial(plain.log, "flannel_udp")


class Config(msgspec.Struct, frozen=True):
    """`own` is the device's address, the source of what is said here; `leases` subnet → the node that has it."""

    device: str
    own: str
    listen: tuple[str, int]
    leases: dict[str, str] = {}


class Lease(NamedTuple):
    network: int
    mask: int
    node: str


def leases_of(config: Config) -> tuple[Lease, ...]:
    """Raises ValueError for a subnet that is none."""
    each = ((IPv4Network(subnet), node) for subnet, node in config.leases.items())
    return tuple(Lease(int(network.network_address), int(network.netmask), node) for network, node in each)


# --- packets ----------------------------------------------------------------------------------------------------------


def one_hop_on(packet: bytearray) -> bool:
    """Takes one off the TTL and mends the checksum (RFC 1624); whether the packet goes on."""
    packet[8] -= 1 if packet[8] else 0
    if not packet[8]:
        return False
    checksum = (packet[10] << 8 | packet[11]) + 0x100
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    packet[10:12] = checksum.to_bytes(2, "big")
    return True


def net_unreachable(packet: bytes, own: str) -> bytes:
    """The ICMP error that tells the sender; empty where RFC 1122 §3.2.2 forbids one."""
    header = (packet[0] & 0x0F) * 4
    later_fragment = int.from_bytes(packet[6:8], "big") & 0x1FFF
    if packet[9] == IPPROTO_ICMP or later_fragment:
        return b""
    said = packet[: header + 8]
    icmp = struct.pack("!BBxxxxxx", UNREACHABLE, NET_UNREACHABLE) + said
    icmp = icmp[:2] + _checksum(icmp) + icmp[4:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(icmp), 0, 0, 8, IPPROTO_ICMP, 0)
    ends = socket.inet_aton(own) + packet[12:16]
    return head[:10] + _checksum(head + ends) + ends + icmp


def _checksum(data: bytes) -> bytes:
    """The Internet's (RFC 1071)."""
    padded = data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    inverse: int = ~total & 0xFFFF
    return inverse.to_bytes(2, "big")


# --- the two sides ----------------------------------------------------------------------------------------------------


class Carrier:
    """The device on one side, the UDP socket on the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = self._read()
        self.leases = leases_of(self.config)
        self.nodes: dict[bytes, str] = {}  # destination → its node, as far as it has been asked for
        self.device = -1
        self.socket = _bound(self.config.listen)
        self.attaching: asyncio.Task[None] | None = None

    def _read(self) -> Config:
        return msgspec.json.decode(self.path.read_bytes(), type=Config)

    async def reload(self) -> str:
        """`ok`, or what is wrong with the file."""
        try:
            config = self._read()
            leases = leases_of(config)
            if config.listen != self.config.listen:
                self._listen(_bound(config.listen))
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log(f"{self.path}: {error}")
            return f"error: {error}"
        another = config.device != self.config.device
        self.config, self.leases = config, leases
        self.nodes.clear()
        if another and not (await asyncio.wait({self.attach()}, timeout=PATIENCE))[0]:
            return f"error: {config.device} is not there, or another program has it; it is waited for"
        return "ok"

    def _listen(self, new: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.socket)
        self.socket.close()
        self.socket = new
        loop.add_reader(new, self._from_nodes)

    async def begin(self) -> None:
        asyncio.get_running_loop().add_reader(self.socket, self._from_nodes)
        await self.attach()

    def attach(self) -> asyncio.Task[None]:
        """The wait until the device is there, and nobody else's; one at a time."""
        if self.attaching is not None:
            self.attaching.cancel()
        self._detach()
        self.attaching = asyncio.create_task(self._attach())
        return self.attaching

    async def _attach(self) -> None:
        pause = AGAIN
        while self.device < 0:
            with contextlib.suppress(OSError):
                socket.if_nametoindex(self.config.device)  # asking for one that is not there would make it
                self.device = tun.attach(self.config.device)
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, SELDOM)
        asyncio.get_running_loop().add_reader(self.device, self._from_device)

    def _detach(self) -> None:
        if self.device >= 0:
            asyncio.get_running_loop().remove_reader(self.device)
            os.close(self.device)
            self.device = -1

    def _lost(self, error: OSError) -> None:
        """Somebody has deleted the device."""
        log(f"{self.config.device}: {error.strerror}; waiting until it is there again")
        self.attach()

    def _from_device(self) -> None:
        for _ in range(AT_ONCE):
            try:
                packet = bytearray(os.read(self.device, LARGEST))
            except BlockingIOError:
                return
            except OSError as error:
                self._lost(error)
                return
            if len(packet) >= SMALLEST and packet[0] >> 4 == 4:
                self._to_node(packet)

    def _to_node(self, packet: bytearray) -> None:
        node = self._node_of(bytes(packet[16:20]))
        if not node:
            self._to_device(net_unreachable(bytes(packet), self.config.own))
        elif one_hop_on(packet):
            with contextlib.suppress(OSError):  # as on any wire: what cannot be sent is lost
                self.socket.sendto(packet, (node, self.config.listen[1]))

    def _node_of(self, destination: bytes) -> str:
        """Empty where it is in nobody's lease."""
        known = self.nodes.get(destination)
        if known is None:
            number = int.from_bytes(destination, "big")
            found = (lease.node for lease in self.leases if number & lease.mask == lease.network)
            if len(self.nodes) >= REMEMBERED:
                self.nodes.clear()
            known = self.nodes[destination] = next(found, "")
        return known

    def _from_nodes(self) -> None:
        for _ in range(AT_ONCE):
            try:
                packet = bytearray(self.socket.recv(LARGEST))
            except BlockingIOError:
                return
            except OSError:  # an ICMP error about something we sent
                continue
            if len(packet) >= SMALLEST and one_hop_on(packet):
                self._to_device(packet)

    def _to_device(self, packet: bytes | bytearray) -> None:
        with contextlib.suppress(OSError):  # down, or gone: its reader hears of that
            if packet and self.device >= 0:
                os.write(self.device, packet)


def _bound(listen: tuple[str, int]) -> socket.socket:
    """The node's address may come later (IP_FREEBIND). Raises OSError."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        opened.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        opened.bind(tuple(listen))
    except OSError:
        opened.close()
        raise
    return opened


# --- the program ------------------------------------------------------------------------------------------------------


async def run(path: Path) -> None:
    carrier = Carrier(path)
    await lines.take_reloads(path, carrier.reload)
    await carrier.begin()
    await start.until_told(carrier.reload)


if __name__ == "__main__":
    start.with_config(run)
