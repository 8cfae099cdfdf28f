"""What a device leaves to others, read and switched: `ethtool -k` and `ethtool -K`, by ioctl.

Asked only of the cables of nodes, hosts and the fabric, and of tunnels: what a veth in a pod has says nothing that
eth0 does not.
Source: Linux `include/uapi/linux/ethtool.h` (the commands that one feature each has), `net/ethtool/ioctl.c`.
"""

import ctypes
import errno
import fcntl
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from struct import Struct

from nsnet.kernel.netns import inside
from nsnet.state import OFFLOADS, Change, Offload, Refusal

SIOCETHTOOL = 0x8946
_COMMANDS: Mapping[str, tuple[int, int]] = {  # get, set
    "rx": (0x14, 0x15), "tx": (0x16, 0x17), "sg": (0x18, 0x19), "tso": (0x1E, 0x1F), "gso": (0x23, 0x24),
}  # fmt: skip
_VALUE = Struct("=II")  # command, data
_IFREQ = Struct("=16sQ16x")
_ABSENT = {errno.ENODEV, errno.EOPNOTSUPP}


def read(netns: str, devices: Iterable[str]) -> Iterator[Offload]:
    """Those of the devices that have something off. One that is gone meanwhile has nothing."""
    with inside(netns):
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asking:
        for dev in devices:
            off = tuple(word for word in OFFLOADS if not _is_on(asking, dev, word))
            if off:
                yield Offload(dev, off)


def _is_on(asking: socket.socket, dev: str, word: str) -> bool:
    try:
        return bool(_ask(asking, dev, _COMMANDS[word][0], 0))
    except OSError as error:
        if error.errno in _ABSENT:
            return True
        raise


def _ask(asking: socket.socket, dev: str, command: int, data: int) -> int:
    value = ctypes.create_string_buffer(_VALUE.pack(command, data), _VALUE.size)
    fcntl.ioctl(asking, SIOCETHTOOL, _IFREQ.pack(dev.encode(), ctypes.addressof(value)))
    answer: int = _VALUE.unpack(value.raw)[1]
    return answer


def write(netns: str, changes: Sequence[Change]) -> list[Refusal]:
    """Switches them off, and on what shall not be off (any more); reads each back."""
    with inside(netns):
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asking:
        answers = [(change, _write(asking, change)) for change in changes]
    return [Refusal(change, reason) for change, reason in answers if reason]


def _write(asking: socket.socket, change: Change) -> str:
    """Why it was refused, or nothing. Deleting what is on a device that is gone is success."""
    value = change.value
    assert isinstance(value, Offload)
    off = () if change.verb == "delete" else value.off
    try:
        for word in OFFLOADS:
            _ask(asking, value.dev, _COMMANDS[word][1], word not in off)
        kept = [word for word in OFFLOADS if _is_on(asking, value.dev, word) is (word in off)]
    except OSError as error:
        gone = change.verb == "delete" and error.errno == errno.ENODEV
        return "" if gone else os.strerror(error.errno or 0)
    return f"{value.dev} does not change {', '.join(kept)}" if kept else ""
