"""SCTP without a kernel that speaks it: INIT chunks sent by raw sockets, and heard by raw sockets."""

import select
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from time import monotonic

from nsnet.kernel import netns

_INIT = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)  # type INIT, a tag, a window, one stream each way


def _table() -> list[int]:
    rows = []
    for row in range(256):
        value = row
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        rows.append(value)
    return rows


_CRC32C = _table()


def _crc(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC32C[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def init(sport: int, dport: int) -> bytes:
    """The packet's SCTP part; conntrack drops one whose checksum is wrong."""
    head, tag = struct.pack("!HH", sport, dport), bytes(4)
    return head + tag + struct.pack("<I", _crc(head + tag + bytes(4) + _INIT)) + _INIT


def arrives(flows: Sequence[tuple[str, str, str, int]], timeout: float = 0.3) -> list[bool]:
    """For each (from namespace, to namespace, address, port): is an INIT that is sent there heard there?"""
    with ExitStack() as stack:
        listening = {name: stack.enter_context(_raw(name)) for name in {to for _, to, _, _ in flows}}
        sending = {name: stack.enter_context(_raw(name)) for name in {start for start, _, _, _ in flows}}
        for number, (start, _, address, port) in enumerate(flows):
            sending[start].sendto(init(20000 + number, port), (address, 0))
        return _heard(flows, listening, timeout)


def _raw(name: str) -> socket.socket:
    with netns.inside(name):
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_SCTP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return sock


def _heard(
    flows: Sequence[tuple[str, str, str, int]], listening: dict[str, socket.socket], timeout: float
) -> list[bool]:
    """Until nothing more comes for that long: what was sent by whom says the source port."""
    names = {sock: name for name, sock in listening.items()}
    found = [False] * len(flows)
    end = monotonic() + timeout
    while monotonic() < end and not all(found):
        for sock in select.select(list(names), [], [], max(0.0, end - monotonic()))[0]:
            packet = sock.recv(2048)
            head = (packet[0] & 15) * 4
            sport, dport = struct.unpack_from("!HH", packet, head)
            number = sport - 20000
            if 0 <= number < len(flows) and (flows[number][1], flows[number][3]) == (names[sock], dport):
                found[number] = True
                end = monotonic() + timeout
    return found
