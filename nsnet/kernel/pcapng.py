"""pcapng, as Wireshark reads it: one interface block per hop, kernel timestamps in nanoseconds. Pure bytes.

A hop's interface is named after where it is and which device it is (`node/node1 cni0`), so that Wireshark's list and
its `frame.interface_name` speak of hops. A file may end behind any block and is whole.

Source: draft-ietf-opsawg-pcapng §4 (section header, interface description, enhanced packet, interface statistics).
"""

from collections.abc import Iterator
from struct import Struct

from nsnet import __version__

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_ETHERNET = 1
_BYTE_ORDER = 0x1A2B3C4D
_LENGTH = Struct("<I")
_OPTION = Struct("<HH")
_HEAD = Struct("<II")
_PACKET_HEAD = Struct("<IIIII")
_IN, _OUT = 1, 2  # of a packet's flags

_NAME, _RESOLUTION = 2, 9  # options of an interface
_APPLICATION, _FLAGS, _DROPPED = 4, 2, 5  # options of a section, a packet, statistics


class Writer:
    """Gives the bytes to write; knows which interfaces the file has."""

    def __init__(self, snapshot: int) -> None:
        self._snapshot = snapshot
        self._numbers: dict[tuple[str, str], int] = {}
        self._last = 0

    def start(self) -> bytes:
        body = Struct("<IHHq").pack(_BYTE_ORDER, 1, 0, -1) + _options(
            (_APPLICATION, f"nsnet {__version__}".encode()),
        )
        return _block(_SECTION, body)

    def interface(self, where: str, device: str) -> bytes:
        """The block of an interface; empty where the file has it already."""
        if (where, device) in self._numbers:
            return b""
        self._numbers[where, device] = len(self._numbers)
        body = Struct("<HHI").pack(_ETHERNET, 0, self._snapshot) + _options(
            (_NAME, f"{where} {device}".encode()),
            (_RESOLUTION, b"\x09"),
        )
        return _block(_INTERFACE, body)

    def packet(self, where: str, device: str, time: int, data: bytes, length: int, *, outgoing: bool) -> bytes:
        """A frame, `time` in nanoseconds since 1970; with its interface's block where that is new."""
        before = self.interface(where, device)
        number = self._numbers[where, device]
        self._last = max(self._last, time)
        head = _PACKET_HEAD.pack(number, time >> 32, time & 0xFFFFFFFF, len(data), length)
        flags = _options((_FLAGS, _LENGTH.pack(_OUT if outgoing else _IN)))
        return before + _block(_PACKET, head + data + bytes(-len(data) % 4) + flags)

    def end(self, dropped: dict[str, int]) -> bytes:
        """How many packets the kernel dropped in each place; of a place's interfaces the first one says it."""
        return b"".join(self._statistics(dropped))

    def _statistics(self, dropped: dict[str, int]) -> Iterator[bytes]:
        told: set[str] = set()
        for (where, _), number in self._numbers.items():
            if where not in told:
                told.add(where)
                count = _options((_DROPPED, Struct("<Q").pack(dropped.get(where, 0))))
                head = Struct("<III").pack(number, self._last >> 32, self._last & 0xFFFFFFFF)
                yield _block(_STATISTICS, head + count)


def _options(*pairs: tuple[int, bytes]) -> bytes:
    parts = [_OPTION.pack(kind, len(value)) + value + bytes(-len(value) % 4) for kind, value in pairs]
    return b"".join(parts) + _OPTION.pack(0, 0)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return _HEAD.pack(kind, length) + body + _LENGTH.pack(length)
